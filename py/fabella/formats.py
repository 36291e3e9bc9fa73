"""Number formats: how rows of weights lie in a file. The one table of them in Python; wasm/formats.h has that of C."""

from __future__ import annotations

from dataclasses import dataclass

GROUP = 32  # weights that share a scale
SUPER = 256  # weights of a block of several groups
# Bytes that 32 weights of a row take once they are packed (wasm/matrix.h).
LAYOUTS = {"F32": 128, "BF16": 64, "Q8": 36, "Q8S": 38, "Q5": 24, "Q5M": 28, "Q4": 20, "Q4M": 24}


@dataclass(frozen=True)
class Format:
    """How weights are stored."""

    number: int  # GGUF's
    block_size: int  # bytes of a block
    layout: str  # one of LAYOUTS: how the engine packs a matrix of it
    block: int = 1  # weights that are stored together
    file_type: int | None = None  # GGUF's general.file_type of a model that we store so


FORMATS = {
    "F32": Format(0, 4, "F32", file_type=0),
    "F16": Format(1, 2, "F32", file_type=1),
    "BF16": Format(30, 2, "BF16", file_type=32),
    "Q8_0": Format(8, 34, "Q8", GROUP, file_type=7),
    "Q5_0": Format(6, 22, "Q5", GROUP, file_type=8),
    "Q4_0": Format(2, 18, "Q4", GROUP, file_type=2),
    "Q4_1": Format(3, 20, "Q4M", GROUP, file_type=3),
    "Q5_1": Format(7, 24, "Q5M", GROUP),
    "IQ4_NL": Format(20, 18, "Q8", GROUP),
    "MXFP4": Format(39, 17, "Q8", GROUP),
    "Q6_K": Format(14, 210, "Q8S", SUPER, file_type=18),
    "Q5_K": Format(13, 176, "Q5M", SUPER),
    "Q4_K": Format(12, 144, "Q4M", SUPER, file_type=14),
    "Q3_K": Format(11, 110, "Q8S", SUPER),
    "IQ4_XS": Format(23, 136, "Q8", SUPER),
    "TQ2_0": Format(35, 66, "Q8", SUPER),
    "TQ1_0": Format(34, 54, "Q8", SUPER),
    "I8": Format(24, 1, "Q8"),  # with scales in another place: see Tensor
}
FLOATS = ("F32", "F16", "BF16")  # which vectors are stored in
STORED = tuple(name for name, format in FORMATS.items() if format.file_type is not None)  # which we write models in
QUANTISED = tuple(name for name in STORED if name not in FLOATS)
NAMES = {format.number: name for name, format in FORMATS.items()}
# GGUF's other types, which are not read, for messages.
UNREADABLE = {
    9: "Q8_1",
    10: "Q2_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    40: "NVFP4",
}
