"""The numbers that define a model, the same for the driver, the training and C; and where a tensor lies in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fabella.errors import ModelFileError

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
    tied: bool = True  # whether the token embedding is the output matrix, too

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


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies in the file."""

    name: str
    type: str  # one of FORMATS
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
