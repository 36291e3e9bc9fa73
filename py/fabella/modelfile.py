"""What a model file says, whatever its format: the model's shape, where its tensors lie, its tokenizer.

`gguf.py` and `llama2c.py` each turn a file into a `ModelFile`; `engine.py` knows only this description.
Tensors have the names that GGUF gives them, and a matrix of shape (rows, cols) maps a vector of `cols` numbers
to `rows` numbers; its rows lie one after the other in the file.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

from fabella.errors import ModelFileError, short_text

if TYPE_CHECKING:
    from fabella.tokenizer import Tokenizer

# Far above any Llama that could run in a page, and low enough that no product of two overflows 64 bits.
LARGEST = {
    "dim": 1 << 16,
    "hidden_dim": 1 << 18,
    "n_layers": 1 << 10,
    "n_heads": 1 << 12,
    "n_kv_heads": 1 << 12,
    "vocab_size": 1 << 20,
    "seq_len": 1 << 20,  # rotary angles beyond it are not computed exactly (wasm/maths.h)
}


@dataclass(frozen=True)
class Config:
    """The numbers that define a Llama.

    Raises
    ------
    ModelFileError
        If a number is not possible or does not fit the others; `field` is its name below.
    """

    dim: int  # width of the residual stream
    hidden_dim: int  # width inside the feed-forward network
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key/value heads; each serves n_heads / n_kv_heads query heads
    vocab_size: int
    seq_len: int  # the context: most tokens the model can look at
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        return self.head_size * self.n_kv_heads

    def __post_init__(self) -> None:
        for field, largest in LARGEST.items():
            value = getattr(self, field)
            if type(value) is not int:
                raise ModelFileError(field, f"must be a whole number, not {value!r}")
            if not 1 <= value <= largest:
                raise ModelFileError(field, f"is {value}, but must be from 1 to {largest}")
        if self.dim % self.n_heads:
            raise ModelFileError("n_heads", f"{self.n_heads} heads do not divide a width of {self.dim} evenly")
        if self.n_heads % self.n_kv_heads:
            raise ModelFileError(
                "n_kv_heads", f"{self.n_kv_heads} key/value heads do not divide {self.n_heads} heads evenly"
            )
        if self.head_size % 2:
            raise ModelFileError(
                "n_heads", f"a head has {self.head_size} numbers, but rotary embedding needs an even count"
            )
        for field, low, high in (("rope_base", 1.0, 1e12), ("norm_eps", 0.0, 1.0)):
            value = getattr(self, field)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise ModelFileError(field, f"must be a finite number, not {value!r}")
            if not low <= value <= high:
                raise ModelFileError(field, f"is {value:g}, but must be from {low:g} to {high:g}")


assert set(LARGEST) | {"rope_base", "norm_eps"} == {field.name for field in fields(Config)}


@dataclass(frozen=True)
class TensorType:
    """How a row of numbers is stored: in blocks, each of so many numbers and so many bytes."""

    number: int  # GGUF's, which wasm/formats.h has too
    block: int
    block_size: int


TENSOR_TYPES = {
    "F32": TensorType(0, 1, 4),
    "F16": TensorType(1, 1, 2),
    "BF16": TensorType(30, 1, 2),
    "Q8_0": TensorType(8, 32, 34),
    "Q4_0": TensorType(2, 32, 18),
    "Q4_1": TensorType(3, 32, 20),
    "I8": TensorType(24, 1, 1),  # with scales in another place: see Tensor
}
NORM_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies in the file."""

    name: str
    type: str  # one of TENSOR_TYPES
    shape: tuple[int, ...]  # (rows, cols), or (n,) for a norm's weights
    offset: int  # bytes from the start of the file
    size: int  # bytes
    # For I8 alone: so many numbers share a scale, counted through the whole tensor, so that a group may begin in one
    # row and end in the next; and where the float32 scales lie, in bytes from the start of the file.
    group: int = 0
    scales: int = 0

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def scales_size(self) -> int:
        return 4 * (math.prod(self.shape) // self.group) if self.group else 0


@dataclass(frozen=True)
class ModelFile:
    """All that is known of a model once its file has been read and checked; the weights stay in the file."""

    name: str  # what the file calls itself, as short text; may be empty
    config: Config
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer
    # GGUF's key/value pairs as they are, but for large ones that nothing needs; empty for llama2.c files.
    metadata: dict[str, Any]

    @property
    def license(self) -> str:
        """The licence that the file names, as short text; empty if it names none."""
        return short_text(self.metadata.get("general.license", ""))


# --- Where the bytes of a file are --------------------------------------------------------------------------


class ByteSource(Protocol):
    """Something that bytes can be read from: a file, a bytes object, a download in the page."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the `size` bytes from `offset`; the caller stays within `self.size`."""


class BytesSource:
    """A file that is already in Python's memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class FileSource:
    """A file on disk; close it, or use it in a `with` statement. Raises OSError if it cannot be opened."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "this is a folder; name the file in it", os.fspath(path))
        if not stat.S_ISREG(mode):  # a pipe would not even open before somebody writes
            raise OSError(errno.ESPIPE, "this is a pipe or a device; save the model as a file", os.fspath(path))
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 - stays open until close()
        self.size = self._file.seek(0, os.SEEK_END)

    def read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- Which tensors a Llama has ------------------------------------------------------------------------------

# What other members of the family have, by a part of the tensor's name, so that the message can say so.
FOREIGN = {
    ".bias": "bias terms",
    "rope_freqs": "rescaled rotary frequencies (long-context models)",
    "_exps": "mixture-of-experts layers",
    "_gate_inp": "mixture-of-experts layers",
    "attn_q_norm": "normalised queries",
    "attn_k_norm": "normalised keys",
    "attn_qkv": "a fused query/key/value matrix",
}


def expected_shapes(config: Config, tied: bool) -> dict[str, tuple[int, ...]]:
    """Return every tensor's name and shape; `tied` models use the token embedding as classifier too."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab_size, config.dim)}
    for layer in range(config.n_layers):
        block = f"blk.{layer}."
        shapes[block + "attn_norm.weight"] = (config.dim,)
        shapes[block + "attn_q.weight"] = (config.dim, config.dim)
        shapes[block + "attn_k.weight"] = (config.kv_dim, config.dim)
        shapes[block + "attn_v.weight"] = (config.kv_dim, config.dim)
        shapes[block + "attn_output.weight"] = (config.dim, config.dim)
        shapes[block + "ffn_norm.weight"] = (config.dim,)
        shapes[block + "ffn_gate.weight"] = (config.hidden_dim, config.dim)
        shapes[block + "ffn_down.weight"] = (config.dim, config.hidden_dim)
        shapes[block + "ffn_up.weight"] = (config.hidden_dim, config.dim)
    shapes["output_norm.weight"] = (config.dim,)
    if not tied:
        shapes["output.weight"] = (config.vocab_size, config.dim)
    return shapes


def parameter_count(tensors: Mapping[str, Tensor]) -> int:
    """How many weights the model has; a tied classifier counts once."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def check_tensors(config: Config, tensors: Mapping[str, Tensor]) -> None:
    """Check that exactly the tensors of this Llama are there, in the right shapes and usable types.

    Without an "output.weight" the model is taken as tied.

    Raises
    ------
    ModelFileError
        `field` is the tensor's name.
    """
    shapes = expected_shapes(config, tied="output.weight" not in tensors)
    for name in tensors:
        if name not in shapes:
            for part, feature in FOREIGN.items():
                if part in name:
                    raise ModelFileError(name, f"models with {feature} are not supported")
            raise ModelFileError(name, "this tensor is not part of a Llama with this many layers")
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelFileError(name, "this tensor is missing from the file")
        if tensor.shape != shape:
            raise ModelFileError(name, f"has shape {tensor.shape}, but the model's numbers ask for {shape}")
        types = NORM_TYPES if len(shape) == 1 else tuple(TENSOR_TYPES)
        if tensor.type not in types:
            raise ModelFileError(name, f"is of type {tensor.type}, but must be one of {', '.join(types)}")
