"""The functions of wasm/maths.h, and simd.h's exp and run.c's softmax, against NumPy's: over all that they are for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

FLAGS = "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -ffp-contract=off -Wall -Wextra -Werror".split()
COUNT = 200_000

Run = Callable[..., NDArray[Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no gcc or clang to compile the native build with")
    program = tmp_path_factory.mktemp("maths") / "maths"
    subprocess.run([compiler, *FLAGS, str(Path(__file__).with_name("maths.c")), "-o", str(program), "-lm"], check=True)

    def run(function: str, numbers: NDArray[Any]) -> NDArray[Any]:
        given, result = program.with_name("input"), program.with_name("output")
        given.write_bytes(numbers.tobytes())
        done = subprocess.run([program, function, given, result], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return np.fromfile(result, numbers.dtype)

    return run


def largest_error(ours: NDArray[Any], exact: NDArray[Any]) -> float:
    return float(np.abs(ours / exact - 1).max())


def long(numbers: NDArray[np.float64]) -> NDArray[np.longdouble]:
    return numbers.astype(np.longdouble)


def floats(*numbers: float) -> NDArray[np.float32]:
    return np.array(numbers, np.float32)


def uniform(low: float, high: float, *more: float) -> NDArray[np.float64]:
    return np.array([*np.random.default_rng(0).uniform(low, high, COUNT), low, high, *more])


def test_exp(run: Run) -> None:
    a = uniform(-700, 700, 0, 1e-300, 0.5 * np.log(2), -0.5 * np.log(2))
    assert largest_error(run("exp", a), np.exp(long(a))) < 1e-15
    assert run("exp", np.zeros(1)) == 1


def test_log(run: Run) -> None:
    a = np.exp2(uniform(-1022, 1022.9, 0.5, -0.5))
    a = np.concatenate([a, uniform(1e-3, 1e3), np.nextafter(1, [0, 2])])
    a = a[a != 1]
    assert largest_error(run("log", a), np.log(long(a))) < 1e-15
    assert run("log", np.ones(1)) == 0


def test_cosine_and_sine(run: Run) -> None:
    """Of angles to 2^20 - 1, a position's largest, and where one of the two is nearly 0."""
    quarters = np.arange(0, 2**20 / 1.5708, 7) * (np.pi / 2)
    a = np.concatenate([uniform(0, 2**20 - 1), quarters, np.arange(2.0**20 - 1000, 2**20), uniform(0, 10)])
    cosine, sine = run("cos_sin", a).reshape(-1, 2).T
    assert np.abs(cosine - np.cos(long(a))).max() < 1e-15
    assert np.abs(sine - np.sin(long(a))).max() < 1e-15


def test_exp_of_four_floats(run: Run) -> None:
    a = uniform(-87, 88, 0, -0.0, 1e-30, -1e-38, 0.34657359, -0.34657359).astype(np.float32)
    assert largest_error(run("exp4", a).astype(np.float64), np.exp(a.astype(np.float64))) < 3e-7


def test_exp_of_four_floats_beyond_its_range(run: Run) -> None:
    below, above = np.nextafter(floats(-87, 88), floats(-np.inf, np.inf))
    a = floats(-87, below, -88, -1e30, -3e38, -np.inf, np.nan, -np.nan, 88, above, 89, 3e38, np.inf, 0, 0, 0)
    e = run("exp4", a)
    assert e[0] > 0
    assert (e[1:8].view(np.uint32) == 0).all()
    assert largest_error(e[8:13].astype(np.float64), np.exp(np.full(5, 88.0))) < 3e-7
    assert (e[13:] == 1).all()


@pytest.mark.parametrize("n", [1, 4, 6, 8])
def test_softmax(run: Run, n: int) -> None:
    random = np.random.default_rng(n)
    for spread in (0.0, 1.0, 100.0, 1e30, 5e38):
        scores = np.clip(random.normal(size=8) * spread, -3e38, 3e38).astype(np.float32)
        weights = run("softmax", floats(0, n, 0, *scores))
        exact = np.exp((scores[:n].astype(np.float64) - scores[:n].max()) / 2)
        assert weights[:n] == pytest.approx(exact / exact.sum(), rel=1e-5, abs=1e-30)
        assert (weights[n:].view(np.uint32) == 0).all()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("cap", [0, 50])
def test_a_score_that_is_not_finite_spoils_the_softmax(run: Run, value: float, place: int, cap: float) -> None:
    scores = floats(1, -2, 3, 0, 5, 6, 7, 8)
    scores[place] = value
    assert np.isnan(run("softmax", floats(0, 6, cap, *scores))[:6]).all()
    if place > 0:
        assert np.isfinite(run("softmax", floats(0, place, cap, *scores))).all(), "what follows the last does not count"
    if place < 5:
        assert np.isfinite(run("softmax", floats(place + 1, 6, cap, *scores))).all(), "nor what is before the first"


def test_softmax_of_a_window_under_a_cap(run: Run) -> None:
    scores = np.random.default_rng(1).normal(size=12).astype(np.float32) * 100
    for first, end in ((0, 12), (3, 9), (5, 6), (11, 12)):
        weights = run("softmax", floats(first, end, 50, *scores))
        exact = np.exp(50 * np.tanh(scores[first:end].astype(np.float64) / 2 / 50))
        assert weights[first:end] == pytest.approx(exact / exact.sum(), rel=1e-4, abs=1e-30)
        assert (weights[:first].view(np.uint32) == 0).all()
        assert (weights[end:].view(np.uint32) == 0).all()


def test_tanh_of_four_floats(run: Run) -> None:
    x = floats(*np.linspace(-20, 20, 20_000), 0, -0.0, 1e-30, -100, 100, 3e38, -3e38, 1e-4)
    assert np.abs(run("tanh4", x) - np.tanh(x.astype(np.float64))).max() < 3e-7


def test_gelu(run: Run) -> None:
    x = floats(*np.linspace(-15, 15, 20_000), 0, -0.0, 1e-20, -100, 100, 1e12, -1e12, 1e-4)
    y = x.astype(np.float64)
    exact = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    assert (np.abs(run("gelu", x) - exact) <= 5e-6 + 3e-7 * np.abs(exact)).all()
    assert np.isnan(run("gelu", floats(np.nan, 1, 1, 1))[0])
