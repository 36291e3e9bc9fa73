"""Weights as the bytes of a model file, and back, in all formats of fabella/formats.py.

Those that are quantised in groups store 32 weights of a row in one block, with scales and minima in F16:

    Q8_0   scale, 32 int8                                weight = scale x int8
    Q5_0   scale, 32 bits, 16 bytes                      weight = scale x (nibble + 16 x bit - 16)
    Q4_0   scale, 16 bytes                               weight = scale x (nibble - 8)
    Q4_1   scale, minimum, 16 bytes                      weight = scale x nibble + minimum

In the 16 bytes the low nibbles are the group's weights 0 to 15, the high nibbles 16 to 31. Scales are chosen as
llama.cpp chooses them, but weights are divided by the scale as it is stored, rounded to F16 (llama.cpp: as it was
before), so that the two roundings do not add up. Q4_K and Q6_K have blocks of 256: kquants.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabella.formats import FORMATS, GROUP, QUANTISED, SUPER
from fabella.modelfile import Tensor
from fabella.sources import ByteSource

from . import explain
from .kquants import dequantize_blocks, quantize_blocks

# What a matrix is stored as whose rows are no multiple of 256: about as many bits a weight (llama.cpp does the same).
IN_GROUPS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
BITS = {"Q8_0": 8, "Q5_0": 5, "Q4_0": 4, "Q4_1": 4}  # of a weight
WITH_MINIMUM = ("Q4_1",)


def block_layout(type: str) -> np.dtype[np.void]:
    """The fields of a quantised type's block, in their order."""
    fields: list[tuple[Any, ...]] = [("scale", "<f2")]
    if type in WITH_MINIMUM:
        fields.append(("minimum", "<f2"))
    if BITS[type] == 5:
        fields.append(("fifth_bits", "u1", GROUP // 8))
    fields.append(("numbers", "i1", GROUP) if BITS[type] == 8 else ("nibbles", "u1", GROUP // 2))
    return np.dtype(fields)


def fitting(type: str, columns: int) -> str:
    """The type that a matrix with rows of so many weights is stored as, where ``type`` is asked for."""
    return IN_GROUPS[type] if type in IN_GROUPS and columns % SUPER else type


def quantize(weights: NDArray[np.float32], type: str) -> bytes:
    """Store an array [..., columns] as one of ``fabella.formats.STORED``.

    Raises ``ValueError`` if a weight is not finite or too large for the type, or if the type is a quantised one and the
    columns are not a multiple of 32, or of 256.
    """
    weights = np.asarray(weights, dtype=np.float32)
    if not np.isfinite(weights).all():
        raise ValueError(f"{type}: a weight is not a finite number")
    if type in QUANTISED:
        block, columns = FORMATS[type].block, weights.shape[-1]
        if columns % block:
            raise ValueError(f"{type} needs rows of a multiple of {block} weights, not {columns}; export as F16 or F32")
        if block == SUPER:
            return _super_blocks(weights, type)
        return _blocks(weights.reshape(-1, GROUP), type).tobytes()
    if type == "F16":
        return _half(weights, type).tobytes()
    if type == "BF16":
        return _brain_half(weights).tobytes()
    return weights.astype("<f4").tobytes()


def _super_blocks(weights: NDArray[np.float32], type: str) -> bytes:
    try:
        return quantize_blocks(weights, type)
    except OverflowError:
        raise ValueError(f"{type}: a weight is too large; export as BF16 or F32") from None


def _blocks(groups: NDArray[np.float32], type: str) -> NDArray[np.void]:
    """Quantise weights [groups, 32]."""
    bits = BITS[type]
    blocks = np.empty(len(groups), dtype=block_layout(type))
    if type in WITH_MINIMUM:
        lowest, highest = groups.min(axis=1), groups.max(axis=1)
        steps = np.float32((1 << bits) - 1)
        blocks["minimum"] = _half(lowest, type)
        blocks["scale"] = _half(highest / steps - lowest / steps, type)
        above = groups - blocks["minimum"].astype(np.float32)[:, None]
        numbers = _steps(above, blocks["scale"], 0, int(steps))
    elif bits == 8:
        blocks["scale"] = _half(np.abs(groups).max(axis=1) / np.float32(127), type)
        blocks["numbers"] = _steps(groups, blocks["scale"], -127, 127)
        return blocks
    else:  # the weight farthest from zero, whatever its sign, becomes the lowest step
        half = 1 << (bits - 1)
        extremes = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0]
        blocks["scale"] = _half(extremes / np.float32(-half), type)
        numbers = _steps(groups, blocks["scale"], -half, half - 1) + half
    low, high = np.split(numbers.astype(np.uint8) & 15, 2, axis=1)
    blocks["nibbles"] = low + 16 * high
    if bits == 5:
        blocks["fifth_bits"] = np.packbits(numbers.astype(np.uint8) >> 4, axis=1, bitorder="little")
    return blocks


def _half(values: NDArray[np.float32], type: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise ValueError(f"{type}: a weight is too large; export as BF16 or F32")
    return halves


def _brain_half(weights: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of each F32's bits, rounded to the nearest, halfway cases to even."""
    bits = weights.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise ValueError("BF16: a weight is too large; export as F32")
    return rounded


def _steps(groups: NDArray[np.float32], scales: NDArray[np.float16], low: int, high: int) -> NDArray[np.int8]:
    """How many scales each weight is, rounded; 0 where the scale is 0: there is nothing to tell apart."""
    divisors = np.where(scales == 0, np.inf, scales).astype(np.float32)[:, None]
    return np.clip(np.rint(groups / divisors), low, high).astype(np.int8)


def dequantize(data: bytes, type: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The F32 weights that `quantize` stored, in ``shape``."""
    if type in IN_GROUPS:
        return dequantize_blocks(data, type).reshape(shape)
    if type in QUANTISED:
        bits = BITS[type]
        blocks = np.frombuffer(data, dtype=block_layout(type))
        if bits == 8:
            numbers = blocks["numbers"].astype(np.float32)
        else:
            numbers = np.hstack([blocks["nibbles"] & 15, blocks["nibbles"] >> 4]).astype(np.float32)
            if bits == 5:
                numbers += 16 * np.unpackbits(blocks["fifth_bits"], axis=1, bitorder="little")
            if type not in WITH_MINIMUM:
                numbers -= 1 << (bits - 1)
        weights = blocks["scale"].astype(np.float32)[:, None] * numbers
        if type in WITH_MINIMUM:
            weights += blocks["minimum"].astype(np.float32)[:, None]
        return weights.reshape(shape)
    if type == "BF16":
        upper = np.frombuffer(data, dtype="<u2").astype(np.uint32)
        return (upper << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, dtype="<f2" if type == "F16" else "<f4").astype(np.float32).reshape(shape)


def read_weights(source: ByteSource, tensor: Tensor) -> NDArray[np.float32]:
    """A tensor of a model file as F32, whatever its type; I8 with its own scales."""
    data = source.read(tensor.offset, tensor.size)
    if tensor.type != "I8":
        return dequantize(data, tensor.type, tensor.shape)
    scales = np.frombuffer(source.read(tensor.scales, tensor.scales_size), dtype="<f4")
    numbers = np.frombuffer(data, dtype=np.int8).astype(np.float32).reshape(-1, tensor.group)
    return (scales[:, None] * numbers).reshape(tensor.shape)


if __name__ == "__main__":
    explain(__doc__)
