"""Byte-level BPE, as GPT-2 has it: text to tokens and back.

Text is first split into words, numbers, punctuation and spaces, by a regular expression that the file names. Every
byte of a word's UTF-8 is written as one character, so that any text can be expressed: printable ASCII as itself, a
space as "Ġ". Then, again and again, the two neighbours are merged that stand first in the file's list of merges, the
leftmost of equals, until none stands in it. This gives the same tokens as the library tokenizers
(https://github.com/huggingface/tokenizers) for characters that this Python's Unicode knows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, cached_property, lru_cache

from fabella.errors import ModelFileError
from fabella.tokenizer import (
    CONTROL,
    REMEMBERED,
    UNKNOWN,
    USER_DEFINED,
    Decoder,
    Pieces,
    Tokenizer,
    Word,
    merge,
    well_formed,
)

# ---- Splitting -------------------------------------------------------------------------------------------------------

# The libraries' regular expressions speak of Unicode's categories: \p{L} are letters, \p{N} numbers, \s white space.
# Python's \w is L and N and "_", its \d only decimal digits, and its \s has four characters more. So numbers are \d and
# those of categories Nl and No, of which this is the list (Unicode 16, hexadecimal).
OTHER_NUMBERS = """
    b2-b3 b9 bc-be 9f4-9f9 b72-b77 bf0-bf2 c78-c7e d58-d5e d70-d78 f2a-f33 1369-137c 16ee-16f0 17f0-17f9 19da 2070
    2074-2079 2080-2089 2150-2182 2185-2189 2460-249b 24ea-24ff 2776-2793 2cfd 3007 3021-3029 3038-303a 3192-3195
    3220-3229 3248-324f 3251-325f 3280-3289 32b1-32bf a6e6-a6ef a830-a835 10107-10133 10140-10178 1018a-1018b
    102e1-102fb 10320-10323 10341 1034a 103d1-103d5 10858-1085f 10879-1087f 108a7-108af 108fb-108ff 10916-1091b
    109bc-109bd 109c0-109cf 109d2-109ff 10a40-10a48 10a7d-10a7e 10a9d-10a9f 10aeb-10aef 10b58-10b5f 10b78-10b7f
    10ba9-10baf 10cfa-10cff 10e60-10e7e 10f1d-10f26 10f51-10f54 10fc5-10fcb 11052-11065 111e1-111f4 1173a-1173b
    118ea-118f2 11c5a-11c6c 11fc0-11fd4 12400-1246e 16b5b-16b61 16e80-16e96 1d2c0-1d2d3 1d2e0-1d2f3 1d360-1d378
    1e8c7-1e8cf 1ec71-1ecab 1ecad-1ecaf 1ecb1-1ecb4 1ed01-1ed2d 1ed2f-1ed3d 1f100-1f10c
"""
_X = "".join("-".join(rf"\U{int(end, 16):08x}" for end in ends.split("-")) for ends in OTHER_NUMBERS.split())
_S = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
LETTER = rf"[^\W\d_{_X}]"
NUMBER = rf"[\d{_X}]"
OTHER = rf"(?:[^{_S}\w]|_)"  # neither letter, number nor space
SPACES = rf"[{_S}]+"
NO_SPACE_FOLLOWS = rf"(?![^{_S}])"
CONTRACTION = "'(?:[sdmt]|ll|ve|re)"
ANY_CONTRACTION = "'(?:[sSſdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"  # "ſ" is a lower-case "S"


def _llama3(numbers: str) -> str:
    return "|".join(
        (
            ANY_CONTRACTION,
            rf"(?:[^\r\n\w]|_)?{LETTER}+",
            numbers,
            rf" ?{OTHER}+[\r\n]*",
            rf"[{_S}]*[\r\n]+",
            SPACES + NO_SPACE_FOLLOWS,
            SPACES,
        )
    )


GPT2 = f"{CONTRACTION}| ?{LETTER}+| ?{NUMBER}+| ?{OTHER}+|{SPACES}{NO_SPACE_FOLLOWS}|{SPACES}"
# Every number stands alone, and what lies between numbers is split as in GPT-2.
DIGITS_APART = f"{CONTRACTION}| ?{LETTER}+|{NUMBER}| ?{OTHER}+|{SPACES}(?![^{_S}\\d{_X}])|{SPACES}"
LLAMA3 = _llama3(NUMBER + "{1,3}")
QWEN2 = _llama3(NUMBER)

# By the names that files of our families give them (tokenizer.ggml.pre), as llama.cpp knows them.
SPLITS = {
    **dict.fromkeys(("gpt-2", "olmo"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact"), DIGITS_APART),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2),
}
# Those in which a whole word that is a piece is taken as it is, those that want BOS, and those that compose characters
# first (NFC), as far as files do not say.
WHOLE_WORDS = ADD_BOS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")
COMPOSED = ("qwen2",)

find_words = cache(re.compile)

# ---- Bytes -----------------------------------------------------------------------------------------------------------

_PRINTABLE = {*range(33, 127), *range(161, 173), *range(174, 256)}  # of Latin-1
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
CHARACTERS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
BYTES = {character: byte for byte, character in CHARACTERS.items()}


class ByteLevel(Tokenizer):
    """A vocabulary with a list of merges.

    Parameters
    ----------
    pieces, types
        One of each per token; the id is the index. `types` are NORMAL … BYTE. Control and user-defined pieces are text,
        the others bytes as characters.
    merges
        Each of them two pieces with a space between them, the first first.
    split
        A key of SPLITS.
    bos_id, eos_id
        Begin of text, end of text.
    stop_ids
        Tokens that end a text when the model picks them.
    add_bos
        Whether the model wants BOS before the text.
    add_space_prefix
        Whether text gets a space at its front.

    Raises
    ------
    ModelFileError
        `field` is "pieces", "types", "merges", "split", "bos_id" or "eos_id".
    """

    def __init__(
        self,
        pieces: Sequence[str],
        types: Sequence[int],
        merges: Sequence[str],
        split: str,
        bos_id: int,
        eos_id: int,
        stop_ids: frozenset[int] | None = None,
        add_bos: bool = False,
        add_space_prefix: bool = False,
    ) -> None:
        super().__init__(pieces, types, bos_id, eos_id, stop_ids, add_bos)
        if split not in SPLITS:
            raise ModelFileError("split", f"is {split!r}; only {', '.join(sorted(SPLITS))} are supported")
        self._find = find_words(SPLITS[split]).findall
        self._whole_words = split in WHOLE_WORDS
        self._composed = split in COMPOSED
        self.split = split
        self.add_space_prefix = add_space_prefix
        self._ids = self._places()  # only these can result from text
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))
        self._check_merges(merges)
        own = [self.pieces[id] for id in self.special if self.types[id] == USER_DEFINED and self.pieces[id]]
        self._own = Pieces(own)
        self._word_ids = lru_cache(REMEMBERED)(self._encode_word)
        self._missing = bytes(byte for byte, character in CHARACTERS.items() if character not in self._ids)

    def _places(self) -> dict[str, int]:
        """The ids of the pieces that text can become."""
        ids = dict(zip(self.pieces, range(len(self.pieces)), strict=True))
        if len(ids) == len(self.pieces):  # none is there twice: as most vocabularies are
            for id in self.special:
                if self.types[id] in (CONTROL, UNKNOWN):
                    del ids[self.pieces[id]]
            return ids
        ids = {}
        for id, (piece, type) in enumerate(zip(self.pieces, self.types, strict=True)):
            if type in (CONTROL, UNKNOWN):
                continue
            other = ids.setdefault(piece, id)
            if other != id and piece:
                if (type == USER_DEFINED) == (self.types[other] == USER_DEFINED):
                    raise ModelFileError("pieces", f"tokens {other} and {id} are both {piece!r}")
                ids[piece] = id if type == USER_DEFINED else other
        return ids

    def _check_merges(self, merges: Sequence[str]) -> None:
        """Whatever is merged must be a piece. All at once, because there are so many, and one by one if one is not."""
        if len(self._ranks) != len(merges):
            raise ModelFileError("merges", "the same merge is there twice")
        count, text = len(merges), "\0".join(merges)
        unions = text.replace(" ", "")
        first = self._ids.get(unions.partition("\0")[0], 0)
        # Most files list the pieces in the order in which they were merged.
        in_order = unions == "\0".join(self.pieces[first : first + count])
        if in_order and text.count(" ") == count == text.count("\0") + 1:
            return
        for number, pair in enumerate(merges):
            left, _space, right = pair.partition(" ")
            if not (left and right) or " " in right or left + right not in self._ids:
                raise ModelFileError("merges", f"merge {number}, {pair!r}, does not make a piece of two")

    @property
    def merges(self) -> list[str]:
        """The merges, the first first."""
        return list(self._ranks)

    # --- Text to tokens ---

    def _encode(self, text: str, begins: bool = True) -> list[int]:
        ids: list[int] = []
        for part, is_piece in self._parts(text, begins):
            if is_piece:
                ids.append(self._ids[part])
            else:
                ids += self._word_ids(part)
        return ids

    def _parts(self, text: str, begins: bool) -> Iterator[tuple[str, bool]]:
        """The words of a text and the user-defined pieces in it, and whether each is such a piece."""
        if self.add_space_prefix and begins:
            text = " " + text
        for part, is_piece in self._own.cut(text):
            if is_piece:
                yield part, True
                continue
            if self._composed:
                part = unicodedata.normalize("NFC", part)
            yield from ((word, False) for word in self._find(part))

    def _words(self, text: str) -> Iterator[Word]:
        for part, is_piece in self._parts(text, begins=True):
            if is_piece:
                yield self._whole_word(self._ids[part])
                continue
            steps: list[list[str]] = []
            ids = self._encode_word(part, steps)
            yield Word(_written(part), ids, steps)

    def _encode_word(self, word: str, steps: list[list[str]] | None = None) -> list[int]:
        written = _written(word)
        if self._whole_words and written in self._ids:
            if steps is not None:
                steps.append([written])
            return [self._ids[written]]
        symbols, ranks = list(written), self._ranks
        merged = merge(symbols, lambda left, right: ranks.get(f"{symbols[left]} {symbols[right]}"), steps)
        # A byte that is no piece is left out, as in the library tokenizers; few vocabularies lack any that texts have.
        return [self._ids[symbol] for symbol in merged if symbol in self._ids]

    def fewest_tokens(self, text: str) -> int:
        """Return how many tokens a text has at the least: none spells more bytes than the longest piece has."""
        text = well_formed(text)
        if self._composed:
            text = unicodedata.normalize("NFC", text)
        return -(-len(text.encode().translate(None, self._missing)) // self._longest)

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest piece that a text can have."""
        own = (len(self.pieces[id].encode()) for id in self.special if self.types[id] == USER_DEFINED)
        return max(1, max(map(len, self._ids), default=1), *own)

    # --- Tokens to text ---

    def _spelled(self, piece: str, type: int) -> bytes:
        if type == UNKNOWN:
            return b""
        return piece.encode() if type == USER_DEFINED else bytes_of(piece)

    def decoder(self) -> Decoder:
        """Return a decoder for one sequence of tokens that arrive one by one."""
        return _Decoder(self)


class _Decoder(Decoder):
    def _push(self, piece: str, type: int) -> str:
        if type in (CONTROL, USER_DEFINED, UNKNOWN):
            text = self.flush() if self._unfinished else ""  # no character continues across another kind of token
            return text + (piece if type == USER_DEFINED else "")
        return self._bytes(bytes_of(piece))


def _written(word: str) -> str:
    """A word's bytes as the characters that stand for them."""
    return word.encode().decode("latin-1").translate(CHARACTERS)


def bytes_of(piece: str) -> bytes:
    """The bytes that a piece is written for; a character that is none of them stands for itself."""
    try:
        return bytes([BYTES[character] for character in piece])
    except KeyError:
        return piece.encode()
