"""Numbers on texts, in words: how varied they are, how often they say the same again, how much of them is copied.

An n-gram is n words in a row, within one text. All shares are of n-grams as they occur, from 0 to 1; None where there
is none to count. `interval` says how far a mean over documents can be trusted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from . import explain

RESAMPLES = 2000
SEED = 1  # of the resamples: the same numbers have the same interval
COVERED = 0.95  # of the resamples
APOSTROPHES = "'’"
# Scripts that put no spaces between words: Thai and Lao, Burmese, Khmer, kana, Han.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
SIGNS = "".join(chr(code) for code in range(0x0E00, 0x3100) if unicodedata.category(chr(code))[0] == "M")
WORD = re.compile(f"[{UNSPACED}][{SIGNS}]*|[^ {UNSPACED}]+")

NGram = tuple[str, ...]


class _Plain(dict[int, str]):
    """What becomes of each character in a word: itself, or a space; looked up once."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        in_word = unicodedata.category(character)[0] in "LMN" or character in APOSTROPHES
        self[code] = character if in_word else " "
        return self[code]


_PLAIN = _Plain()


def words(text: str) -> list[str]:
    """A text's words, without case and punctuation. Where a script has no spaces, each letter is one."""
    found = WORD.findall(text.casefold().translate(_PLAIN))
    return [word for part in found if (word := part.strip(APOSTROPHES))]


def ngrams(text: Sequence[str], n: int) -> Iterator[NGram]:
    """The n-grams of a text's words, in their order."""
    return zip(*(text[start:] for start in range(n)), strict=False)


def distinct(texts: Iterable[Sequence[str]], n: int, n_words: int) -> float | None:
    """Distinct-n: how many of the n-grams of the first ``n_words`` words of all texts together are different ones.

    It falls as texts grow: compare it only at the same number of words.
    """
    grams = [gram for text in _first(texts, n_words) for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def _first(texts: Iterable[Sequence[str]], n_words: int) -> Iterator[Sequence[str]]:
    for text in texts:
        yield text[:n_words]
        n_words -= min(n_words, len(text))


def repeated(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """The share of n-grams that the same text has said before."""
    of_texts = [list(ngrams(text, n)) for text in texts]
    total = sum(map(len, of_texts))
    return sum(len(grams) - len(set(grams)) for grams in of_texts) / total if total else None


def shared(texts: Iterable[Sequence[str]], n: int, there: set[NGram]) -> float | None:
    """The share of n-grams that are ``there``, too."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return sum(gram in there for gram in grams) / len(grams) if grams else None


def found_in(document: str, n: int, wanted: set[NGram]) -> set[NGram]:
    """Which of the ``wanted`` n-grams a document has."""
    return wanted.intersection(ngrams(words(document), n))


def interval(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[float, float] | None:
    """The 95 % interval of ``sums.sum() / sizes.sum()``, both [documents], by the bootstrap; None for less than two.

    As many documents are drawn, with replacement, 2,000 times over; 2.5 % of what these give are below the interval and
    2.5 % above it (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13). It says how much another choice
    of documents of the same kind might change the number; not what another training would.
    """
    count = int((sizes > 0).sum())
    if count < 2:
        return None
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    random = np.random.default_rng(SEED)
    values = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = random.integers(count, size=count)
        values[number] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(values, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return float(low), float(high)


if __name__ == "__main__":
    explain(__doc__)
