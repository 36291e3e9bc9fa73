"""SentencePiece's file, tokenizer.model: read, and written for its library, which encodes a text fast.

Such a file is a message of Protocol Buffers (https://protobuf.dev/programming-guides/encoding): fields, each of them a
number and a value. These matter here, with these numbers (sentencepiece_model.proto); in brackets stands what is meant
where a field is missing:

    1 piece, one after the other   1 its text   2 its score   3 its type (numbered as in GGUF; 1)
    2 how it was trained           3 the kind of model (1: unigram, 2: BPE)   4 how many pieces
                                   35 whether bytes are pieces
                                   40, 41, 42, 43 the ids of unknown, BOS, EOS and padding (0, 1, 2; -1: there is none)
    3 how text is normalised       1 its name   2 a table of characters   3 a space in front (1)   4 spaces removed (1)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fabella.errors import ModelFileError
from fabella.sentencepiece import SPACE, SentencePiece
from fabella.tokenizer import BYTE, NORMAL, TYPES

from . import explain

BPE = 2
NO_ID = (1 << 64) - 1  # -1 in 64 bits


# --- Reading ----------------------------------------------------------------------------------------------------------


def sentencepiece_of(data: bytes) -> SentencePiece:
    """Read SentencePiece's file. Raises ``ModelFileError`` if it is damaged, no BPE, or changes text beforehand."""
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trained: dict[int, bytes | int] = {}
    normalised: dict[int, bytes | int] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            text, score, type = piece.get(1, b""), piece.get(2, bytes(4)), piece.get(3, NORMAL)
            if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4 or type not in TYPES:
                raise ModelFileError("tokenizer.model", f"piece {len(pieces)} is damaged")
            try:
                pieces.append(text.decode())
            except UnicodeDecodeError:
                raise ModelFileError("tokenizer.model", f"piece {len(pieces)} is not valid UTF-8") from None
            scores.append(float(struct.unpack("<f", score)[0]))
            types.append(int(type))
        elif number == 2 and isinstance(value, bytes):
            trained = dict(_fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalised = dict(_fields(value))
    if not pieces:
        raise ModelFileError("tokenizer.model", "is no tokenizer of SentencePiece's: it has no pieces")
    if trained.get(3, 1) != BPE:
        kind = {1: "a unigram model", 3: "of whole words", 4: "of single characters"}.get(_number(trained, 3, 1))
        raise ModelFileError("tokenizer.model", f"is {kind or 'of a kind not known'}; only BPE can be used")
    if normalised.get(2) or _number(normalised, 4, 1):
        raise ModelFileError(
            "tokenizer.model", "changes text before it is encoded (normalizer_spec); only text as it is can be used"
        )
    return SentencePiece(
        pieces,
        scores,
        types,
        bos_id=_number(trained, 41, 1),
        eos_id=_number(trained, 42, 2),
        unknown_id=_number(trained, 40, 0),
        add_space_prefix=bool(_number(normalised, 3, 1)),
    )


def _number(fields: dict[int, bytes | int], number: int, default: int) -> int:
    value = fields.get(number, default)
    return value if isinstance(value, int) else default


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message: their numbers, and their values as bytes or whole numbers."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _read_varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ModelFileError("tokenizer.model", f"is damaged, or no tokenizer, at byte {at}")
        if at + size > len(data):
            raise ModelFileError("tokenizer.model", "ends too early; the download may be incomplete")
        yield tag >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and where the next thing begins."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise ModelFileError("tokenizer.model", "ends too early; the download may be incomplete")
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ModelFileError("tokenizer.model", f"is damaged, or no tokenizer, at byte {at}")


# --- Writing ----------------------------------------------------------------------------------------------------------


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
