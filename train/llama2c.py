"""Writes models in the formats of llama2.c: a .bin of version 0, 1 or 2, and tokenizer.bin. fabella/llama2c.py reads.

What these files do not say must be as llama2.c takes it: a plain Llama with RoPE's base 10,000 and norms' epsilon 1e-5,
and tokens 0, 1 and 2 as unknown, BOS and EOS. Another model is refused, because its file would be another one.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from fabella.architectures import TENSORS
from fabella.config import Config
from fabella.errors import FabellaError
from fabella.llama2c import (
    BOS_ID,
    EOS_ID,
    FLAGS,
    HEADER_SIZE,
    MAGIC,
    ORDER,
    ORDER_0,
    SIZE_FIELDS,
    SIZES,
    UNKNOWN_ID,
    VERSION,
)
from fabella.sentencepiece import SPACE, SentencePiece
from fabella.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, Tokenizer

from . import explain
from .portable import Array, Portable, Weights

GROUP = 64  # weights that share a scale in version 2, or the half of it, as often as it takes
VERSIONS = (0, 1, 2)


def check_llama2c(model: Portable) -> Config:
    """Return the model's numbers; raise ``FabellaError`` if llama2.c's files cannot say what it is."""
    config = model.config()
    plain = Config(**{name: getattr(config, name) for name in (*SIZE_FIELDS, "tied")})
    for name, value in vars(config).items():
        expected = getattr(plain, name)
        near = isinstance(value, float) and math.isclose(value, expected, rel_tol=1e-6)
        if value != expected and not near:
            raise FabellaError(f"llama2.c's files can only hold a plain Llama: {name} is {value}, not {expected}")
    if any(name.endswith(".bias") for name in model.tensors):
        raise FabellaError("llama2.c's files can only hold a plain Llama, without biases")
    return config


def group_of(model: Portable, config: Config) -> int:
    """The weights that share a scale in version 2: as the model has them, or as llama2.c chooses."""
    groups = {weights.group for weights in model.tensors.values() if len(weights.shape) == 2}
    if len(groups) == 1 and (one := groups.pop()):
        return one
    group = GROUP
    while config.dim % group or config.hidden_dim % group:
        group //= 2
    return group


def write_model(model: Portable, path: Path, version: int) -> None:
    """Write a .bin. Raises ``FabellaError`` as `check_llama2c`, or ``OSError``."""
    config = check_llama2c(model)
    sizes = [getattr(config, name) for name in SIZE_FIELDS]
    group = group_of(model, config) if version == 2 else 0
    if version == 0:
        vocabulary = SIZE_FIELDS.index("vocab_size")
        sizes[vocabulary] *= 1 if config.tied else -1
        header = SIZES.pack(*sizes)
    else:
        flags = FLAGS.pack(config.tied, group)
        header = (VERSION.pack(MAGIC, version) + SIZES.pack(*sizes) + flags).ljust(HEADER_SIZE, b"\0")
    with path.open("wb") as file:
        file.write(header)
        for name in ORDER_0 if version == 0 else ORDER:
            if name == "rope":
                file.write(_rope(config).tobytes())
                continue
            names = [f"blk.{layer}.{name}.weight" for layer in range(config.n_layers)]
            for full in names if names[0] in model.tensors else [f"{name}.weight"]:
                if full in model.tensors:
                    _write(file, full, model.tensors[full], group if len(TENSORS[name]) == 2 else 0)


def _write(file: BinaryIO, name: str, weights: Weights, group: int) -> None:
    if group and weights.type == "I8" and weights.group == group and weights.raw and weights.scales:
        file.write(weights.raw())
        file.write(weights.scales())
        return
    values = weights.read().astype("<f4", copy=False)
    if not np.isfinite(values).all():
        raise FabellaError(f"{name}: a weight is not a finite number")
    if not group:
        file.write(values.tobytes())
        return
    numbers, scales = quantize(values, group)
    file.write(numbers.tobytes())
    file.write(scales.tobytes())


def quantize(values: Array, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights as int8, [groups, group], and their float32 scales, [groups]: the farthest of a group becomes 127."""
    groups = values.reshape(-1, group)
    scales = (np.abs(groups).max(axis=1) / np.float32(127)).astype("<f4")
    divisors = np.where(scales > 0, scales, np.inf).astype(np.float32)
    return np.rint(groups / divisors[:, None]).astype(np.int8), scales


def _rope(config: Config) -> np.ndarray:
    """The tables of version 0, cosines and then sines, [2, seq_len, head_size / 2], with llama2.c's own roundings."""
    size = config.head_size
    angles = 1.0 / (config.rope_base ** (torch.arange(0, size, 2).float() / size))
    turns = torch.outer(torch.arange(config.seq_len).float(), angles)
    return torch.stack([turns.cos(), turns.sin()]).numpy().astype("<f4")


# --- The tokenizer ----------------------------------------------------------------------------------------------------


def check_tokenizer(tokenizer: Tokenizer) -> SentencePiece:
    """Return the tokenizer; raise ``FabellaError`` if tokenizer.bin cannot say what it does."""
    if not isinstance(tokenizer, SentencePiece):
        raise FabellaError("tokenizer.bin can only hold a tokenizer of SentencePiece's, not byte-level BPE")
    ids = (tokenizer.unknown_id, tokenizer.bos_id, tokenizer.eos_id)
    if ids != (UNKNOWN_ID, BOS_ID, EOS_ID) or not tokenizer.add_bos or not tokenizer.add_space_prefix:
        raise FabellaError(
            "tokenizer.bin can only hold a tokenizer whose tokens 0, 1 and 2 are unknown, BOS and EOS, and that puts "
            "BOS and a space in front of a text"
        )
    for id, type in enumerate(tokenizer.types):
        usual = UNKNOWN if id == UNKNOWN_ID else CONTROL if id in (BOS_ID, EOS_ID) else None
        if type != usual and (usual or type not in (NORMAL, BYTE, UNUSED)):
            raise FabellaError(f"tokenizer.bin cannot say what kind of token {id}, {tokenizer.pieces[id]!r}, is")
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer.bin. Raises ``FabellaError`` as `check_tokenizer`, or ``OSError``."""
    scored = check_tokenizer(tokenizer)
    pieces = []
    for id, piece in enumerate(scored.pieces):
        if id in (BOS_ID, EOS_ID) and not piece.startswith("\n"):
            piece = f"\n{piece}\n"  # as llama2.c has them
        pieces.append(piece.replace(SPACE, " ").encode())
    with path.open("wb") as file:
        file.write(struct.pack("<i", max(map(len, pieces))))
        for piece_bytes, score in zip(pieces, scored.scores, strict=True):
            file.write(struct.pack("<fi", score, len(piece_bytes)) + piece_bytes)


if __name__ == "__main__":
    explain(__doc__)
