"""Number formats: how rows of weights lie in a file. The one table of them in Python; wasm/formats.h has that of C.

A quantised format stores 32 weights of a row, a group, in one block: an F16 scale, an F16 minimum if it has one, and
an integer of so many bits for each weight.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP = 32  # weights of a block


@dataclass(frozen=True)
class Format:
    """How weights are stored."""

    number: int  # GGUF's
    bits: int  # of a weight
    file_type: int | None = None  # GGUF's general.file_type of a model whose matrices are stored so, if there is one
    block: int = 1  # weights that are stored together
    minimum: bool = False  # whether a block has a minimum as well as a scale

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        scales = 2 * (1 + self.minimum) if self.block > 1 else 0
        return scales + self.block * self.bits // 8


FORMATS = {
    "F32": Format(0, 32, 0),
    "F16": Format(1, 16, 1),
    "BF16": Format(30, 16, 32),
    "Q8_0": Format(8, 8, 7, GROUP),
    "Q5_0": Format(6, 5, 8, GROUP),
    "Q4_0": Format(2, 4, 2, GROUP),
    "Q4_1": Format(3, 4, 3, GROUP, minimum=True),
    "I8": Format(24, 8),  # with scales in another place: see Tensor
}
FLOATS = tuple(name for name, format in FORMATS.items() if format.bits >= 16)  # which norms are stored in
QUANTISED = tuple(name for name, format in FORMATS.items() if format.block > 1)
STORED = tuple(name for name, format in FORMATS.items() if format.file_type is not None)  # as whole models are
NAMES = {format.number: name for name, format in FORMATS.items()}
# GGUF's other types, which are not read, for messages.
UNREADABLE = {
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
}
