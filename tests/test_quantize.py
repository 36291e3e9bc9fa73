"""Weights in the number formats of model files: the bytes that the formats define, and how far off a weight may be."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from fabella.formats import FORMATS, GROUP, QUANTISED, STORED, SUPER
from fabella.modelfile import Tensor
from fabella.sources import BytesSource
from train.quantize import dequantize, fitting, quantize, read_weights

from .blocks import dequantized, random_blocks


def some_weights(rows: int = 50, columns: int = 768, spread: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(1).standard_normal((rows, columns)) * spread).astype(np.float32)


def there_and_back(weights: NDArray[np.float32], type: str) -> NDArray[np.float32]:
    data = quantize(weights, type)
    sizes = FORMATS[type]
    assert len(data) == weights.size // sizes.block * sizes.block_size
    return dequantize(data, type, weights.shape)


def test_f32_is_exact() -> None:
    weights = some_weights(columns=33)
    assert np.array_equal(there_and_back(weights, "F32"), weights)


@pytest.mark.parametrize(("type", "precision"), [("F16", 2**-11), ("BF16", 2**-8)])
def test_a_half_is_the_nearest_one(type: str, precision: float) -> None:
    weights = some_weights(columns=33)
    again = there_and_back(weights, type)
    assert (np.abs(again - weights) <= precision * np.abs(weights) + 2**-25).all()
    assert np.array_equal(there_and_back(again, type), again)


@pytest.mark.parametrize(
    ("value", "upper"), [(1.0, 0x3F80), (1 + 2**-8, 0x3F80), (1 + 3 * 2**-8, 0x3F82), (-(1 + 2**-7), 0xBF81)]
)
def test_bf16_rounds_halfway_cases_to_even(value: float, upper: int) -> None:
    assert quantize(np.array([value], np.float32), "BF16") == struct.pack("<H", upper)


def test_q8_0_blocks_are_a_scale_and_32_numbers() -> None:
    row = np.arange(-16, 16, dtype=np.float32)[None] * 0.25
    scale, *numbers = struct.unpack("<e32b", quantize(row, "Q8_0"))
    assert scale == float(np.float16(4 / 127))
    assert numbers == [round(0.25 * i / scale) for i in range(-16, 16)]


def test_q4_0_blocks_are_a_scale_and_two_numbers_a_byte() -> None:
    """The weight farthest from zero is -8 steps, whatever its sign; the group's second half is in the high bits."""
    for sign in (1, -1):
        row = np.arange(0, sign * 8, sign * 0.25, dtype=np.float32)[None]
        row[0, 31] = 8 * sign
        scale, *packed = struct.unpack("<e16B", quantize(row, "Q4_0"))
        assert scale == -sign
        numbers = [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]
        assert numbers == [round(8 - abs(value)) for value in row[0].tolist()]


def test_q4_1_blocks_are_a_scale_a_minimum_and_two_numbers_a_byte() -> None:
    row = np.arange(32, dtype=np.float32)[None] * 0.25 + 3
    row[0, 31] = 3 + 15 * 0.5
    scale, minimum, *packed = struct.unpack("<ee16B", quantize(row, "Q4_1"))
    assert (scale, minimum) == (0.5, 3)
    numbers = [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]
    assert numbers == [round((value - 3) / 0.5) for value in row[0].tolist()]


@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("type", QUANTISED)
def test_no_weight_is_off_by_more_than_its_step_allows(type: str, spread: float) -> None:
    weights = some_weights(spread=spread)
    group = 16 if type == "Q6_K" else GROUP
    groups = weights.reshape(-1, group)
    off = np.abs(there_and_back(weights, type) - weights).reshape(-1, group)
    if FORMATS[type].block == SUPER:
        # Of 256 weights the groups' scales are rounded, too: to a 63rd of the largest, or to a 128th. And the search
        # gives up the farthest weight for the many.
        if type == "Q4_K":
            lowest, highest = np.minimum(groups.min(1), 0), groups.max(1)
            largest = (highest - lowest).reshape(-1, 8).max(1).repeat(8)
            allowed = 1.5 * (highest - lowest) / 15 + 1.5 * largest / 63
        else:
            largest = np.abs(groups).max(1)
            allowed = 1.5 * largest / 32 + 1.5 * largest.reshape(-1, 16).max(1).repeat(16) / 128
    elif type == "Q8_0":
        step = np.abs(groups).max(1) / 127
        allowed = 0.54 * step  # half a step, and the rounding of the step itself to F16, 127 times
    elif type == "Q4_0":
        step = np.abs(groups).max(1) / 8
        allowed = 1.01 * step  # there is no +8: the weight opposite to the farthest may be a whole step off
    else:
        step = (groups.max(1) - groups.min(1)) / 15
        allowed = 0.52 * step
    assert (off <= allowed[:, None] + 2**-24).all()


@pytest.mark.parametrize("type", QUANTISED)
def test_groups_that_have_nothing_to_tell_apart(type: str) -> None:
    zeros = np.zeros((2, 256), dtype=np.float32)
    assert np.array_equal(there_and_back(zeros, type), zeros)
    tiny = np.full((1, 256), 1e-9, dtype=np.float32)  # its scale is 0 in F16
    assert np.array_equal(there_and_back(tiny, type), np.zeros((1, 256)))
    equal = np.full((1, 256), 0.25, dtype=np.float32)
    assert np.allclose(there_and_back(equal, type), equal, rtol=1e-3)


@pytest.mark.parametrize("type", STORED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(type: str, value: float) -> None:
    weights = some_weights()
    weights[1, 3] = value
    with pytest.raises(ValueError, match=f"{type}: a weight is not a finite number"):
        quantize(weights, type)


@pytest.mark.parametrize(("type", "value"), [("F16", 1e5), ("BF16", 3.4e38), *((type, 1e9) for type in QUANTISED)])
def test_what_is_too_large_is_refused(type: str, value: float) -> None:
    weights = some_weights()
    weights[1, 3] = value
    with pytest.raises(ValueError, match=f"{type}: a weight is too large"):
        quantize(weights, type)


@pytest.mark.parametrize("type", QUANTISED)
def test_rows_that_are_no_whole_blocks_are_refused(type: str) -> None:
    with pytest.raises(ValueError, match=f"multiple of {FORMATS[type].block} weights, not 48"):
        quantize(some_weights(columns=48), type)


@pytest.mark.parametrize(("type", "other"), [("Q4_K", "Q5_0"), ("Q6_K", "Q8_0"), ("Q4_0", "Q4_0"), ("F16", "F16")])
def test_what_is_stored_where_rows_are_no_blocks_of_256(type: str, other: str) -> None:
    assert (fitting(type, 768), fitting(type, 576)) == (type, other)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize(("type", "better"), [("Q4_K", "Q4_0"), ("Q4_K", "Q4_1"), ("Q6_K", "Q5_0")])
def test_searched_scales_are_worth_it(type: str, better: str, spread: float) -> None:
    """Fewer bits a weight than Q4_1, and nearer to the weights."""
    weights = some_weights(spread=spread)
    errors = [np.square(there_and_back(weights, name) - weights).mean() for name in (type, better)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("type", ["Q4_K", "Q6_K"])
def test_blocks_of_256_are_read_as_the_library_gguf_reads_them(type: str) -> None:
    blocks = random_blocks(np.random.default_rng(5), type, 40, 512)
    ours = dequantize(blocks.tobytes(), type, (40, 512))
    assert np.array_equal(ours, dequantized(type, blocks))
    again = quantize(ours, type)  # scales of any sign in, the search's own out
    assert np.sqrt(np.square(dequantize(again, type, ours.shape) - ours).mean()) < 0.1 * ours.std()


def test_int8_with_scales_that_lie_elsewhere() -> None:
    """Groups of 6 over rows of 4: the second group begins in one row and ends in the next."""
    numbers = np.arange(-6, 6, dtype=np.int8)
    scales = np.array([0.5, 3.0], dtype="<f4")
    source = BytesSource(b"before" + scales.tobytes() + numbers.tobytes())
    tensor = Tensor("t", "I8", (3, 4), offset=14, size=12, group=6, scales=6)
    expected = np.concatenate([numbers[:6] * 0.5, numbers[6:] * 3.0]).reshape(3, 4)
    assert np.array_equal(read_weights(source, tensor), expected)
