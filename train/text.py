"""A text to train on: looked through once, then gone through as often as need be; a part of it is held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import explain
from .sources import FIELD, documents_of

HELD_OUT = 0.05  # of the text's characters ...
MOST_HELD_OUT = 500_000  # ... of which more would take long to measure, and say little more
IN_MEMORY = 200_000_000  # characters; a longer text is read anew each time


class Text:
    """The documents of a source (sources.py), and what one look at all of them tells.

    ``lengths`` [documents] counts their characters, ``n_bytes`` those in UTF-8, ``characters`` how often each one
    occurs, and ``hash`` is the text's, whatever its files' encoding, packing and ends of lines. Raises as
    `documents_of` does.
    """

    def __init__(self, path: Path, field: str = FIELD) -> None:
        self.path, self.field = path, field
        self.documents: list[str] | None = []  # all, or None: they are read anew
        self.characters: Counter[str] = Counter()
        self.n_bytes = n_characters = 0
        lengths: list[int] = []
        digest = hashlib.sha256()
        for document in documents_of(path, field):
            lengths.append(len(document))
            n_characters += len(document)
            self.characters.update(document)
            encoded = document.encode("utf-8", "surrogatepass")
            self.n_bytes += len(encoded)
            digest.update(encoded + b"\0")
            if self.documents is not None:
                self.documents.append(document)
                if n_characters > IN_MEMORY and not path.is_fifo():
                    self.documents = None
        self.lengths: NDArray[np.int64] = np.array(lengths)
        self.n_characters = n_characters
        self.hash = digest.hexdigest()

    def __iter__(self) -> Iterator[str]:
        """The documents, anew each time."""
        return documents_of(self.path, self.field) if self.documents is None else iter(self.documents)

    def all(self) -> Part:
        """The whole text to learn from."""
        return Part(self, len(self.lengths), 0)

    def split(self) -> tuple[Part, list[str]]:
        """The part to learn from, and the documents held out: a share of the text, from its end."""
        whole, cut = plan_split(self.lengths.tolist())
        held_out = list(islice(self, whole, None))
        held_out[0] = held_out[0][cut:].lstrip("\n") or held_out[0][cut:]
        return Part(self, whole, cut), held_out


class Part:
    """The beginning of a text: its first ``whole`` documents, and ``cut`` characters of the next."""

    def __init__(self, text: Text, whole: int, cut: int) -> None:
        self.text, self.whole, self.cut = text, whole, cut
        self.n_documents = whole + (cut > 0)
        self.n_characters = int(text.lengths[:whole].sum()) + cut

    def __iter__(self) -> Iterator[str]:
        """The documents, anew each time; ``ValueError`` if the source has others than at the first look."""
        documents = iter(self.text)
        for number, length in enumerate(self.text.lengths[: self.n_documents].tolist()):
            document = next(documents, "")
            if len(document) != length:
                raise ValueError(f"{self.text.path}: was changed while it was being read")
            yield document if number < self.whole else document[: self.cut]


def first_characters(documents: Iterable[str], most: int = MOST_HELD_OUT) -> list[str]:
    """The first documents, the last one cut where there are ``most`` characters; no more are read."""
    taken: list[str] = []
    for document in documents:
        taken.append(document[:most])
        most -= len(document)
        if most <= 0:
            break
    return taken


def hash_documents(documents: Iterable[str]) -> str:
    """The SHA-256 of documents."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def plan_split(lengths: Sequence[int], held_out: float = HELD_OUT) -> tuple[int, int]:
    """How many whole documents, of so many characters each, to learn from, and how many characters of the next one.

    What follows is held out: as many whole documents from the end as fit into the share, and where these are less than
    half of it, the end of the one before them as well. At least one character is.
    """
    share = max(1, min(MOST_HELD_OUT, int(sum(lengths) * held_out)))
    whole, size = len(lengths), 0
    while whole > 1 and size + lengths[whole - 1] <= share:
        whole -= 1
        size += lengths[whole]
    if size >= share / 2:
        return whole, 0
    return whole - 1, max(0, lengths[whole - 1] - (share - size))


if __name__ == "__main__":
    explain(__doc__)
