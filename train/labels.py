"""A teacher's labels of a text: at each place the likeliest tokens and their probabilities, computed once.

They lie in a folder as shards: files of about a million places each, that begin with a key, the SHA-256 of all that
decides about them, and carry a checksum. A shard is whole or not there, so that labelling goes on after an interruption
with the first one that is missing. They are used where they are, mapped into memory: with 8 tokens each they take
32 bytes a place, many times what the text takes.

Place i is that of the text's token i; its label is what the teacher expects there, knowing the tokens before it. The
first token of a document is expected by nobody: its label is zeros.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from . import explain
from .data import Tokens, cut_rows, make_batch
from .evaluate import BATCH_LOGITS
from .files import Damaged, check_sealed, replacing, write_sealed
from .loop import choose_precision
from .model import Llama
from .progress import Progress

SHARD = 1 << 20  # places, and what is left of the last document
KIND = "labels"


@dataclass(frozen=True)
class Labels:
    """Labels of a whole text: shards of records [places], and the place where each of them begins."""

    shards: list[NDArray[np.void]]
    begins: NDArray[np.int64]

    def at(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens and probabilities, [..., top] each, at ``places`` [...]."""
        records = np.empty(places.shape, self.shards[0].dtype)
        numbers = np.searchsorted(self.begins, places, side="right") - 1
        for number in np.unique(numbers):
            there = numbers == number
            records[there] = self.shards[number][places[there] - self.begins[number]]
        return records["tokens"].astype(np.int64), records["probabilities"].astype(np.float32)


@dataclass(frozen=True)
class Labelling:
    """How a text is labelled."""

    name: str  # what text and teacher it is: a hash of both
    top: int  # tokens of a label
    temperature: float  # by which the teacher's logits are divided: above 1, more than one token has a probability
    length: int  # tokens that the teacher reads at once, at the most

    @property
    def record(self) -> np.dtype[np.void]:
        """A label as it is stored, the likeliest token first."""
        return np.dtype([("tokens", "<u2", self.top), ("probabilities", "<f2", self.top)])

    @property
    def key(self) -> bytes:
        """What the shards' content begins with, and in short their names: 32 bytes."""
        return hashlib.sha256(repr((self.name, self.top, self.temperature, self.length)).encode()).digest()


def make_labels(folder: Path, tokens: Tokens, how: Labelling, teacher: Llama | None) -> Labels:
    """The labels kept in ``folder``, after ``teacher`` has made those that are missing or damaged.

    Raises ``OSError`` if they cannot be kept, or if some are missing and there is no teacher; ``FloatingPointError`` if
    the teacher's answers are no numbers.
    """
    places = cut_shards(tokens.starts)
    sizes = [int(tokens.starts[last] - tokens.starts[first]) for first, last in places]
    paths = [folder / f"{how.key.hex()[:12]}-{number:04}.labels" for number in range(len(places))]
    shards = [_read_shard(path, how, size) for path, size in zip(paths, sizes, strict=True)]
    missing = [number for number, shard in enumerate(shards) if shard is None]
    if missing:
        if teacher is None:
            raise FileNotFoundError(f"{paths[missing[0]]}: no such labels, and every process of a training reads them")
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, sum(sizes[number] for number in missing) * how.record.itemsize)
        expected = [size - (last - first) for size, (first, last) in zip(sizes, places, strict=True)]
        left = sum(expected[number] for number in missing)
        with Progress("teacher", sum(expected), " tokens", done=sum(expected) - left, brief=False) as progress:
            for number in missing:
                records = label_documents(teacher, tokens, *places[number], how, progress)
                with replacing(paths[number]) as half:
                    write_sealed(half, KIND, [how.key, records.tobytes()])
                shards[number] = _read_shard(paths[number], how, sizes[number])
    whole = [shard for shard in shards if shard is not None]
    if len(whole) < len(shards):
        raise OSError(f"{folder}: the disk gives back other labels than were written")
    return Labels(whole, tokens.starts[[first for first, _ in places]])


def cut_shards(starts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The documents, from the first up to before the last, whose labels make up each shard."""
    shards = []
    first = 0
    while first < len(starts) - 1:
        last = min(int(np.searchsorted(starts, starts[first] + SHARD)), len(starts) - 1)
        shards.append((first, last))
        first = last
    return shards


@torch.no_grad()
def label_documents(
    teacher: Llama, tokens: Tokens, first: int, last: int, how: Labelling, progress: Progress
) -> NDArray[np.void]:
    """The labels of the documents from ``first`` up to before ``last``: records [places], counted from the first."""
    begin = int(tokens.starts[first])
    records = np.zeros(int(tokens.starts[last]) - begin, how.record)
    rows = cut_rows(Tokens(tokens.ids, tokens.starts[first : last + 1]), how.length)
    # The last row of a long document reaches back: what the row before has labelled, it knew more about.
    new = np.maximum(rows[:, 0] + 1, np.concatenate([[0], rows[:-1, 1]]))
    order = np.argsort(rows[:, 1] - rows[:, 0], kind="stable")
    device = teacher.token_embd.weight.device
    precision = choose_precision(device.type)
    while len(order):
        longest = int(rows[order[-1], 1] - rows[order[-1], 0])
        count = max(1, BATCH_LOGITS // (longest * teacher.config.vocab_size))
        order, batch = order[:-count], order[-count:]
        inputs, _ = make_batch(tokens, rows[batch])
        with precision:
            logits = teacher(inputs.to(device))
        found = (logits.float() / how.temperature).softmax(-1).topk(how.top)  # [rows, T, top]
        values, ids = found.values.cpu().numpy(), found.indices.cpu().numpy()
        if not np.isfinite(values).all():
            raise FloatingPointError("the teacher's answers are no finite numbers")
        for row, number in enumerate(batch):
            start, end = rows[number]
            here = slice(int(new[number] - start) - 1, int(end - start) - 1)  # the answer to a token is about the next
            records["tokens"][new[number] - begin : end - begin] = ids[row, here]
            records["probabilities"][new[number] - begin : end - begin] = values[row, here]
        progress.update(int((rows[batch, 1] - new[batch]).sum()))
    return records


def _read_shard(path: Path, how: Labelling, size: int) -> NDArray[np.void] | None:
    """A shard of ``size`` labels, mapped into memory; None if it is missing, damaged, or other labels."""
    try:
        begin = check_sealed(path, KIND)
    except (FileNotFoundError, Damaged):
        return None
    with open(path, "rb") as file:
        file.seek(begin)
        if file.read(len(how.key)) != how.key:
            return None
    begin += len(how.key)
    if path.stat().st_size != begin + size * how.record.itemsize:
        return None
    return np.memmap(path, how.record, "r", offset=begin, shape=(size,))


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"{folder}: no space left for the teacher's labels: they take {math.ceil(size / 1e6):,} MB, and the disk "
            f"has {free / 1e6:,.0f} MB; keep them on another one (--labels), or fewer tokens of each (--top)"
        )


if __name__ == "__main__":
    explain(__doc__)
