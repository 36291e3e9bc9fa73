"""What all tokenizers share: a vocabulary of pieces, special ones among them, and the way to text and back.

Which kind a file needs is decided in vocabulary.py; sentencepiece.py and bytelevel.py are the kinds.
"""

from __future__ import annotations

import codecs
import heapq
import re
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from fabella.errors import ModelFileError

# Piece types, numbered as in GGUF and in sentencepiece's own model files.
NORMAL = 1
UNKNOWN = 2  # stands for text the vocabulary cannot express
CONTROL = 3  # BOS and the like: never the result of encoding text, nothing to print
USER_DEFINED = 4  # always kept whole
UNUSED = 5  # merged through, but split up again in the result
BYTE = 6  # "<0x0A>": one byte of UTF-8
TYPES = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)

REMEMBERED = 10_000  # words that a tokenizer need not merge again
LONGEST_PIECE = 1024  # bytes; real vocabularies stay below 200


class Word(NamedTuple):
    """A part of a text that becomes tokens by itself.

    Attributes
    ----------
    text
        As it stands in the vocabulary, with "▁" or "Ġ" for a space; a character for each byte, if that is its kind.
    ids
        Its tokens.
    steps
        What it is made of, before the first merge and after each: from characters to pieces. One that is not merged
        has only the first.
    """

    text: str
    ids: list[int]
    steps: list[list[str]]


class Tokenizer(ABC):
    """A vocabulary, and the two directions through it.

    Attributes
    ----------
    pieces, types : list
        One of each per token; the id is the index. `types` are NORMAL … BYTE.
    special : list of int
        The tokens that are not NORMAL.
    bos_id, eos_id : int
        Begin of text, end of text.
    stop_ids : frozenset of int
        Tokens that end a text when the model picks them.
    add_bos : bool
        Whether the model wants BOS before the text.

    Raises
    ------
    ModelFileError
        `field` is "pieces", "types", "bos_id" or "eos_id".
    """

    def __init__(
        self,
        pieces: Sequence[str],
        types: Sequence[int],
        bos_id: int,
        eos_id: int,
        stop_ids: frozenset[int] | None,
        add_bos: bool,
    ) -> None:
        self.special = _checked(pieces, types)
        self.pieces = list(pieces)
        self.types = list(types)
        self.bos_id = check_id("bos_id", bos_id, len(pieces))
        self.eos_id = check_id("eos_id", eos_id, len(pieces))
        self.stop_ids = frozenset((bos_id, eos_id)) if stop_ids is None else stop_ids
        self.add_bos = add_bos

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str, bos: bool = True, special: bool = False) -> list[int]:
        """Return the tokens of a text.

        Parameters
        ----------
        text
            Any string; half of a surrogate pair counts as U+FFFD.
        bos
            Whether BOS comes first, if the model wants one (`add_bos`).
        special
            Whether control pieces in the text, as ``<|im_end|>``, are these tokens: for a chat template's own text. Of
            what a person wrote they are characters like others.
        """
        ids = [self.bos_id] if bos and self.add_bos else []
        text = well_formed(text)
        return ids + self.encode_parts(self.cut(text) if special else [text])

    def cut(self, text: str) -> Iterator[str | int]:
        """Yield the control tokens whose pieces are in a text, and what lies between them."""
        for part, is_control in self._controls.cut(text):
            yield self._control_ids[part] if is_control else part

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Return the tokens of a text that is cut; nothing in its parts is special."""
        ids = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids += self._encode(part)
        return ids

    @property
    def controls(self) -> Iterable[str]:
        """The pieces of the control tokens."""
        return self._control_ids

    @cached_property
    def _control_ids(self) -> dict[str, int]:
        return {self.pieces[id]: id for id in self.special if self.types[id] == CONTROL and self.pieces[id]}

    @cached_property
    def _controls(self) -> Pieces:
        return Pieces(self._control_ids)

    def encode_on(self, text: str) -> list[int]:
        """Return the tokens of a text that goes on from another, so that no space comes at its front of itself."""
        return self._encode(well_formed(text), begins=False) if text else []

    def words(self, text: str, bos: bool = True, special: bool = False) -> Iterator[Word]:
        """Yield the parts of a text, and how each becomes tokens, by the same steps. The parameters are `encode`'s."""
        if bos and self.add_bos:
            yield self._whole_word(self.bos_id)
        text = well_formed(text)
        for part in self.cut(text) if special else [text]:
            if isinstance(part, int):
                yield self._whole_word(part)
            elif part:
                yield from self._words(part)

    def _whole_word(self, id: int) -> Word:
        return Word(self.pieces[id], [id], [[self.pieces[id]]])

    @abstractmethod
    def _encode(self, text: str, begins: bool = True) -> list[int]:
        """The tokens of a well-formed text in which nothing is special, and which is a text's beginning or goes on."""

    @abstractmethod
    def _words(self, text: str) -> Iterator[Word]:
        """How such a text becomes tokens; it is not empty."""

    def spelled(self, id: int) -> bytes:
        """Return what a token adds to a text within it, in UTF-8: part of a character, perhaps; of a control nothing.

        Raises IndexError if the vocabulary has no such token.
        """
        if not 0 <= id < len(self.pieces):
            raise IndexError(f"token {id} is outside the vocabulary of {len(self.pieces)}")
        return b"" if self.types[id] == CONTROL else self._spelled(self.pieces[id], self.types[id])

    @abstractmethod
    def _spelled(self, piece: str, type: int) -> bytes: ...

    @abstractmethod
    def fewest_tokens(self, text: str) -> int:
        """Return how many tokens a text has at the least, without encoding it: that takes far longer."""

    def strange(self, text: str) -> int:
        """Return how many characters of a text, spaces aside, are no pieces: the vocabulary spells their bytes."""
        return 0

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of a whole sequence of tokens."""
        decoder = self.decoder()
        return "".join([decoder.push(id) for id in ids]) + decoder.flush()

    @abstractmethod
    def decoder(self) -> Decoder:
        """Return a decoder for one sequence of tokens that arrive one by one."""


class Decoder(ABC):
    """Turns tokens into text as they arrive, never half a character; a stray byte becomes U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pieces, self._types = tokenizer.pieces, tokenizer.types
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._unfinished = False  # whether bytes may wait for the rest of their character

    def push(self, id: int) -> str:
        """Return the text that this token completes; it may be empty.

        Raises IndexError if the vocabulary has no such token.
        """
        if not 0 <= id < len(self._pieces):
            raise IndexError(f"token {id} is outside the vocabulary of {len(self._pieces)}")
        return self._push(self._pieces[id], self._types[id])

    @abstractmethod
    def _push(self, piece: str, type: int) -> str: ...

    def peek(self, id: int | None) -> str:
        """Return the text that this token would add, were it the last, or None: the end; nothing changes."""
        attributes, utf8 = vars(self).copy(), self._utf8.getstate()
        try:
            return ("" if id is None else self.push(id)) + self.flush()
        finally:
            vars(self).update(attributes)
            self._utf8.setstate(utf8)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for the bytes of an unfinished character, else nothing."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._unfinished = False
        return text

    def _bytes(self, data: bytes) -> str:
        """The text that these bytes complete."""
        self._unfinished = True
        return self._utf8.decode(data)


class Pieces:
    """Some pieces: finds in a text, from its front, the longest that begins at each place.

    Of pieces in alphabetical order, the last one that is not behind a text either begins it, or begins with every
    piece that does: the longest of those is found by going from it to ever shorter pieces that it begins with.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = sorted(pieces)
        first = "".join(sorted({piece[0] for piece in self._pieces}))
        self._beginnings = re.compile(f"[{re.escape(first)}]" if first else r"(?!)")
        self._longest = max(map(len, self._pieces), default=0)
        self._shorter = array("i")  # of each piece, the number of the longest other one that it begins with, or -1
        line: list[int] = []  # the pieces that begin with each other, up to the last one
        for number, piece in enumerate(self._pieces):
            while line and not piece.startswith(self._pieces[line[-1]]):
                line.pop()
            self._shorter.append(line[-1] if line else -1)
            line.append(number)

    def cut(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield the pieces of a text and what lies between them, and whether each is a piece."""
        begin = at = 0
        while found := self._beginnings.search(text, at):
            at = found.start()
            piece = self._at(text, at)
            if not piece:
                at += 1
                continue
            if begin < at:
                yield text[begin:at], False
            yield piece, True
            begin = at = at + len(piece)
        if begin < len(text):
            yield text[begin:], False

    def _at(self, text: str, position: int) -> str:
        """The longest piece that begins at a position, or ""."""
        number = bisect_right(self._pieces, text[position : position + self._longest]) - 1
        while number >= 0:
            piece = self._pieces[number]
            if text.startswith(piece, position):
                return piece
            number = self._shorter[number]
        return ""


def merge(
    symbols: list[str], rank: Callable[[int, int], float | None], steps: list[list[str]] | None = None
) -> list[str]:
    """Merge neighbours, again and again those of the lowest rank, the leftmost of equals, until none has one.

    The symbols form a linked list and a heap holds the possible merges, so that each merge costs O(log n).

    Parameters
    ----------
    symbols
        What is to be merged; a merge's left one becomes the union, the right one "".
    rank
        The rank of the union of two symbols, by their places; None: they do not merge.
    steps
        If it is a list, what there is before the first merge and after each is added to it.
    """
    count = len(symbols)
    before = list(range(-1, count - 1))
    after = [*range(1, count), -1]
    heap: list[tuple[float, int, int, int]] = []  # (rank, left, right, length of the union)

    def consider(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (found := rank(left, right)) is not None:
            heapq.heappush(heap, (found, left, right, len(symbols[left]) + len(symbols[right])))

    if steps is not None:
        steps.append(list(symbols))
    for left in range(count - 1):
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
        if steps is not None:
            steps.append(list(filter(None, symbols)))
        consider(before[left], left)
        consider(left, after[left])
    return [symbol for symbol in symbols if symbol]


def well_formed(text: str) -> str:
    """A text without lone surrogates, which JavaScript's strings may hold and which have no UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_id(field: str, id: int, count: int) -> int:
    """Return a token's number. Raises ModelFileError unless the vocabulary of so many has it."""
    if not 0 <= id < count:
        raise ModelFileError(field, f"is {id}, but the vocabulary's tokens are 0 to {count - 1}")
    return id


def _checked(pieces: Sequence[str], types: Sequence[int]) -> list[int]:
    """Check a vocabulary; return the tokens that are not normal.

    There are so many pieces that a loop over them would take long.
    """
    if not pieces:
        raise ModelFileError("pieces", "the vocabulary is empty")
    if len(types) != len(pieces):
        raise ModelFileError("types", f"there are {len(types)} for a vocabulary of {len(pieces)} tokens")
    kinds = _as_bytes(types)
    if kinds.translate(None, bytes(TYPES)) or len(kinds) != len(types):
        id = next(id for id, kind in enumerate(types) if kind not in TYPES)
        raise ModelFileError("types", f"token {id} is of type {types[id]!r}, but types are 1 to 6")
    for id, piece in enumerate(pieces) if not _are_texts(pieces) else ():
        if not isinstance(piece, str):
            raise ModelFileError("pieces", f"token {id} is not text")
    if 4 * max(map(len, pieces)) > LONGEST_PIECE:
        for id, piece in enumerate(pieces):
            if len(piece.encode()) > LONGEST_PIECE:
                raise ModelFileError("pieces", f"token {id} is longer than {LONGEST_PIECE} bytes")
    return [found.start() for found in re.finditer(rb"[^\1]", kinds)]  # NORMAL is 1


def find(type: int, types: Sequence[int]) -> Iterator[int]:
    """The tokens of one type; none if some are no types at all."""
    return (found.start() for found in re.finditer(re.escape(bytes([type])), _as_bytes(types)))


def _are_texts(pieces: Sequence[str]) -> bool:
    try:
        "".join(pieces)
    except TypeError:
        return False
    return True


def _as_bytes(numbers: Sequence[int]) -> bytes:
    """The numbers as bytes, if all of them are; else none."""
    try:
        return bytes(numbers)
    except (TypeError, ValueError):
        return b""
