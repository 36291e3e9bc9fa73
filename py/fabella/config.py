"""The numbers that define a model, the same for the driver, the training and C; and where a tensor lies in a file."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from fabella.errors import ModelFileError, short_text
from fabella.rope import NO_SCALING, Scaling

# Far above any Llama that could run in a page, and low enough that no product of two overflows 64 bits.
LARGEST = {
    "dim": 1 << 16,
    "hidden_dim": 1 << 18,
    "n_layers": 1 << 10,
    "n_heads": 1 << 12,
    "n_kv_heads": 1 << 12,
    "vocab_size": 1 << 20,
    "seq_len": 1 << 20,  # rotary angles beyond it are not computed exactly (wasm/maths.h)
    "repeats": 1 << 4,
}
# From and to which the others may be.
RANGES = {
    "rope_base": (1.0, 1e12),
    "local_rope_base": (0.0, 1e12),
    "norm_eps": (0.0, 1.0),
    "embedding_scale": (1e-6, 1e6),
    "attention_scale": (0.0, 1e6),
    "residual_scale": (1e-6, 1e6),
    "logit_scale": (1e-6, 1e6),
    "attention_cap": (0.0, 1e6),
    "logit_cap": (0.0, 1e6),
}


@dataclass(frozen=True)
class Config:
    """The numbers that define a Llama, or a model of another family: what has a default is as in the plain Llama.

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

    family: str = "llama"  # one of architectures.FAMILIES: which tensors there are
    repeats: int = 1  # how many times each layer is run before the next
    key_length: int = 0  # numbers of a head; 0: dim / n_heads
    rope_length: int = 0  # how many of them RoPE turns; 0: all
    rope_scaling: Scaling = NO_SCALING
    local_rope_base: float = 0.0  # RoPE's base in layers of `ropes` 1, which are not scaled
    ropes: tuple[int, ...] = ()  # of each layer: 0, 1, or -1 for no RoPE; (): 0 everywhere
    windows: tuple[int, ...] = ()  # of each layer, how many positions a token sees, its own included, 0: all; (): all
    halves: bool = False  # whether RoPE's pairs lie half of its length apart in the file, not side by side
    joint_norm: bool = False  # whether the norms of q and k are over all heads together, not over each
    gelu: bool = False  # whether the feed-forward network has GELU in the place of SiLU
    embedding_scale: float = 1.0  # what embeddings are multiplied by,
    attention_scale: float = 0.0  # the products of q and k; 0: 1 / sqrt(head_size),
    residual_scale: float = 1.0  # and what a layer adds
    logit_scale: float = 1.0  # what logits are divided by
    attention_cap: float = 0.0  # the products become cap * tanh(product / cap); 0: they stay
    logit_cap: float = 0.0  # the same for logits

    @property
    def head_size(self) -> int:
        return self.key_length or self.dim // self.n_heads

    @property
    def rope_size(self) -> int:
        return self.rope_length or self.head_size

    @property
    def q_dim(self) -> int:
        return self.head_size * self.n_heads

    @property
    def kv_dim(self) -> int:
        return self.head_size * self.n_kv_heads

    @property
    def q_norm_size(self) -> int:
        return self.q_dim if self.joint_norm else self.head_size

    @property
    def k_norm_size(self) -> int:
        return self.kv_dim if self.joint_norm else self.head_size

    def __post_init__(self) -> None:
        for field, largest in LARGEST.items():
            check_whole(field, getattr(self, field), 1, largest)
        for field in ("key_length", "rope_length"):
            check_whole(field, getattr(self, field), 0, LARGEST["dim"])
        if not self.key_length and self.dim % self.n_heads:
            raise ModelFileError("n_heads", f"{self.n_heads} heads do not divide a width of {self.dim} evenly")
        if self.n_heads % self.n_kv_heads:
            raise ModelFileError(
                "n_kv_heads", f"{self.n_kv_heads} key/value heads do not divide {self.n_heads} heads evenly"
            )
        if self.q_dim > LARGEST["hidden_dim"]:
            raise ModelFileError("key_length", f"{self.n_heads} heads of {self.head_size} numbers are too wide")
        if self.rope_size % 2 or self.rope_size > self.head_size:
            if self.rope_length:
                raise ModelFileError(
                    "rope_length", f"is {self.rope_length}, but must be even and within the head's size"
                )
            raise ModelFileError(
                "n_heads", f"a head has {self.head_size} numbers, but rotary embedding needs an even count"
            )
        for field, (low, high) in RANGES.items():
            value = getattr(self, field)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not abs(value) <= sys.float_info.max:  # a whole number may be larger
                raise ModelFileError(field, f"must be a finite number, not {short_text(repr(value), longest=40)}")
            if not low <= value <= high:
                raise ModelFileError(field, f"is {value:g}, but must be from {low:g} to {high:g}")
        for field in ("ropes", "windows"):
            if len(getattr(self, field)) not in (0, self.n_layers):
                raise ModelFileError(field, f"there are {len(getattr(self, field))} for {self.n_layers} layers")
        for window in self.windows:
            check_whole("windows", window, 0, (1 << 31) - 1)


def check_whole(field: str, value: object, smallest: int, largest: int) -> None:
    """Raise ModelFileError unless this is a whole number from `smallest` to `largest`."""
    if type(value) is not int:
        raise ModelFileError(field, f"must be a whole number, not {short_text(repr(value), longest=40)}")
    if not smallest <= value <= largest:
        raise ModelFileError(field, f"is {value}, but must be from {smallest} to {largest}")


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
