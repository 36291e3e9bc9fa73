"""Reads tokenizer.model, in both kinds that go by this name: SentencePiece's, and the list of ranks of Meta's Llama 3.

SentencePiece's is read by sentencepiece_file.py. The list of ranks has on each line a piece's bytes in base64 and its
rank: byte-level BPE whose merges are not listed. Two neighbours merge if together they are a piece, those of the
lowest rank first, so that a piece's merge is the pair that is left when only lower ranks have merged.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from fabella.bytelevel import CHARACTERS, ByteLevel
from fabella.errors import FabellaError, ModelFileError
from fabella.filetype import BEGINNING, TOKENIZER_BIN, what_is
from fabella.llama2c import read_tokenizer
from fabella.sources import FileSource
from fabella.tokenizer import CONTROL, NORMAL, Tokenizer, merge

from . import explain
from .sentencepiece_file import sentencepiece_of

LARGEST = 64 << 20  # bytes; Gemma's, the largest in use, has 5 MB
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
