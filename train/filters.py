"""Which of the texts that a model has written are worth learning from.

What is kept is as long as most of the text that it should be like, of that text's characters, no more
repetitive than its most repetitive documents, and near to none of them, nor to another one that was kept. And so that
measurements stay honest, it shares next to nothing with the held-out text.

Texts are compared by their n-grams: n words in a row, as 64-bit hashes, which are the same on every machine.

Where only the likeliest texts are kept, they would all come to be about the same few things: one document in fifteen
has a ball, and one of three of the likeliest texts had (LOG.md). So what is kept can be balanced: words that few
documents have are in few texts, too.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from . import explain
from .measures import UNSPACED
from .progress import Progress
from .text import Part
from .tokenizer import by_frequency, count_needed

LENGTHS = (0.01, 0.99)  # the shares of the text's documents that are shorter than what is kept, and not longer
KNOWN = 0.99  # of the characters
REPEATED_GRAM, MOST_REPETITIVE, REPETITION = 3, 0.99, 0.1  # words; the share of documents below the limit; its least
NEAR_GRAM, NEAR = 8, 0.5  # words; the share of n-grams that make two texts near to each other
ONE_OF = 4  # n-grams of these is remembered, or else they would fill the memory
HELD_OUT_GRAM, MOST_HELD_OUT = 13, 7  # words; n-grams shared with the held-out text

RARE = 0.15  # words that a smaller share of the documents has are balanced
MOST_OFTEN = 2  # times a word's share of the documents: its largest share of what is kept, ...
ALWAYS = 4  # ... and texts that may have any word

# Where no spaces part words, each character counts as one.
WORDS = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")

UNFINISHED, UNLIKELY, LENGTH, LANGUAGE = "unfinished", "less likely", "too short or too long", "in other characters"
REPETITIVE, OVERLAP, COMMON = "repetitive", "like the held-out text", "with a word that too many have"
COPIED, TWICE = "like a document of the text", "like another one"

Hashes = NDArray[np.uint64]


def word_hashes(text: str) -> Hashes:
    """A hash of each word of a text, whatever its case and what stands between the words."""
    return np.array([zlib.crc32(word.encode()) for word in WORDS.findall(text.lower())], np.uint64)


def grams(words: Hashes, n: int) -> Hashes:
    """The different n-grams of a text of these words, [grams]; none if it has fewer words."""
    count = len(words) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for place in range(n):  # a polynomial of the words, modulo 2^64; then the high bits are mixed into the low ones
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[place : place + count]
    hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes * np.uint64(0xBF58476D1CE4E5B9))


def repetition(words: Hashes) -> float:
    """The share of a text's short n-grams that have been there before, 0 to 1."""
    count = len(words) - REPEATED_GRAM + 1
    return 1 - len(grams(words, REPEATED_GRAM)) / count if count > 0 else 0.0


def marks(words: Hashes) -> Hashes:
    """Those n-grams of a text, one of `ONE_OF`, by which texts near to it are found; at least one."""
    found = grams(words, min(NEAR_GRAM, max(1, len(words))))
    kept = found[found >> np.uint64(32) & np.uint64(ONE_OF - 1) == 0]
    return kept if len(kept) else found[:1]


class Known:
    """Documents that are known by their marks."""

    def __init__(self, documents: Iterable[Hashes]) -> None:
        """``documents`` yields each one's marks."""
        all_marks, counts = array("Q"), array("q")
        for own in documents:
            all_marks.frombytes(own.tobytes())
            counts.append(len(own))
        owners = np.repeat(np.arange(len(counts)), counts)
        self.marks, first = np.unique(np.array(all_marks, np.uint64), return_index=True)
        self.owners = owners[first]  # of each mark, the first document that has it

    def nearest(self, own: Hashes) -> float:
        """The largest share of a text's marks that one document has."""
        if not len(own) or not len(self.marks):
            return 0.0
        places = np.minimum(np.searchsorted(self.marks, own), len(self.marks) - 1)
        owners = self.owners[places[self.marks[places] == own]]
        return int(np.unique_counts(owners).counts.max()) / len(own) if len(owners) else 0.0


class Filters:
    """What is kept beside a text to learn from, and what was kept so far."""

    def __init__(self, learned: Part, held_out: Sequence[str], balanced: bool = False) -> None:
        """Look through the text; ``held_out`` is what models will be measured on. ``balanced``: see above."""
        low, high = np.quantile(learned.text.lengths, LENGTHS)
        self.shortest, self.longest = int(low), int(np.ceil(high))
        counts = learned.text.characters
        self.characters = {"\n", *by_frequency(counts)[: count_needed(counts)]}
        self.held_out = np.unique(
            np.concatenate([grams(word_hashes(document), HELD_OUT_GRAM) for document in held_out])
        )
        repetitions = array("d")
        self.balanced = balanced
        self.documents: Counter[int] = Counter()  # a word -> how many documents have it
        self.texts: Counter[int] = Counter()  # a word -> how many of the texts that were kept

        def all_marks() -> Iterator[Hashes]:
            with Progress("looking through", learned.n_characters, " characters") as progress:
                for document in learned:
                    words = word_hashes(document)
                    repetitions.append(repetition(words))
                    if balanced:
                        self.documents.update(set(words.tolist()))
                    yield marks(words)
                    progress.update(len(document))

        self.text = Known(all_marks())
        self.n_documents = len(repetitions)
        self.most_repetitive = max(REPETITION, float(np.quantile(repetitions, MOST_REPETITIVE)))
        self.kept: dict[int, int] = {}  # a mark -> the first text that was kept and has it
        self.n_kept = 0

    def refuse(self, text: str) -> str | None:
        """The reason not to keep a text, or None."""
        if not self.shortest <= len(text) <= self.longest:
            return LENGTH
        if sum(character in self.characters for character in text) < KNOWN * len(text):
            return LANGUAGE
        words = word_hashes(text)
        if repetition(words) > self.most_repetitive:
            return REPETITIVE
        if np.isin(grams(words, HELD_OUT_GRAM), self.held_out).sum() > MOST_HELD_OUT:
            return OVERLAP
        own = marks(words)
        if self.text.nearest(own) > NEAR:
            return COPIED
        owners = Counter(self.kept[mark] for mark in own.tolist() if mark in self.kept)
        if owners and max(owners.values()) > NEAR * len(own):
            return TWICE
        if self.balanced and any(self._is_common(word) for word in set(words.tolist())):
            return COMMON
        return None

    def _is_common(self, word: int) -> bool:
        """Whether enough of the texts that were kept have a word."""
        share = self.documents[word] / self.n_documents
        return share < RARE and self.texts[word] >= ALWAYS + MOST_OFTEN * share * self.n_kept

    def keep(self, text: str) -> None:
        """Remember a text that is kept: what comes later is to be another one."""
        words = word_hashes(text)
        for mark in marks(words).tolist():
            self.kept.setdefault(mark, self.n_kept)
        if self.balanced:
            self.texts.update(set(words.tolist()))
        self.n_kept += 1


if __name__ == "__main__":
    explain(__doc__)
