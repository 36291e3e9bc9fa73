"""SentencePiece BPE: text to tokens and back.

Encoding starts from single characters and, again and again, merges the two neighbours whose union is the piece
with the highest score, the leftmost of equals, until nothing merges. A character that is not a piece falls back to
its UTF-8 bytes. A space is written "▁" (U+2581) inside pieces, and text gets one at its front, so that a word at
the start looks like the same word later. This gives the same tokens as the sentencepiece library with identity
normalisation (https://github.com/google/sentencepiece), and, with `space=" "`, as llama2.c's `run`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from operator import itemgetter

from fabella.errors import ModelFileError
from fabella.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    REMEMBERED,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Decoder,
    Pieces,
    Tokenizer,
    Word,
    check_id,
    merge,
    well_formed,
)

SPACE = "▁"
UNKNOWN_TEXT = " ⁇ "  # what an unknown token prints, as in sentencepiece

IN_USE = (UNUSED, NORMAL, USER_DEFINED)  # what text is made of; of two equal pieces, the later kind counts

# What C's isprint() and isspace() both deny among the ASCII characters.
CONTROL_BYTES = frozenset(range(32)) - frozenset(b"\t\n\v\f\r") | {127}


class SentencePiece(Tokenizer):
    """A vocabulary whose pieces have scores.

    Parameters
    ----------
    pieces, scores, types
        One of each per token; the id is the index. `types` are NORMAL … BYTE. A user-defined piece may hold spaces as
        such.
    bos_id, eos_id, unknown_id
        Begin of text, end of text, and what an inexpressible character becomes.
    stop_ids
        Tokens that end a story when the model picks them.
    add_bos
        Whether the model wants BOS before the text.
    add_space_prefix
        Whether text gets a space at its front, and loses it again in decoding.
    space
        How a space is written inside the pieces: "▁", or " " for llama2.c's tokenizer.bin.
    print_control_bytes
        Whether decoding yields control characters other than white space when a piece is just one such byte;
        llama2.c's `run` does not print them.

    Raises
    ------
    ModelFileError
        `field` is "pieces", "scores", "types", "bos_id", "eos_id" or "unknown_id".
    """

    def __init__(
        self,
        pieces: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int],
        bos_id: int = 1,
        eos_id: int = 2,
        unknown_id: int = 0,
        stop_ids: frozenset[int] | None = None,
        add_bos: bool = True,
        add_space_prefix: bool = True,
        space: str = SPACE,
        print_control_bytes: bool = True,
    ) -> None:
        super().__init__(pieces, types, bos_id, eos_id, stop_ids, add_bos)
        self.scores = _checked_scores(scores, len(pieces))
        self.unknown_id = check_id("unknown_id", unknown_id, len(pieces))
        self.add_space_prefix = add_space_prefix
        self.space = space
        self.print_control_bytes = print_control_bytes

        for id in self.special:
            if self.types[id] == USER_DEFINED:  # converters write a space as such in these alone
                self.pieces[id] = self.pieces[id].replace(" ", space)
        self._ids, byte_ids = _places(self.pieces, self.types, self.special)  # only these can result from text
        # Byte fallback needs all 256: with fewer, some text would have no bytes to fall back to.
        self._byte_ids = [byte_ids[byte] for byte in range(256)] if len(byte_ids) == 256 else None
        own = (self.pieces[id] for id in self.special if self.types[id] == USER_DEFINED)
        self._whole = Pieces(filter(None, own))
        self._has_unused = UNUSED in self.types
        self._word_symbols = lru_cache(REMEMBERED)(self._merge)

    # --- Text to tokens ---

    def _encode(self, text: str, begins: bool = True) -> list[int]:
        return self._numbers(self._symbols(self._written(text, begins)))

    def _written(self, text: str, begins: bool) -> str:
        """A text as the pieces have it."""
        return ((" " if self.add_space_prefix and begins else "") + text).replace(" ", self.space)

    def _number(self, piece: str) -> int | None:
        """The token of a piece, if text can become it."""
        id = self._ids.get(piece)
        return None if id is not None and self.types[id] == UNUSED else id

    def _numbers(self, symbols: Iterable[str], before_unknown: bool = False) -> list[int]:
        """The tokens of what a text is merged to, perhaps after an unknown token."""
        ids: list[int] = []
        for piece in symbols:
            id = self._number(piece)
            if id is not None:
                ids.append(id)
            elif self._byte_ids is not None:
                ids += [self._byte_ids[byte] for byte in piece.encode()]
            elif not before_unknown:  # a run of unknown characters is one unknown token
                ids.append(self.unknown_id)
            before_unknown = id is None
        return ids

    def fewest_tokens(self, text: str) -> int:
        """Return how many tokens a text has at the least.

        A token spells no more characters than the longest piece has. Without byte pieces, characters that are no
        pieces do not count: a run of them may be a single unknown token.
        """
        text = well_formed(text).replace(" ", self.space)
        count = len(text)
        if self._byte_ids is None:
            pieces = {piece for piece, id in self._ids.items() if len(piece) == 1 and self.types[id] != UNUSED}
            count = sum(map(pieces.__contains__, text))
        return -(-count // self._longest)

    def strange(self, text: str) -> int:
        """Return how many characters of a text, spaces aside, are no pieces: the vocabulary spells their bytes."""
        return sum(character not in self._ids for character in text if not character.isspace())

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest piece that a text can have."""
        return max(map(len, self._ids), default=1)

    def _symbols(self, text: str) -> Iterator[str]:
        """What a text is merged to, word by word, because most words are there again and again."""
        for part, is_piece in self._parts(text):
            if is_piece:
                yield part
            else:
                yield from self._merge(part) if self._has_unused else self._word_symbols(part)

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """The parts of a text that have nothing to do with each other, and whether each is kept whole."""
        if self._has_unused:  # how they came about is a matter of the whole text
            yield text, False
            return
        for run, is_piece in self._whole.cut(text):
            if is_piece:
                yield run, True
            else:
                yield from ((word, False) for word in self._between_words.split(run))

    def _words(self, text: str) -> Iterator[Word]:
        before_unknown = False
        for part, is_piece in self._parts(self._written(text, begins=True)):
            steps: list[list[str]] = [[part]] if is_piece else []
            symbols = [part] if is_piece else self._merge(part, steps)
            yield Word(part, self._numbers(symbols, before_unknown), steps)
            before_unknown = self._number(symbols[-1]) is None

    @cached_property
    def _between_words(self) -> re.Pattern[str]:
        """Where nothing is ever merged: in front of a space, unless some piece has one behind the character there."""
        before_spaces = map(itemgetter(slice(-1, None)), "\0".join(self.pieces).split(self.space)[:-1])
        joined = "".join(sorted({*before_spaces} - {"", "\0"}))
        return re.compile(f"(?<=[^{re.escape(self.space + joined)}])(?={re.escape(self.space)})")

    def _merge(self, text: str, steps: list[list[str]] | None = None) -> list[str]:
        """Split a text into characters and user-defined pieces, and merge the characters by score."""
        symbols: list[str] = []
        frozen = bytearray()  # 1 for each that is kept whole
        for run, is_piece in self._whole.cut(text):
            symbols += [run] if is_piece else run
            frozen += b"\1" if is_piece else bytes(len(run))
        ids, scores, types = self._ids, self.scores, self.types
        made_of: dict[str, tuple[str, str]] = {}  # how an unused piece came about

        def rank(left: int, right: int) -> float | None:
            if frozen[left] or frozen[right]:
                return None
            union = symbols[left] + symbols[right]
            id = ids.get(union)
            if id is None:
                return None
            if types[id] == UNUSED:
                made_of[union] = symbols[left], symbols[right]
            return -scores[id]

        merged = merge(symbols, rank, steps)
        return _split_unused(merged, made_of) if made_of else merged

    # --- Tokens to text ---

    def _spelled(self, piece: str, type: int) -> bytes:
        if type == BYTE:
            return bytes([_byte_value(piece)])
        return (UNKNOWN_TEXT if type == UNKNOWN else piece.replace(self.space, " ")).encode()

    def decoder(self) -> Decoder:
        """Return a decoder for one sequence of tokens that arrive one by one."""
        return _Decoder(self)


class _Decoder(Decoder):
    def __init__(self, tokenizer: SentencePiece) -> None:
        super().__init__(tokenizer)
        self._tokenizer = tokenizer
        self._at_start = True

    def _push(self, piece: str, type: int) -> str:
        tokenizer = self._tokenizer
        if type == BYTE:
            self._at_start = False
            byte = _byte_value(piece)
            return self.flush() if self._hidden(byte) else self._bytes(bytes([byte]))
        text = self.flush() if self._unfinished else ""  # no character continues across another kind of token
        if type == CONTROL:
            return text
        at_start, self._at_start = self._at_start, False
        if type == UNKNOWN:
            return text + UNKNOWN_TEXT
        if at_start and tokenizer.add_space_prefix:
            piece = piece.removeprefix(tokenizer.space)
        if len(piece) == 1 and self._hidden(ord(piece)):
            return text
        return text + piece.replace(tokenizer.space, " ")

    def _hidden(self, byte: int) -> bool:
        return not self._tokenizer.print_control_bytes and byte in CONTROL_BYTES


def _places(
    pieces: Sequence[str], types: Sequence[int], special: Sequence[int]
) -> tuple[dict[str, int], dict[int, int]]:
    """The ids of the pieces that text can become, and of the byte pieces by their byte.

    Converters pad a vocabulary with unused and with empty pieces, and add pieces of their own to it, so that one may be
    there twice. A piece that is in use goes before one that is not, and a user-defined one before a normal one.
    `special` are those that are not normal.
    """
    byte_ids: dict[int, int] = {}
    for id in special:
        if types[id] == BYTE:
            byte = _byte_value(pieces[id])
            if byte_ids.setdefault(byte, id) != id:
                raise ModelFileError("pieces", f"tokens {byte_ids[byte]} and {id} are both {pieces[id]!r}")
    ids = dict(zip(pieces, range(len(pieces)), strict=True))
    if len(ids) == len(pieces) and "" not in ids:  # none is there twice: as most vocabularies are
        for id in special:
            if types[id] not in IN_USE:
                del ids[pieces[id]]
        return ids, byte_ids
    ids = {}
    for id, (piece, type) in enumerate(zip(pieces, types, strict=True)):
        if piece and type in IN_USE:
            other = ids.setdefault(piece, id)
            if other != id:
                if types[other] == type != UNUSED:
                    raise ModelFileError("pieces", f"tokens {other} and {id} are both {piece!r}")
                ids[piece] = max(other, id, key=lambda id: IN_USE.index(types[id]))
    return ids, byte_ids


def _checked_scores(scores: Sequence[float], count: int) -> list[float]:
    if len(scores) != count:
        raise ModelFileError("scores", f"there are {len(scores)} for a vocabulary of {count} tokens")
    try:
        finite = math.isfinite(sum(scores))
    except (TypeError, OverflowError):
        finite = False
    for id, score in () if finite else enumerate(scores):
        if not isinstance(score, (int, float)) or not math.isfinite(score):
            raise ModelFileError("scores", f"the score of token {id} must be a finite number, not {score!r}")
    return list(scores)


def _split_unused(symbols: list[str], made_of: dict[str, tuple[str, str]]) -> list[str]:
    """Split unused pieces into the parts they were merged from, as often as it takes."""
    result: list[str] = []
    waiting = symbols[::-1]
    while waiting:
        symbol = waiting.pop()
        if symbol in made_of:
            waiting += reversed(made_of[symbol])
        else:
            result.append(symbol)
    return result


def _byte_value(piece: str) -> int:
    """The byte that a BYTE piece like "<0x0A>" stands for."""
    if not re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece):
        raise ModelFileError("pieces", f"the byte token {piece!r} is not written like '<0x0A>'")
    return int(piece[3:5], 16)
