"""wasm/matrix.h against its definition in NumPy, bit for bit: every number format, odd sizes, extreme values.

The kernels are compiled natively under AddressSanitizer and UndefinedBehaviorSanitizer, as the SIMD128 build lays the
integers out and as the relaxed build does. What is compared is exact: integer sums are, and floats are added in the
same order here.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fabella.formats import FORMATS, GROUP

Floats = NDArray[np.float32]
Run = Callable[..., tuple[Floats, Floats]]

TYPES = {name: format.number for name, format in FORMATS.items()}
OURS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0")  # which this file defines in NumPy; test_formats.py has all
E_NOT_FINITE, E_RANGE = 4, 9
FLAGS = "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -ffp-contract=off -Wall -Wextra -Werror".split()


class Refused(Exception):
    """An error code without its sign."""


def compile_kernels(folder: Path, build: str) -> Path:
    """Compile tests/kernels.c for one layout of bytes."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no gcc or clang to compile the native build with")
    program = folder / "kernels"
    layout = ["-DRELAXED"] if build == "relaxed" else []
    source = Path(__file__).with_name("kernels.c")
    unused = "-Wno-unused-function"
    subprocess.run([compiler, *FLAGS, unused, *layout, str(source), "-o", str(program)], check=True)
    return program


def runner(program: Path) -> Run:
    def run(matrix: Any, x: Floats) -> tuple[Floats, Floats]:
        """Rows unpacked (rows, cols), and the product (tokens, rows)."""
        tokens, cols = x.shape
        scales = matrix.scales if matrix.type == "I8" else np.zeros(0, np.float32)
        head = (TYPES[matrix.type], matrix.rows, cols, matrix.group, tokens, len(matrix.data), len(scales))
        given, result = program.with_name("input"), program.with_name("output")
        given.write_bytes(struct.pack("<7i", *head) + matrix.data + scales.tobytes() + x.tobytes())
        done = subprocess.run([program, given, result], capture_output=True, text=True)
        if done.returncode > 64:
            raise Refused(done.returncode - 64)
        assert done.returncode == 0, done.stderr
        out = np.fromfile(result, np.float32)
        cut = matrix.rows * cols
        return out[:cut].reshape(matrix.rows, cols), out[cut:].reshape(tokens, matrix.rows)

    return run


@pytest.fixture(scope="session", params=["simd", "relaxed"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(compile_kernels(tmp_path_factory.mktemp("kernels"), request.param))


class Matrix:
    """A matrix as it lies in a file, and what its bytes mean.

    `integers` (rows, cols), `scale` and `minimum` (rows, cols / 32) if it is packed as integers, else `floats`.
    """

    def __init__(self, type: str, values: Any, scales: Any = None, minima: Any = None, group: int = 0) -> None:
        self.type, self.group = type, group
        self.rows, cols = values.shape
        self.integers: NDArray[np.int64] | None = None
        f16 = lambda numbers: np.asarray(numbers, np.float16)  # noqa: E731
        if type in ("F32", "F16", "BF16"):
            stored = {"F32": values, "F16": f16(values), "BF16": (values.view(np.uint32) >> 16).astype(np.uint16)}[type]
            self.data = stored.tobytes()
            self.floats = (
                (stored.astype(np.uint32) << 16).view(np.float32) if type == "BF16" else stored.astype(np.float32)
            )
            return
        self.integers = values.astype(np.int64)
        if type == "I8":
            self.data, self.scales = values.astype(np.int8).tobytes(), np.asarray(scales, np.float32).reshape(-1)
            per_weight = np.repeat(self.scales, group).reshape(values.shape)
            self.floats = per_weight * values.astype(np.float32)
            if group % GROUP or cols % GROUP:
                self.integers = None
                return
            self.scale = per_weight[:, ::GROUP]
            self.minimum = None
            return
        groups = values.reshape(self.rows, -1, GROUP)
        self.scale = f16(scales).astype(np.float32)
        self.minimum = f16(minima).astype(np.float32) if type == "Q4_1" else None
        heads = f16(scales)[..., None] if minima is None else np.stack([f16(scales), f16(minima)], -1)
        if type == "Q8_0":
            body = groups.astype(np.int8)
        else:
            nibbles = (groups + (8 if type == "Q4_0" else 0)).astype(np.uint8)
            body = (nibbles[..., :16] | nibbles[..., 16:] << 4).view(np.int8)
        self.data = b"".join(
            head.tobytes() + numbers.tobytes()
            for head, numbers in zip(heads.reshape(-1, heads.shape[-1]), body.reshape(-1, body.shape[-1]), strict=True)
        )
        self.floats = (self.scale[..., None] * groups.astype(np.float32)).reshape(values.shape)
        if self.minimum is not None:
            self.floats = (self.floats.reshape(groups.shape) + self.minimum[..., None]).reshape(values.shape)


def quantized(x: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Activations as integers (tokens, groups, 32) with a scale each group."""
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(-1)
    kept = largest > np.float32(1e-30)
    inverse = np.where(kept, np.float32(127) / np.where(kept, largest, np.float32(1)), np.float32(0))
    integers = np.rint(groups * inverse[..., None]).astype(np.int64)
    return integers, np.where(kept, largest / np.float32(127), np.float32(0))


def product(matrix: Matrix, x: Floats) -> Floats:
    """y = W x as matrix.h defines it: floats added one column, or one group, after the other."""
    y = np.zeros((len(x), matrix.rows), np.float32)
    if matrix.integers is None:
        for c in range(x.shape[1]):
            y += x[:, c, None] * matrix.floats[:, c]
        return y
    q, scales = quantized(x)
    weights = matrix.integers.reshape(matrix.rows, -1, GROUP)
    if matrix.type == "Q4_1":
        assert weights.min() >= 0
    for g in range(q.shape[1]):
        dot = (q[:, g] @ weights[:, g].T).astype(np.float32)
        y += (matrix.scale[:, g] * scales[:, g, None]) * dot
        if matrix.minimum is not None:
            y += matrix.minimum[:, g] * (scales[:, g] * q[:, g].sum(-1).astype(np.float32))[:, None]
    return y


def random_matrix(random: np.random.Generator, type: str, rows: int, cols: int, group: int = 0) -> Matrix:
    if type in ("F32", "F16", "BF16"):
        return Matrix(type, random.normal(size=(rows, cols)).astype(np.float32))
    low, high = {"Q4_0": (-8, 7), "Q4_1": (0, 15)}.get(type, (-127, 127))
    values = random.integers(low, high, (rows, cols), endpoint=True)
    shape = (rows * cols // group,) if group else (rows, cols // GROUP)
    minima = random.normal(size=shape) if type == "Q4_1" else None
    return Matrix(type, values, random.normal(size=shape) * 0.01, minima, group)


def compare(run: Run, matrix: Matrix, x: Floats) -> None:
    rows, y = run(matrix, x)
    with np.errstate(over="ignore", under="ignore"):
        assert np.array_equal(rows.view(np.uint32) << 1, matrix.floats.view(np.uint32) << 1), "rows, but for -0"
        assert np.array_equal(y.view(np.uint32), product(matrix, x).view(np.uint32))


@pytest.mark.parametrize("type", OURS)
@settings(max_examples=12)
@given(data=st.data())
def test_every_format_and_size(run: Run, type: str, data: st.DataObject) -> None:
    """Rows around the panels' 4, 16 and 32, tokens around the kernels' 2 and 4."""
    rows, tokens = data.draw(st.integers(1, 70) | st.integers(128, 140)), data.draw(st.integers(1, 9))
    cols = data.draw(st.integers(1, 80)) if "F" in type else GROUP * data.draw(st.integers(1, 5))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    x = random.normal(size=(tokens, cols)).astype(np.float32)
    compare(run, random_matrix(random, type, rows, cols), x)


@pytest.mark.parametrize(
    ("rows", "cols", "group"),
    [(5, 64, 64), (40, 96, 32), (6, 96, 64), (16, 160, 128), (3, 64, 192), (6, 64, 16), (6, 40, 48), (7, 30, 1)],
)
def test_int8_with_scales_of_any_group(run: Run, rows: int, cols: int, group: int) -> None:
    """llama2.c's version 2: groups run over the whole tensor, so one may begin in a row and end in the next."""
    random = np.random.default_rng(1)
    compare(run, random_matrix(random, "I8", rows, cols, group), random.normal(size=(5, cols)).astype(np.float32))


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-31, 1e-29, 1.0, 1e30])
def test_extreme_values(run: Run, type: str, size: float) -> None:
    """Integers at both ends, scales of 0, the smallest and the largest f16, tiny and huge activations."""
    low, high = {"Q8_0": (-127, 127), "Q4_0": (-8, 7), "Q4_1": (0, 15)}[type]
    values = np.array([[low, high] * 48, [high] * 96, [low] * 96, [low, high, 0] * 32] * 9)
    scales = np.array([0.0, 6e-8, -65504.0, 65504.0, 6.1e-5, 1.0] * 18).reshape(36, 3)
    x = np.float32(size) * np.array([[1, -1, 0.5] * 32, [1] * 96, [-1] * 96, [0] * 95 + [1]], np.float32)
    compare(run, Matrix(type, values, scales, -scales if type == "Q4_1" else None), x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(run: Run, value: float) -> None:
    x = np.ones((1, 64), np.float32)
    good = np.ones((2, 2))
    bad = np.array([[1.0, 1.0], [1.0, value]])
    weights = np.ones((2, 64), np.float32)
    broken = weights.copy()
    broken[1, 63] = value
    integers = np.ones((2, 64), int)
    matrices = [Matrix(type, broken) for type in ("F32", "F16", "BF16")]
    matrices += [Matrix(type, integers, bad) for type in ("Q8_0", "Q4_0")]
    matrices += [Matrix("Q4_1", integers, bad, good), Matrix("Q4_1", integers, good, bad)]
    matrices += [Matrix("I8", integers, bad, group=32), Matrix("I8", integers, bad, group=64 // 2)]
    matrices += [Matrix("I8", integers, [*[1.0] * 7, value], group=16)]
    for matrix in matrices:
        with pytest.raises(Refused, match=f"^{E_NOT_FINITE}$"):
            run(matrix, x)


@pytest.mark.parametrize(("type", "group"), [("Q8_0", 0), ("I8", 32), ("I8", 16)])
def test_a_weight_whose_opposite_is_no_int8_is_refused(run: Run, type: str, group: int) -> None:
    """Also where it becomes a float, in groups of 16: a file is valid or not, whatever is made of it."""
    values = np.zeros((3, 64), int)
    values[2, 40] = -128
    with pytest.raises(Refused, match=f"^{E_RANGE}$"):
        run(Matrix(type, values, np.ones((3, 64 // (group or GROUP))), group=group), np.ones((1, 64), np.float32))


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_not_finite_spoils_the_product(run: Run, type: str, value: float) -> None:
    """Not silently lost in the integers: the logits say that the model is broken."""
    random = np.random.default_rng(1)
    x = random.normal(size=(3, 96)).astype(np.float32)
    x[1, 40] = value
    _, y = run(random_matrix(random, type, 20, 96), x)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()
