"""Writes a vocabulary as the file that the sentencepiece library reads, so that a text is encoded by that: it is fast.

Such a file is a message of Protocol Buffers (https://protobuf.dev/programming-guides/encoding): fields, each of them a
number and a value. Those written here have these numbers (sentencepiece_model.proto):

    1 piece, one after the other   1 its text   2 its score   3 its type (numbered as in GGUF)
    2 how it was trained           3 the kind of model (2: BPE)   4 how many pieces   35 whether bytes are pieces
                                   40, 41, 42, 43 the ids of unknown, BOS, EOS and padding (-1: there is none)
    3 how text is normalised       1 the name: identity   3 a space in front   4 whether spaces are removed
"""

from __future__ import annotations

import struct

from fabella.sentencepiece import SPACE, SentencePiece
from fabella.tokenizer import BYTE

from . import explain

BPE = 2
NO_ID = (1 << 64) - 1  # -1 in 64 bits


def sentencepiece_file(tokenizer: SentencePiece) -> bytes:
    """The file of a tokenizer, which gives every text the same tokens. Its pieces must write a space as "▁"."""
    if tokenizer.space != SPACE:
        raise ValueError("tokenizer: its pieces write a space as such, which sentencepiece's files do not")
    pieces = zip(tokenizer.pieces, tokenizer.scores, tokenizer.types, strict=True)
    written = b"".join(
        _bytes(1, _bytes(1, piece.encode()) + _float(2, score) + _whole(3, type)) for piece, score, type in pieces
    )
    trained = {
        3: BPE,
        4: len(tokenizer),
        35: int(BYTE in tokenizer.types),
        40: tokenizer.unknown_id,
        41: tokenizer.bos_id,
        42: tokenizer.eos_id,
        43: NO_ID,
    }
    normalised = _bytes(1, b"identity") + _whole(3, int(tokenizer.add_space_prefix)) + _whole(4, 0)
    return written + _bytes(2, b"".join(_whole(*field) for field in trained.items())) + _bytes(3, normalised)


def _varint(value: int) -> bytes:
    """A whole number in groups of 7 bits, the lowest first; all but the last have their 8th bit set."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _whole(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


if __name__ == "__main__":
    explain(__doc__)
