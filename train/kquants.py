"""Q4_K and Q6_K: weights in blocks of 256 whose groups' scales are small whole numbers themselves.

    Q4_K   scale, minimum, 12 bytes, 128 bytes         weight = scale x s x nibble - minimum x m
    Q6_K   128 bytes, 64 bytes, 16 int8 s, scale       weight = scale x s x (number - 32)

``scale`` and ``minimum`` are F16, one for 256 weights. Q4_K has an ``s`` and an ``m`` of 6 bits for each 32 weights,
Q6_K a signed byte ``s`` for each 16. How the bits lie: `_pack_scales`, `_unpack_numbers` and their opposites.

A group's scale is searched for: around the plain one, which takes the farthest weight to the last step, others are
tried, and the one of the least error stays, where large weights count for more. The plain choice is among them. This
is llama.cpp's idea (its steps and weights), not its very code: files differ from those that it would write.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fabella.formats import SUPER

from . import explain

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

Q4_K = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("small", "u1", 12), ("nibbles", "u1", 128)])
Q6_K = np.dtype([("low", "u1", 128), ("high", "u1", 64), ("small", "i1", 16), ("scale", "<f2")])
TRIES_4 = np.arange(-1.0, 1.01, 0.1, dtype=np.float32)  # steps more or less than 15 that a group is spread over
TRIES_6 = np.arange(-0.9, 0.91, 0.1, dtype=np.float32)  # and than 32
AT_ONCE = 1 << 12  # blocks: what is tried takes memory


def quantize_blocks(weights: Floats, type: str) -> bytes:
    """Store weights, a multiple of 256 of them in all and in each row, as "Q4_K" or "Q6_K".

    Raises ``OverflowError`` if a scale is too large for F16.
    """
    blocks = weights.reshape(-1, SUPER)
    quantize = _quantize_4 if type == "Q4_K" else _quantize_6
    return b"".join(quantize(blocks[at : at + AT_ONCE]).tobytes() for at in range(0, len(blocks), AT_ONCE))


def dequantize_blocks(data: bytes, type: str) -> Floats:
    """The weights, [blocks, 256], that the bytes stand for: the very ones that the engine computes with."""
    if type == "Q4_K":
        four = np.frombuffer(data, Q4_K)
        scales, minima = _unpack_scales(four["small"])  # [blocks, 8]
        scale = four["scale"].astype(np.float32)[:, None] * scales
        minimum = four["minimum"].astype(np.float32)[:, None] * minima
        nibbles = four["nibbles"].reshape(-1, 4, 32)  # of each 64 weights: the first 32 are the low halves
        numbers = np.stack([nibbles & 15, nibbles >> 4], axis=2).reshape(-1, 8, 32)
        return (scale[..., None] * numbers - minimum[..., None]).reshape(-1, SUPER).astype(np.float32)
    six = np.frombuffer(data, Q6_K)
    scale = six["scale"].astype(np.float32)[:, None] * six["small"]  # [blocks, 16]
    numbers = _unpack_numbers(six["low"], six["high"]).astype(np.float32) - 32
    return (scale[..., None] * numbers.reshape(-1, 16, 16)).reshape(-1, SUPER).astype(np.float32)


# --- Q4_K -------------------------------------------------------------------------------------------------------------


def _quantize_4(blocks: Floats) -> NDArray[np.void]:
    groups = blocks.reshape(-1, 8, 32)
    scales, minima = _scales_4(groups.reshape(-1, 32))
    scales, minima = scales.reshape(-1, 8), minima.reshape(-1, 8)
    result = np.zeros(len(blocks), Q4_K)
    result["scale"], small = _sixty_fourths(scales)
    result["minimum"], small_minima = _sixty_fourths(minima)
    result["small"] = _pack_scales(small, small_minima)
    # Of the scales as they are stored, not as they were wished for, each weight is a number of steps.
    step = result["scale"].astype(np.float32)[:, None, None] * small[..., None]
    lowest = result["minimum"].astype(np.float32)[:, None, None] * small_minima[..., None]
    numbers = np.clip(np.rint((groups + lowest) / np.where(step == 0, np.inf, step)), 0, 15).astype(np.uint8)
    pairs = numbers.reshape(-1, 4, 2, 32)
    result["nibbles"] = (pairs[:, :, 0] + 16 * pairs[:, :, 1]).reshape(-1, 128)
    return result


def _scales_4(groups: Floats) -> tuple[Floats, Floats]:
    """The scale and the minimum, as a number to be subtracted and not below 0, of groups [n, 32]."""
    importance = np.sqrt(np.mean(groups**2, axis=1, keepdims=True)) + np.abs(groups)
    lowest, highest = np.minimum(groups.min(axis=1), 0), groups.max(axis=1)
    best_scale, best_minimum = np.maximum(highest - lowest, 0) / 15, -lowest
    least = _error(groups, importance, best_scale, best_minimum)
    for more in TRIES_4:
        step = (highest - lowest) / (15 + more)
        divisor = np.where(step > 0, step, np.inf)[:, None]
        numbers = np.clip(np.rint((groups - lowest[:, None]) / divisor), 0, 15)
        scale, minimum = _line_through(groups, numbers, importance)
        error = _error(groups, importance, scale, minimum)
        better = error < least
        least = np.where(better, error, least)
        best_scale, best_minimum = np.where(better, scale, best_scale), np.where(better, minimum, best_minimum)
    return best_scale, best_minimum


def _line_through(groups: Floats, numbers: Floats, importance: Floats) -> tuple[Floats, Floats]:
    """The scale and the minimum with which given numbers come closest to the weights: weighted least squares."""
    total = importance.sum(axis=1)
    n, n2 = (importance * numbers).sum(axis=1), (importance * numbers**2).sum(axis=1)
    x, nx = (importance * groups).sum(axis=1), (importance * numbers * groups).sum(axis=1)
    determinant = total * n2 - n * n
    possible = determinant > 0
    divisor = np.where(possible, determinant, 1)
    scale = np.where(possible, (total * nx - x * n) / divisor, 0)
    minimum = np.where(possible, (n * nx - n2 * x) / divisor, 0)
    # A minimum below 0 cannot be stored: the line then goes through 0.
    through_0 = nx / np.where(n2 > 0, n2, 1)
    return np.where(minimum < 0, through_0, scale), np.maximum(minimum, 0)


def _error(groups: Floats, importance: Floats, scale: Floats, minimum: Floats) -> Floats:
    """The weighted squared error of groups [n, 32] in so many steps of `scale` above -`minimum`."""
    divisor = np.where(scale > 0, scale, np.inf)[:, None]
    numbers = np.clip(np.rint((groups + minimum[:, None]) / divisor), 0, 15)
    error: Floats = (importance * (scale[:, None] * numbers - minimum[:, None] - groups) ** 2).sum(axis=1)
    return error


def _sixty_fourths(values: Floats) -> tuple[NDArray[np.float16], Bytes]:
    """Numbers from 0, [n, 8], as an F16 scale for each eight and whole numbers from 0 to 63."""
    scale = _half(values.max(axis=1) / 63)
    divisor = np.where(scale == 0, np.inf, scale).astype(np.float32)[:, None]
    return scale, np.clip(np.rint(values / divisor), 0, 63).astype(np.uint8)


def _pack_scales(scales: Bytes, minima: Bytes) -> Bytes:
    """Two times eight numbers of 6 bits as 12 bytes: the last four of each have their two high bits with the first."""
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    return np.hstack([first, second, (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4])


def _unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack([first & 63, (third & 15) | (first >> 6) << 4])
    return scales, np.hstack([second & 63, (third >> 4) | (second >> 6) << 4])


# --- Q6_K -------------------------------------------------------------------------------------------------------------


def _quantize_6(blocks: Floats) -> NDArray[np.void]:
    groups = blocks.reshape(-1, 16, 16)
    scales = _scales_6(groups.reshape(-1, 16)).reshape(-1, 16)
    result = np.zeros(len(blocks), Q6_K)
    farthest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)[:, 0]
    result["scale"] = _half(farthest / np.float32(-128))
    divisor = np.where(result["scale"] == 0, np.inf, result["scale"]).astype(np.float32)[:, None]
    result["small"] = np.clip(np.rint(scales / divisor), -128, 127)
    step = result["scale"].astype(np.float32)[:, None] * result["small"]
    numbers = np.clip(np.rint(groups / np.where(step == 0, np.inf, step)[..., None]), -32, 31) + 32
    result["low"], result["high"] = _pack_numbers(numbers.astype(np.uint8).reshape(-1, SUPER))
    return result


def _scales_6(groups: Floats) -> Floats:
    """The scale of groups [n, 16], whose farthest weight becomes about -32 steps of it, whatever its sign."""
    importance = groups**2
    farthest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0]
    best, most = farthest / np.float32(-32), np.full(len(groups), -1.0, np.float32)
    for more in (np.float32(0), *TRIES_6):
        step = farthest / -(32 + more)
        numbers = np.clip(np.rint(groups / np.where(step == 0, np.inf, step)[:, None]), -32, 31)
        # With the scale p / s2 the squared error is less by p^2 / s2 than that of zeros.
        product, squares = (importance * numbers * groups).sum(axis=1), (importance * numbers**2).sum(axis=1)
        scale = product / np.where(squares > 0, squares, 1)
        better = scale * product > most
        most, best = np.where(better, scale * product, most), np.where(better, scale, best)
    return best


def _pack_numbers(numbers: Bytes) -> tuple[Bytes, Bytes]:
    """Numbers of 6 bits, [n, 256], as their four low bits [n, 128] and their two high ones [n, 64]."""
    quarters = numbers.reshape(-1, 2, 4, 32)  # of each 128: four times 32
    low: Bytes = ((quarters[:, :, :2] & 15) | (quarters[:, :, 2:] & 15) << 4).astype(np.uint8, copy=False)
    twos = [(quarters[:, :, part] >> 4) << 2 * part for part in range(4)]
    high: Bytes = (twos[0] | twos[1] | twos[2] | twos[3]).astype(np.uint8, copy=False)
    return low.reshape(-1, 128), high.reshape(-1, 64)


def _unpack_numbers(low: Bytes, high: Bytes) -> Bytes:
    lows, highs = low.reshape(-1, 2, 2, 32), high.reshape(-1, 2, 32)
    fours = np.concatenate([lows & 15, lows >> 4], axis=2)  # [n, 2, 4, 32]
    twos = np.stack([highs >> 2 * part & 3 for part in range(4)], axis=2)
    return (fours | twos << 4).reshape(-1, SUPER)


def _half(values: Floats) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise OverflowError
    return halves


if __name__ == "__main__":
    explain(__doc__)
