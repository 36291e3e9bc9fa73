"""Adapters (LoRA): small matrices beside those of a model, which change what it does; kept in a file of their own.

To a matrix W of the model an adapter adds the product of two narrow ones:

    y = W x + scale * B (A x)            A (rank, columns of W), B (rows of W, rank), scale = alpha / rank

The file is GGUF as llama.cpp writes and reads it: ``general.type`` is "adapter", ``adapter.type`` "lora",
``adapter.lora.alpha`` a number (0: the scale is 1), and of the matrix NAME there are NAME.lora_a and NAME.lora_b. Not
every matrix needs to have them, and the rank may differ from one to the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fabella.architectures import adapted_shapes
from fabella.card import ABOUT, read_card
from fabella.config import Config, Tensor
from fabella.errors import ModelFileError, short_text
from fabella.formats import FLOATS
from fabella.gguf import read_parts
from fabella.metadata import get, quoted
from fabella.sources import ByteSource

TYPE, KIND, ALPHA = "general.type", "adapter.type", "adapter.lora.alpha"
INVOCATION = "adapter.alora.invocation_tokens"
LARGEST_RANK = 1024
LARGEST_ALPHA = 1e6


@dataclass(frozen=True)
class Pair:
    """What an adapter has for one matrix: where A (rank, columns) and B (rows, rank) lie in its file."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return self.a.rows


@dataclass(frozen=True)
class Adapter:
    """What an adapter's file says."""

    name: str  # as short text; may be empty
    about: str
    architecture: str  # that of its models, as general.architecture has it
    alpha: float
    pairs: dict[str, Pair]  # by the name of the model's matrix

    def scale(self, pair: Pair) -> float:
        """What B (A x) is multiplied by."""
        return self.alpha / pair.rank if self.alpha else 1.0

    @property
    def size(self) -> int:
        """Bytes of all its matrices in the engine's memory, about."""
        return sum(4 * (math.prod(pair.a.shape) + math.prod(pair.b.shape)) for pair in self.pairs.values())

    def check_fits(self, config: Config) -> None:
        """Raise ModelFileError, which names what does not fit, unless it can be an adapter of this model."""
        if self.architecture != config.family:
            raise ModelFileError(
                "general.architecture",
                f"the adapter is for {quoted(self.architecture)} models, but this one is {config.family}",
            )
        shapes = adapted_shapes(config)
        for name, pair in self.pairs.items():
            if name not in shapes:
                raise ModelFileError(name, "the model has no such matrix that an adapter may change: it is for another")
            rows, columns = shapes[name]
            if (pair.b.rows, pair.a.columns) != (rows, columns):
                raise ModelFileError(
                    name,
                    f"the adapter is for a matrix of {pair.b.rows} x {pair.a.columns}, but the model's has "
                    f"{rows} x {columns}: it is for another model",
                )


def read_adapter(source: ByteSource) -> Adapter:
    """Read and check an adapter's file; whether it fits a model is for `Adapter.check_fits` to say.

    Raises
    ------
    ModelFileError
        `field` is the part of the header, the metadata key or the tensor at fault.
    """
    metadata, tensors = read_parts(source)
    type = get(metadata, TYPE, str, default="model")
    if type != "adapter":
        raise ModelFileError(TYPE, f"is {quoted(type)}: this is no adapter")
    kind = get(metadata, KIND, str)
    if kind != "lora":
        raise ModelFileError(KIND, f"is {quoted(kind)}; only lora adapters can be used")
    if INVOCATION in metadata:
        raise ModelFileError(INVOCATION, "adapters that work only behind certain tokens are not supported")
    alpha = get(metadata, ALPHA, float)
    if not 0 <= alpha <= LARGEST_ALPHA:
        raise ModelFileError(ALPHA, f"is {alpha:g}, but must be from 0 to {LARGEST_ALPHA:g}")
    for name in tensors:
        if not name.endswith((".lora_a", ".lora_b")):
            raise ModelFileError(name, "this tensor is no part of a lora adapter, which has .lora_a and .lora_b")
    pairs = {name: _pair(name, tensors) for name in dict.fromkeys(name.rpartition(".")[0] for name in tensors)}
    if not pairs:
        raise ModelFileError("tensor count", "the adapter is empty")
    return Adapter(
        short_text(metadata.get("general.name", "")),
        read_card({ABOUT: metadata[ABOUT]} if ABOUT in metadata else {}).about,
        get(metadata, "general.architecture", str),
        alpha,
        pairs,
    )


def summary(adapter: Adapter) -> dict[str, str]:
    """Return what the page says of an adapter: the `AdapterCard` of web/messages.js."""
    return {"name": adapter.name, "about": adapter.about}


def _pair(name: str, tensors: Mapping[str, Tensor]) -> Pair:
    """The two matrices for the model's matrix `name`."""
    a, b = (tensors.get(f"{name}.lora_{part}") for part in "ab")
    if a is None or b is None:
        raise ModelFileError(f"{name}.lora_{'b' if b is None else 'a'}", "this tensor is missing from the file")
    for tensor in (a, b):
        if tensor.type not in FLOATS:
            raise ModelFileError(tensor.name, f"is of type {tensor.type}, but must be one of {', '.join(FLOATS)}")
        if len(tensor.shape) != 2:
            raise ModelFileError(tensor.name, f"has shape {tensor.shape}, but must be a matrix")
    if a.rows != b.columns:
        raise ModelFileError(b.name, f"has {b.columns} columns, but {a.name} has {a.rows} rows: both are the rank")
    if a.rows > LARGEST_RANK:
        raise ModelFileError(a.name, f"a rank of {a.rows} is larger than the {LARGEST_RANK} that are accepted")
    return Pair(a, b)


def describe_adapter(architecture: str, alpha: float, words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata from which `read_adapter` reads the same; `words` are general.* and the like."""
    return {
        "general.architecture": architecture,
        TYPE: "adapter",
        KIND: "lora",
        ALPHA: float(alpha),
        **words,
    }
