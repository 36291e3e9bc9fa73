"""Small files as llama2.c writes them."""

from __future__ import annotations

import math
import struct

PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", "<0x41>", " ", "b", " b"]
SIZES = {"dim": 8, "hidden_dim": 12, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 7, "seq_len": 5}

# The file's float32 groups in order, for these sizes: name, count per layer (or in all), shape.
GROUPS: list[tuple[str, int, tuple[int, ...]]] = [
    ("token_embd", 1, (7, 8)),
    ("attn_norm", 2, (8,)),
    ("attn_q", 2, (8, 8)),
    ("attn_k", 2, (4, 8)),
    ("attn_v", 2, (4, 8)),
    ("attn_output", 2, (8, 8)),
    ("ffn_norm", 2, (8,)),
    ("ffn_gate", 2, (12, 8)),
    ("ffn_down", 2, (8, 12)),
    ("ffn_up", 2, (12, 8)),
    ("output_norm", 1, (8,)),
    ("rope", 1, (2, 5, 2)),
]


def model_bin(tied: bool = True, **sizes: int) -> bytes:
    """A model file whose every float tells its position in the file; `sizes` change the header alone."""
    header = SIZES | ({} if tied else {"vocab_size": -7}) | sizes
    groups = GROUPS if tied else [*GROUPS, ("output", 1, (7, 8))]
    count = sum(layers * math.prod(shape) for _, layers, shape in groups)
    return struct.pack("<7i", *header.values()) + struct.pack(f"<{count}f", *range(count))


# Versions 1 and 2 have the norms first, and no tables of cosines and sines.
LATER_GROUPS = [group for group in GROUPS if len(group[2]) == 1] + [group for group in GROUPS if len(group[2]) == 2]
MAGIC = 0x616B3432


def later_bin(version: int, tied: bool = True, group: int = 8, flag: int | None = None, **sizes: int) -> bytes:
    """A model file of version 1 or 2, in which the tensor number n holds n alone, and in version 2 the scales n / 2.

    `sizes` and the `flag`, the shared classifier's, change the header alone.
    """
    header = struct.pack("<Ii7i", MAGIC, version, *(SIZES | sizes).values())
    header += struct.pack("<B", tied if flag is None else flag) + (struct.pack("<i", group) if version == 2 else b"")
    data = header + bytes(256 - len(header))
    number = 0
    for _, layers, shape in [*LATER_GROUPS, *([] if tied else [("output", 1, (7, 8))])]:
        for _ in range(layers):
            count = math.prod(shape)
            if version == 2 and len(shape) == 2:
                scales = count // group if group > 0 else 0
                data += bytes([number]) * count + struct.pack(f"<{scales}f", *[number / 2] * scales)
            else:
                data += struct.pack(f"<{count}f", *[number] * count)
            number += 1
    return data


def tokenizer_bin(pieces: list[bytes] | None = None, longest: int | None = None) -> bytes:
    """A tokenizer file; the score of each piece is its rank, negative."""
    pieces = [piece.encode() for piece in PIECES] if pieces is None else pieces
    data = struct.pack("<i", max(map(len, pieces)) if longest is None else longest)
    for rank, piece in enumerate(pieces):
        data += struct.pack("<fi", -float(rank), len(piece)) + piece
    return data
