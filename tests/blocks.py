"""Random blocks of every number format: every pattern of bits is valid in them, but for their scales."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from fabella.formats import FORMATS

BLOCKS = [name for name, format in FORMATS.items() if format.block > 1]
# Where in a block its F16 scales and minima are, in bytes; in the others it is the beginning.
HALVES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q3_K": (108,),
    "TQ2_0": (64,),
    "TQ1_0": (52,),
    "MXFP4": (),
}


def halves_of(type: str) -> tuple[int, ...]:
    return HALVES.get(type, (0,))


def random_blocks(random: np.random.Generator, type: str, rows: int, cols: int, size: float = 1.0) -> NDArray[np.uint8]:
    """A matrix, (rows, bytes of a row), whose scales are of about this size."""
    format = FORMATS[type]
    blocks = random.integers(0, 256, (rows, cols // format.block, format.block_size), dtype=np.uint8)
    for at in halves_of(type):
        scales = (size * random.normal(size=blocks.shape[:2])).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    if type == "MXFP4":
        exponent = 128 + round(math.log2(size))
        blocks[..., 0] = random.integers(exponent - 2, exponent + 1, blocks.shape[:2])
    if type == "Q8_0":
        blocks[..., 2:][blocks[..., 2:] == 128] = 0  # -128, which no quantiser writes
    return blocks.reshape(rows, -1)


def dequantized(type: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The weights, as the library gguf reads them."""
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[type])
    return values


def random_matrix(random: np.random.Generator, type: str, shape: tuple[Any, ...]) -> bytes:
    """A matrix whose products with a vector are about as large as the vector."""
    rows, cols = shape
    size = 1 / float(np.std(dequantized(type, random_blocks(random, type, 64, cols)))) / math.sqrt(cols)
    return random_blocks(random, type, rows, cols, size).tobytes()
