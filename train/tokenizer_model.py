"""Reads tokenizer.model, in both kinds that go by this name: SentencePiece's, and the list of ranks of Meta's Llama 3.

SentencePiece's is a message of Protocol Buffers: fields, each a number and a value, of which these matter here:

    1 piece, one after the other   1 its text   2 its score   3 its type (numbered as in GGUF; 1)
    2 how it was trained           3 the kind of model (1: unigram, 2: BPE)
                                   40, 41, 42 the ids of unknown, BOS, EOS (0, 1, 2)
    3 how text is normalised       2 a table of characters   3 a space in front (1)   4 spaces removed (1)

(in brackets what it is if the field is not there). The list of ranks has on each line a piece's bytes in base64 and its
rank: byte-level BPE whose merges are not listed. Two neighbours merge if together they are a piece, those of the
lowest rank first, so that a piece's merge is the pair that is left when only lower ranks have merged.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from fabella.bytelevel import CHARACTERS, ByteLevel
from fabella.errors import FabellaError, ModelFileError
from fabella.filetype import BEGINNING, TOKENIZER_BIN, what_is
from fabella.llama2c import read_tokenizer
from fabella.sentencepiece import SentencePiece
from fabella.sources import FileSource
from fabella.tokenizer import CONTROL, NORMAL, TYPES, Tokenizer, merge

from . import explain

LARGEST = 64 << 20  # bytes; Gemma's, the largest in use, has 5 MB
BPE = 2
# The tokens of Llama 3 that are not in the list, behind it; 256 in all, and the others are reserved.
LLAMA3_SPECIAL = """
    begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id
    reserved_special_token_2 start_header_id end_header_id eom_id eot_id python_tag
""".split()
LLAMA3_COUNT = 256


def read_tokenizer_file(path: Path, vocab_size: int) -> Tokenizer:
    """Read a tokenizer beside a model of so many tokens: tokenizer.model of either kind, or llama2.c's tokenizer.bin.

    Raises ``FabellaError`` (a ``ModelFileError`` that names the field) or ``OSError``.
    """
    with FileSource(path) as source:
        if source.size > LARGEST:
            raise FabellaError(f"{path}: {source.size} bytes are too many for a tokenizer")
        data = source.read(0, source.size)
        kind = what_is(data[:BEGINNING], len(data)) or ""
        if kind == TOKENIZER_BIN or path.suffix == ".bin":
            return read_tokenizer(source, vocab_size)
    tokenizer: Tokenizer = _ranked(data) if _is_ranks(data) else sentencepiece_of(data)
    if len(tokenizer) != vocab_size:
        raise FabellaError(f"{path}: has {len(tokenizer)} tokens, but the model has {vocab_size}; it is another's")
    return tokenizer


# --- SentencePiece ----------------------------------------------------------------------------------------------------


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
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ModelFileError("tokenizer.model", f"is damaged, or no tokenizer, at byte {at}")
        if at + size > len(data):
            raise ModelFileError("tokenizer.model", "ends too early; the download may be incomplete")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
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


# --- Ranks ------------------------------------------------------------------------------------------------------------


def _is_ranks(data: bytes) -> bool:
    return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data) is not None


def _ranked(data: bytes) -> ByteLevel:
    """Read Meta's list of Llama 3. Raises ``ModelFileError`` if it is damaged."""
    listed: list[bytes] = []
    for number, line in enumerate(data.split()[::2]):
        try:
            listed.append(base64.b64decode(line, validate=True))
        except binascii.Error:
            raise ModelFileError("tokenizer.model", f"line {number + 1} is no base64") from None
    if data.split()[1::2] != [b"%d" % rank for rank in range(len(listed))]:
        raise ModelFileError("tokenizer.model", "its ranks are not 0, 1, 2 … in their order")
    ranks = {piece: rank for rank, piece in enumerate(listed)}
    if len(ranks) != len(listed) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ModelFileError("tokenizer.model", "must hold every byte, and no piece twice")
    merges = [_parts(piece, rank, ranks) for rank, piece in enumerate(listed) if len(piece) > 1]
    reserved = (f"reserved_special_token_{number}" for number in range(3, LLAMA3_COUNT))
    names = [*LLAMA3_SPECIAL, *reserved][:LLAMA3_COUNT]
    first = len(listed)
    return ByteLevel(
        [_written(piece) for piece in listed] + [f"<|{name}|>" for name in names],
        [NORMAL] * first + [CONTROL] * LLAMA3_COUNT,
        [f"{_written(left)} {_written(right)}" for pair in merges if pair for left, right in [pair]],
        split="llama-bpe",
        bos_id=first,
        eos_id=first + 1,
        add_bos=True,
    )


def _parts(piece: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two pieces that a piece is merged from; None if its bytes never come to two: it is only met as a whole."""
    symbols = [chr(byte) for byte in piece]  # `merge` works on texts

    def lower(left: int, right: int) -> int | None:
        found = ranks.get((symbols[left] + symbols[right]).encode("latin-1"))
        return found if found is not None and found < rank else None

    left = merge(symbols, lower)
    return (left[0].encode("latin-1"), left[1].encode("latin-1")) if len(left) == 2 else None


def _written(piece: bytes) -> str:
    return piece.decode("latin-1").translate(CHARACTERS)


if __name__ == "__main__":
    explain(__doc__)
