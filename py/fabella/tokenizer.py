"""SentencePiece BPE: text to tokens and back.

Encoding starts from single characters and, again and again, merges the two neighbours whose union is the piece
with the highest score, the leftmost of equals, until nothing merges. A character that is not a piece falls back to
its UTF-8 bytes. A space is written "▁" (U+2581) inside pieces, and text gets one at its front, so that a word at
the start looks like the same word later. This gives the same tokens as the sentencepiece library with identity
normalisation (https://github.com/google/sentencepiece), and, with `space=" "`, as llama2.c's `run`.
"""

from __future__ import annotations

import codecs
import heapq
import math
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import add

from fabella.errors import ModelFileError

# Piece types, numbered as in GGUF and in sentencepiece's own model files.
NORMAL = 1
UNKNOWN = 2  # stands for text the vocabulary cannot express
CONTROL = 3  # BOS and the like: never the result of encoding text, nothing to print
USER_DEFINED = 4  # always kept whole
UNUSED = 5  # merged through, but split up again in the result
BYTE = 6  # "<0x0A>": one byte of UTF-8

SPACE = "▁"
UNKNOWN_TEXT = " ⁇ "  # what an unknown token prints, as in sentencepiece

IN_USE = (UNUSED, NORMAL, USER_DEFINED)  # what text is made of; of two equal pieces, the later kind counts

LONGEST_PIECE = 1024  # bytes; real vocabularies stay below 200

# What C's isprint() and isspace() both deny among the ASCII characters.
CONTROL_BYTES = frozenset(range(32)) - frozenset(b"\t\n\v\f\r") | {127}


class Tokenizer:
    """A vocabulary, and the two directions through it.

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
        _check_vocabulary(pieces, scores, types)
        # Converters write a space as such in user-defined pieces alone.
        self.pieces = [
            piece.replace(" ", space) if type == USER_DEFINED else piece
            for piece, type in zip(pieces, types, strict=True)
        ]
        self.scores = list(scores)
        self.types = list(types)
        self.bos_id = _check_id("bos_id", bos_id, len(pieces))
        self.eos_id = _check_id("eos_id", eos_id, len(pieces))
        self.unknown_id = _check_id("unknown_id", unknown_id, len(pieces))
        self.stop_ids = frozenset((bos_id, eos_id)) if stop_ids is None else stop_ids
        self.add_bos = add_bos
        self.add_space_prefix = add_space_prefix
        self.space = space
        self.print_control_bytes = print_control_bytes

        self._ids, byte_ids = _places(self.pieces, self.types)  # only these can result from text
        # Byte fallback needs all 256: with fewer, some text would have no bytes to fall back to.
        self._byte_ids = [byte_ids[byte] for byte in range(256)] if len(byte_ids) == 256 else None
        self._whole = _Pieces([piece for piece, id in self._ids.items() if types[id] == USER_DEFINED])
        self._longest = max(map(len, self._ids), default=1)

    def __len__(self) -> int:
        return len(self.pieces)

    # --- Text to tokens ---

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Return the tokens of a text, behind BOS if `bos` is true and the model wants one (`add_bos`).

        Any string is accepted; half of a surrogate pair counts as U+FFFD.
        """
        ids = [self.bos_id] if bos and self.add_bos else []
        if not text:
            return ids
        text = (" " if self.add_space_prefix else "") + text
        before_unknown = False
        for piece in self._merge(self._written(text)):
            id = self._ids.get(piece)
            if id is not None and self.types[id] == UNUSED:
                id = None
            if id is not None:
                ids.append(id)
            elif self._byte_ids is not None:
                ids += [self._byte_ids[byte] for byte in piece.encode()]
            elif not before_unknown:  # a run of unknown characters is one unknown token
                ids.append(self.unknown_id)
            before_unknown = id is None
        return ids

    def fewest_tokens(self, text: str) -> int:
        """Return how many tokens a text has at the least, without encoding it: that takes far longer.

        A token spells no more characters than the longest piece has. Without byte pieces, characters that are no
        pieces do not count: a run of them may be a single unknown token.
        """
        text = self._written(text)
        count = len(text)
        if self._byte_ids is None:
            pieces = {piece for piece, id in self._ids.items() if len(piece) == 1 and self.types[id] != UNUSED}
            count = sum(map(pieces.__contains__, text))
        return -(-count // self._longest)

    def _written(self, text: str) -> str:
        """A text as pieces write it."""
        # JavaScript's strings may hold lone surrogates, which have no UTF-8.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text.replace(" ", self.space)

    def _merge(self, text: str) -> list[str]:
        """Split a text into characters and user-defined pieces, and merge the characters by score.

        The symbols form a linked list and a heap holds the possible merges, so that each merge costs O(log n).
        """
        symbols, frozen = self._whole.split(text)
        ids, scores, types = self._ids, self.scores, self.types
        count = len(symbols)
        before = list(range(-1, count - 1))
        after = [*range(1, count), -1]
        made_of: dict[str, tuple[str, str]] = {}  # how an unused piece came about

        heap: list[tuple[float, int, int, int]] = []  # (-score, left, right, length of the union)

        def consider(left: int, right: int) -> None:
            if left < 0 or right < 0 or frozen[left] or frozen[right]:
                return
            union = symbols[left] + symbols[right]
            id = ids.get(union)
            if id is not None:
                heapq.heappush(heap, (-scores[id], left, right, len(union)))
                if types[id] == UNUSED:
                    made_of[union] = symbols[left], symbols[right]

        for left, union in enumerate(map(add, symbols, symbols[1:])):
            if union in ids:
                consider(left, left + 1)
        while heap:
            _, left, right, length = heapq.heappop(heap)
            # Skip a merge whose parts have meanwhile merged with others: they have grown, or are empty.
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != length:
                continue
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            consider(before[left], left)
            consider(left, after[left])

        merged = [symbol for symbol in symbols if symbol]
        return _split_unused(merged, made_of) if made_of else merged

    # --- Tokens to text ---

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of a whole sequence of tokens."""
        decoder = self.decoder()
        return "".join([decoder.push(id) for id in ids]) + decoder.flush()

    def decoder(self) -> Decoder:
        """Return a decoder for one sequence of tokens that arrive one by one."""
        return Decoder(self)


class Decoder:
    """Turns tokens into text as they arrive, never half a character; a stray byte becomes U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True
        self._unfinished = False  # whether bytes may wait for the rest of their character

    def push(self, id: int) -> str:
        """Return the text that this token completes; it may be empty.

        Raises IndexError if the vocabulary has no such token.
        """
        tokenizer = self._tokenizer
        if not 0 <= id < len(tokenizer.pieces):
            raise IndexError(f"token {id} is outside the vocabulary of {len(tokenizer)}")
        piece, type = tokenizer.pieces[id], tokenizer.types[id]
        if type == BYTE:
            self._at_start = False
            self._unfinished = True
            byte = _byte_value(piece)
            return self.flush() if self._hidden(byte) else self._utf8.decode(bytes([byte]))
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

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for the bytes of an unfinished character, else nothing."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._unfinished = False
        return text

    def _hidden(self, byte: int) -> bool:
        return not self._tokenizer.print_control_bytes and byte in CONTROL_BYTES


class _Pieces:
    """User-defined pieces: finds in a text, from its front, the longest that begins at each place.

    Of pieces in alphabetical order, the last one that is not behind a text either begins it, or begins with every
    piece that does: the longest of those is found by going from it to ever shorter pieces that it begins with.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = sorted(pieces)
        self._first = {piece[0] for piece in self._pieces}
        self._longest = max(map(len, self._pieces), default=0)
        self._shorter = array("i")  # of each piece, the number of the longest other one that it begins with, or -1
        line: list[int] = []  # the pieces that begin with each other, up to the last one
        for number, piece in enumerate(self._pieces):
            while line and not piece.startswith(self._pieces[line[-1]]):
                line.pop()
            self._shorter.append(line[-1] if line else -1)
            line.append(number)

    def split(self, text: str) -> tuple[list[str], bytearray]:
        """Return the pieces and the single characters between them, and a 1 for each that is a piece, else 0."""
        if not self._pieces:
            return list(text), bytearray(len(text))
        symbols: list[str] = []
        whole = bytearray()
        position = 0
        while position < len(text):
            symbol = self._at(text, position) if text[position] in self._first else ""
            whole.append(bool(symbol))
            symbol = symbol or text[position]
            symbols.append(symbol)
            position += len(symbol)
        return symbols, whole

    def _at(self, text: str, position: int) -> str:
        """The longest piece that begins at a position, or ""."""
        number = bisect_right(self._pieces, text[position : position + self._longest]) - 1
        while number >= 0:
            piece = self._pieces[number]
            if text.startswith(piece, position):
                return piece
            number = self._shorter[number]
        return ""


def _places(pieces: Sequence[str], types: Sequence[int]) -> tuple[dict[str, int], dict[int, int]]:
    """The ids of the pieces that text can become, and of the byte pieces by their byte.

    Converters pad a vocabulary with unused and with empty pieces, and add pieces of their own to it, so that one may be
    there twice. A piece that is in use goes before one that is not, and a user-defined one before a normal one.
    """
    ids: dict[str, int] = {}
    byte_ids: dict[int, int] = {}
    for id, (piece, type) in enumerate(zip(pieces, types, strict=True)):
        if type == BYTE:
            byte = _byte_value(piece)
            if byte_ids.setdefault(byte, id) != id:
                raise ModelFileError("pieces", f"tokens {byte_ids[byte]} and {id} are both {piece!r}")
        elif piece and type in IN_USE:
            other = ids.setdefault(piece, id)
            if other != id:
                if types[other] == type != UNUSED:
                    raise ModelFileError("pieces", f"tokens {other} and {id} are both {piece!r}")
                ids[piece] = max(other, id, key=lambda id: IN_USE.index(types[id]))
    return ids, byte_ids


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


def _check_id(field: str, id: int, count: int) -> int:
    if not 0 <= id < count:
        raise ModelFileError(field, f"is {id}, but the vocabulary's tokens are 0 to {count - 1}")
    return id


def _check_vocabulary(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> None:
    if not pieces:
        raise ModelFileError("pieces", "the vocabulary is empty")
    for field, values in (("scores", scores), ("types", types)):
        if len(values) != len(pieces):
            raise ModelFileError(field, f"there are {len(values)} for a vocabulary of {len(pieces)} tokens")
    for id, (piece, score, type) in enumerate(zip(pieces, scores, types, strict=True)):
        if not isinstance(piece, str):
            raise ModelFileError("pieces", f"token {id} is not text")
        if not isinstance(score, (int, float)) or not math.isfinite(score):
            raise ModelFileError("scores", f"the score of token {id} must be a finite number, not {score!r}")
        if type not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE):
            raise ModelFileError("types", f"token {id} is of type {type!r}, but types are 1 to 6")
        if 4 * len(piece) > LONGEST_PIECE and len(piece.encode()) > LONGEST_PIECE:
            raise ModelFileError("pieces", f"token {id} is longer than {LONGEST_PIECE} bytes")
