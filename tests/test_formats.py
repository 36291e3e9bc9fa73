"""Every number format against the library gguf: what the kernels multiply by is what it says, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fabella.formats import FLOATS, FORMATS, GROUP

from .blocks import BLOCKS, dequantized, halves_of, random_blocks
from .test_kernels import TYPES, Refused, Run, compile_kernels, quantized, runner


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The kernels with each layout of bytes."""
    builds = ("simd", "relaxed")
    return {build: runner(compile_kernels(tmp_path_factory.mktemp(build), build)) for build in builds}


@pytest.fixture(params=["simd", "relaxed"], scope="session")
def run(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    return runs[request.param]


class Stored:
    """What test_kernels' runner wants of a matrix."""

    group = 0

    def __init__(self, type: str, data: NDArray[np.uint8]) -> None:
        self.type, self.rows, self.data = type, len(data), data.tobytes()


@pytest.mark.parametrize("type", BLOCKS)
@settings(max_examples=15)
@given(data=st.data())
def test_weights_are_those_of_the_library_to_the_bit(run: Run, type: str, data: st.DataObject) -> None:
    """And the products are theirs with the activations as the kernels round them, but for the roundings of sums."""
    rows, tokens = data.draw(st.integers(1, 70) | st.integers(128, 140)), data.draw(st.integers(1, 9))
    cols = FORMATS[type].block * data.draw(st.integers(1, 3))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    blocks = random_blocks(random, type, rows, cols)
    x = random.normal(size=(tokens, cols)).astype(np.float32)
    weights, y = run(Stored(type, blocks), x)
    expected = dequantized(type, blocks)
    assert np.array_equal(weights.view(np.uint32) << 1, expected.view(np.uint32) << 1), "but for the sign of 0"
    integers, scales = quantized(x)
    rounded = (integers * scales[..., None].astype(np.float64)).reshape(x.shape)
    products = rounded @ expected.T.astype(np.float64)
    size = np.abs(rounded) @ np.abs(expected.T).astype(np.float64)
    assert (np.abs(y - products) <= 1e-6 * size + 1e-30).all()


@pytest.mark.parametrize("type", BLOCKS)
def test_both_layouts_of_bytes_give_the_same_bits_whatever_is_computed_at_once(type: str, runs: dict[str, Run]) -> None:
    random = np.random.default_rng(3)
    matrix = Stored(type, random_blocks(random, type, 172, 2 * 256))  # four panels side by side, one alone, narrow ones
    x = random.normal(size=(3, 2 * 256)).astype(np.float32)  # two tokens together, one alone
    results = []
    for run in runs.values():
        results += [run(matrix, x)[1], np.concatenate([run(matrix, token[None])[1] for token in x])]
    assert len({result.tobytes() for result in results}) == 1, "together and one by one"


@pytest.mark.parametrize("type", [type for type in BLOCKS if type not in ("MXFP4", "Q8_0")])
def test_all_bytes_at_their_extremes(run: Run, type: str) -> None:
    """Zeros, all bits, the largest scales: the integers stay within what the kernels can add up."""
    random = np.random.default_rng(1)
    blocks = random_blocks(random, type, 6, 512)
    pattern = np.zeros_like(blocks.reshape(6, -1, FORMATS[type].block_size))
    pattern[1::2] = 255
    for at in halves_of(type):
        pattern[..., at : at + 2] = np.array([60.0], np.float16).view(np.uint8)
    x = np.where(np.arange(512) % 3 == 0, -1, 1).astype(np.float32)[None].repeat(2, axis=0)
    data = pattern.reshape(6, -1)
    weights, y = run(Stored(type, data), x)
    expected = dequantized(type, data)
    assert np.array_equal(weights, expected)
    products = x.astype(np.float64) @ expected.T.astype(np.float64)
    assert (np.abs(y - products) <= 1e-6 * (np.abs(x) @ np.abs(expected.T)) + 1e-6).all()


@pytest.mark.parametrize("type", [type for type in BLOCKS if type != "MXFP4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite_are_refused(run: Run, type: str, value: float) -> None:
    for at in halves_of(type):
        blocks = random_blocks(np.random.default_rng(1), type, 3, 512)
        size = FORMATS[type].block_size
        blocks[2, -size + at : -size + at + 2 or None] = np.array([value], np.float16).view(np.uint8)
        with pytest.raises(Refused, match=r"^4$"):
            run(Stored(type, blocks), np.ones((1, 512), np.float32))


def test_all_formats_are_tried() -> None:
    assert {*BLOCKS, *FLOATS, "I8"} == set(FORMATS)
    assert set(TYPES) == set(FORMATS)
    assert all(format.block % GROUP == 0 for format in FORMATS.values() if format.block > 1)
