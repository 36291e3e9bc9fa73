"""Small random models as GGUF files, in every shape and number format that the engine must cope with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np

from fabella.adapter import describe_adapter
from fabella.architectures import adapted_shapes, expected_shapes
from fabella.engine import Engine
from fabella.formats import FLOATS, FORMATS, STORED
from fabella.gguf import describe, read_gguf, write_gguf
from fabella.hosts import WasmtimeHost
from fabella.modelfile import Config, ModelFile
from fabella.sentencepiece import SentencePiece
from fabella.sources import FileSource
from train.quantize import fitting, quantize, read_weights

from .blocks import BLOCKS, random_matrix


def tokenizer(size: int) -> SentencePiece:
    """A vocabulary: <unk>, <s>, </s>, the 256 bytes if there is room, then made-up words."""
    pieces = ["<unk>", "<s>", "</s>"][:size]
    types = [2, 3, 3][:size]
    if size >= 259:
        pieces += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [6] * 256
    words = size - len(pieces)
    pieces += [f"▁w{number}" if number else "▁" for number in range(words)]
    types += [1] * words
    return SentencePiece(pieces, [-float(i) for i in range(size)], types)


def write_random_model(
    path: Path, config: Config, *, type: str = "F32", seed: int = 0, template: str | None = None
) -> Path:
    """Writes a model whose logits have a spread of about 1, as a trained one's have.

    `type` is that of the matrices, while norms are F32; or "mixed": one after the other of those that we write, for
    norms too; or "blocks": one after the other of all that store weights in blocks. `template` is for chats.
    """
    random = np.random.default_rng(seed)
    tensors: list[tuple[str, str, tuple[int, ...], bytes]] = []
    numbers = {1: count(), 2: count()}  # of norms, of matrices
    for name, shape in expected_shapes(config).items():
        number = next(numbers[len(shape)])
        if len(shape) == 1:
            values = random.uniform(0.5, 1.5, shape).astype(np.float32)
            stored = FLOATS[number % len(FLOATS)] if type == "mixed" else "F32"
        else:
            if type == "blocks":
                possible = [name for name in BLOCKS if shape[1] % FORMATS[name].block == 0]
                stored = possible[number % len(possible)]
                tensors.append((name, stored, shape, random_matrix(random, stored, shape)))
                continue
            values = (random.standard_normal(shape) / math.sqrt(shape[1])).astype(np.float32)
            possible = [name for name in STORED if shape[1] % FORMATS[name].block == 0]
            stored = possible[number % len(possible)] if type == "mixed" else fitting(type, shape[1])
        tensors.append((name, stored, shape, quantize(values, stored)))
    about = {"general.name": f"random {seed}"} | ({"tokenizer.chat_template": template} if template else {})
    write_gguf(path, describe(config, tokenizer(config.vocab_size), about), tensors)
    return path


def write_random_adapter(
    path: Path, config: Config, *, ranks: Sequence[int] = (8,), type: str = "F32", seed: int = 0, alpha: float = 16.0
) -> Path:
    """Writes an adapter for all matrices of a model's layers, loud enough to be heard; their ranks by turns."""
    random = np.random.default_rng(seed)
    tensors: list[tuple[str, str, tuple[int, ...], bytes]] = []
    for number, (name, (rows, columns)) in enumerate(adapted_shapes(config).items()):
        rank = ranks[number % len(ranks)]
        for part, shape, size in (("a", (rank, columns), 1 / math.sqrt(columns)), ("b", (rows, rank), 0.3 / alpha)):
            values = (size * random.standard_normal(shape)).astype(np.float32)
            tensors.append((f"{name}.lora_{part}", type, shape, quantize(values, type)))
    write_gguf(path, describe_adapter(config.family, alpha, {"general.name": f"adapter {seed}"}), tensors)
    return path


def write_as_f32(model: Path, path: Path) -> Path:
    """Writes a model's weights, whatever their types, as F32."""
    with FileSource(model) as source:
        read = read_gguf(source)
        tensors = [(t.name, "F32", t.shape, read_weights(source, t).tobytes()) for t in read.tensors.values()]
        write_gguf(path, read.metadata, tensors)
    return path


def load(path: Path) -> tuple[Engine, ModelFile]:
    """The model of a GGUF file in an engine of its own, under wasmtime."""
    with FileSource(path) as source:
        model = read_gguf(source)
        return Engine(WasmtimeHost(), model, source), model
