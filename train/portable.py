"""A model on its way from one format to another: what is known of it in GGUF's words, and its weights one at a time.

Whatever it was read from, its tensors have GGUF's names and order of rows, and its metadata is what its GGUF file
would say. So each format needs one reader and one writer, and no two of them need to know each other. Weights stay
where they are until a writer asks for them, tensor by tensor: a model may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabella.architectures import ROPE_TENSORS, check_tensors, config_of, split_fused
from fabella.config import Config, Tensor
from fabella.errors import ModelFileError
from fabella.formats import FLOATS, FORMATS, QUANTISED, STORED
from fabella.gguf import describe, read_gguf, scales_name, write_gguf
from fabella.modelfile import ModelFile
from fabella.sources import ByteSource, FileSource
from fabella.tokenizer import Tokenizer
from fabella.vocabulary import tokenizer_of

from . import explain
from .progress import Progress
from .quantize import fitting, quantize, read_weights

Array = NDArray[np.float32]
FILE_TYPE, QUANTISATION = "general.file_type", "general.quantization_version"


@dataclass(frozen=True)
class Weights:
    """A tensor that can be read, as often as it is asked for."""

    type: str  # how it is stored: one of fabella's FORMATS
    shape: tuple[int, ...]
    read: Callable[[], Array]  # its weights as F32, in that shape
    raw: Callable[[], bytes] | None = None  # its bytes as they are, where these are GGUF's
    group: int = 0  # of I8: how many weights share a scale
    scales: Callable[[], bytes] | None = None  # and the scales, F32

    def changed(self, change: Callable[[Array], Array]) -> Weights:
        """The same tensor with its weights changed whenever they are read; the shape stays."""
        return Weights(self.type, self.shape, lambda: np.ascontiguousarray(change(self.read())))

    def content(self, type: str) -> bytes:
        """Its bytes as a GGUF file has them in a type: as they are where it is this one. Raises ``ValueError``."""
        return self.raw() if self.raw and type == self.type else quantize(self.read(), type)


@dataclass(frozen=True)
class Portable:
    """A model."""

    metadata: dict[str, Any]  # all that its GGUF file would hold
    tensors: dict[str, Weights]
    notes: tuple[str, ...] = ()  # what a person should know of how it was read

    def config(self) -> Config:
        """Its numbers, after a check that exactly its family's tensors are there. Raises ``ModelFileError``."""
        config = config_of(self.metadata, self.tensors)
        check_tensors(config, split_fused(config, _places(self.tensors)))
        return config

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer. Raises ``ModelFileError``."""
        return tokenizer_of(self.metadata)


def _places(tensors: Mapping[str, Weights]) -> dict[str, Tensor]:
    """The tensors as a file would have them, as far as their shapes are concerned."""
    return {
        name: Tensor(name, "F32" if name in ROPE_TENSORS else weights.type, weights.shape, 0, weights.shape[0])
        for name, weights in tensors.items()
    }


def from_file(source: ByteSource, file: ModelFile, name: str) -> Portable:
    """Take a model from a file that the driver reads: GGUF, or llama2.c's, which is given a ``name``.

    Raises ``ModelFileError`` if weights are of a type that cannot be read here.
    """
    tensors = {}
    for tensor in file.tensors.values():
        if tensor.type not in (*STORED, "I8"):
            raise ModelFileError(tensor.name, f"is of type {tensor.type}: only {', '.join(STORED)} can be converted")
        tensors[tensor.name] = Weights(
            tensor.type,
            tensor.shape,
            lambda tensor=tensor: read_weights(source, tensor),  # type: ignore[misc]
            lambda tensor=tensor: source.read(tensor.offset, tensor.size),  # type: ignore[misc]
            tensor.group,
            lambda tensor=tensor: source.read(tensor.scales, tensor.scales_size),  # type: ignore[misc]
        )
    metadata = dict(file.metadata) or describe(file.config, file.tokenizer, {"general.name": name})
    metadata.pop("general.alignment", None)
    return Portable(metadata, tensors)


def write_as_gguf(model: Portable, path: Path, format: str | None) -> None:
    """Write a GGUF file, tensor by tensor, into a file that is not there yet or may be lost.

    Parameters
    ----------
    model
        Checked: its `config` has been asked for.
    path
        The file.
    format
        Of the matrices, one of `STORED`; where their rows do not fit it, as `quantize.fitting` says. None: as they are.
        Norms and biases are F32.

    Raises
    ------
    ValueError
        A weight cannot be stored so; it names the tensor.
    OSError
        The file cannot be written.
    """
    with Progress("weights", sum(map(_size, model.tensors.values())), " weights") as progress:
        write_gguf(path, _metadata(model, format), list(_parts(model.tensors, format, progress)))
    with FileSource(path) as source:
        read_gguf(source)  # what the page would refuse is refused here


def _size(weights: Weights) -> int:
    return int(np.prod(weights.shape))


def _parts(
    tensors: Mapping[str, Weights], format: str | None, progress: Progress
) -> Iterator[tuple[str, str, tuple[int, ...], Callable[[], bytes]]]:
    for name, weights in tensors.items():
        type = stored_type(weights, format)

        def content(name: str = name, weights: Weights = weights, type: str = type) -> bytes:
            try:
                data = weights.content(type)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            progress.update(_size(weights))
            return data

        yield name, type, weights.shape, content
        if type == "I8" and weights.scales:
            yield scales_name(name), "F32", (_size(weights) // weights.group,), weights.scales


def stored_type(weights: Weights, format: str | None) -> str:
    """The type that a tensor becomes."""
    if len(weights.shape) == 1:
        return "F32"
    return fitting(format, weights.shape[1]) if format else weights.type


def _metadata(model: Portable, format: str | None) -> dict[str, Any]:
    """The metadata, in which the file's type is that of its matrices."""
    metadata = {key: value for key, value in model.metadata.items() if key not in (FILE_TYPE, QUANTISATION)}
    types = {stored_type(weights, format) for weights in model.tensors.values() if len(weights.shape) == 2}
    one = format or (types.pop() if len(types) == 1 else None)
    file_type = FORMATS[one].file_type if one else model.metadata.get(FILE_TYPE)
    numbers = {} if file_type is None else {FILE_TYPE: file_type}
    if types - set(FLOATS) or one in QUANTISED:
        numbers[QUANTISATION] = 2
    first = {"general.architecture": metadata.pop("general.architecture")}
    return first | numbers | metadata


def with_metadata(model: Portable, **changes: Any) -> Portable:
    """The same model with some of its metadata changed."""
    return replace(model, metadata=model.metadata | changes)


if __name__ == "__main__":
    explain(__doc__)
