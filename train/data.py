"""Turns documents into batches of token ids.

Every document becomes BOS + tokens + EOS. Training rows never mix documents: a row is one whole document, or a piece of
one longer than the context, so that a model learns stories as it will tell them: from BOS, at position 0.

Rows of similar length share a batch, which leaves little padding. The order is shuffled, but by (seed, epoch) alone, so
that a resumed run sees exactly what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from . import explain
from .progress import Progress
from .run import RunFolder
from .sources import read_documents
from .text import hash_documents
from .tokenizer import BOS, EOS, cut_text

__all__ = ["PADDING", "Tokens", "batches", "encode_documents", "encode_text", "hash_documents", "read_documents"]

T = TypeVar("T")

PADDING = -1  # as a target: not counted in the loss
LENGTH_STEP = 32  # row lengths are rounded up to this: fewer shapes to allocate, faster kernels
LONGEST_PIECE = 100_000  # characters encoded in one piece: the cost grows with its length
AT_ONCE = 4_000_000  # characters encoded before what comes of them is stored


@dataclass(frozen=True)
class Tokens:
    """Encoded documents, one after the other: ``ids`` uint16 [n]; document i is ``ids[starts[i]:starts[i + 1]]``."""

    ids: NDArray[np.uint16]  # in memory, or a file of which only the pages in use are
    starts: NDArray[np.int64]


def encode_documents(documents: Iterable[str], tokenizer: SentencePieceProcessor, size: int = 0) -> Iterator[list[int]]:
    """BOS + tokens + EOS of each document, encoded on all cores; ``size`` characters are expected, for the bar."""
    # A piece that continues a document follows a newline, which no token contains: so it gets no space at its front.
    newline = len(tokenizer.encode("\n"))
    waiting: list[list[str]] = []  # documents in pieces
    n_waiting = 0

    def encode_waiting() -> Iterator[list[int]]:
        texts = ["\n" * (number > 0) + piece for pieces in waiting for number, piece in enumerate(pieces)]
        encoded = iter(tokenizer.encode(texts, num_threads=os.cpu_count() or 1))
        for pieces in waiting:
            ids = [BOS]
            for number in range(len(pieces)):
                ids += next(encoded)[newline * (number > 0) :]
            yield [*ids, EOS]

    with Progress("encoding", size, " characters") as progress:
        for document in documents:
            waiting.append(list(cut_text(document, LONGEST_PIECE)))
            n_waiting += len(document)
            if n_waiting >= AT_ONCE:
                yield from encode_waiting()
                progress.update(n_waiting)
                waiting.clear()
                n_waiting = 0
        yield from encode_waiting()


def encode_text(
    folder: RunFolder, key: str, documents: Iterable[str], tokenizer: SentencePieceProcessor, size: int = 0
) -> Tokens:
    """The documents of the text whose ``key`` is given, encoded; kept in the run's folder for the next start."""
    if (tokens := read_tokens(folder, key, tokenizer)) is not None:
        return tokens

    def parts() -> Iterator[bytes]:
        """What is kept: the ids, then where each document starts, then how many starts there are."""
        starts = [0]
        for ids in encode_documents(documents, tokenizer, size):
            starts.append(starts[-1] + len(ids))
            yield np.array(ids, "<u2").tobytes()
        yield np.array([*starts, len(starts)], "<i8").tobytes()

    return _as_tokens(folder.write_cache(_name(key, tokenizer), parts))


def read_tokens(folder: RunFolder, key: str, tokenizer: SentencePieceProcessor) -> Tokens | None:
    """What `encode_text` has kept in a run's folder; None if it is not there, damaged, or of another text."""
    stored = folder.read_cache(_name(key, tokenizer))
    return None if stored is None else _as_tokens(stored)


def _name(key: str, tokenizer: SentencePieceProcessor) -> bytes:
    return hashlib.sha256(tokenizer.serialized_model_proto() + key.encode()).digest()


def _as_tokens(stored: NDArray[np.uint8]) -> Tokens:
    count = int(stored[-8:].view("<i8")[0])
    begin = len(stored) - 8 * (count + 1)
    return Tokens(stored[:begin].view("<u2"), stored[begin:-8].view("<i8"))


def cut_rows(tokens: Tokens, length: int) -> NDArray[np.int64]:
    """Rows as (start, end) into ``tokens.ids``: [rows, 2], each up to ``length`` inputs plus the last one's target.

    A document longer than that is cut; its last row reaches back so that it is full, too, and has context to use.
    """
    rows: list[tuple[int, int]] = []
    for first, last in zip(tokens.starts[:-1].tolist(), tokens.starts[1:].tolist(), strict=True):
        start = first
        while last - start > length + 1:
            rows.append((start, start + length + 1))
            start += length
        rows.append((max(first, min(start, last - length - 1)), last))
    return np.array(rows, dtype=np.int64)


def plan_epoch(rows: NDArray[np.int64], batch_tokens: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The batches of one pass over the text: each an array of row numbers, padded size at most ``batch_tokens``."""
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(rows))
    lengths = rows[:, 1] - rows[:, 0] - 1
    batches: list[NDArray[np.int64]] = []
    for pool in np.array_split(order, max(1, lengths.sum() // (50 * batch_tokens))):  # about 50 batches each
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        begin = 0
        for end in range(1, len(pool) + 1):
            full = end == len(pool) or (end + 1 - begin) * padded(lengths[pool[end]]) > batch_tokens
            if full:
                batches.append(pool[begin:end])
                begin = end
    return [batches[i] for i in random.permutation(len(batches))]


def padded(length: int) -> int:
    """The width of a batch whose longest row has ``length`` inputs."""
    return -(-int(length) // LENGTH_STEP) * LENGTH_STEP


def make_batch(tokens: Tokens, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (the inputs shifted by one), int64 [rows, longest]; padding is EOS with target ``PADDING``."""
    width = padded(max(end - start - 1 for start, end in rows))
    inputs = np.full((len(rows), width), EOS, dtype=np.int64)
    targets = np.full((len(rows), width), PADDING, dtype=np.int64)
    for i, (start, end) in enumerate(rows):
        inputs[i, : end - start - 1] = tokens.ids[start : end - 1]
        targets[i, : end - start - 1] = tokens.ids[start + 1 : end]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def batches(
    tokens: Tokens, length: int, batch_tokens: int, seed: int, step: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches (inputs, targets), shuffled anew each epoch, beginning with that of ``step``."""
    for rows in row_batches(tokens, length, batch_tokens, seed, step):
        yield make_batch(tokens, rows)


def row_batches(
    tokens: Tokens, length: int, batch_tokens: int, seed: int, step: int = 0
) -> Iterator[NDArray[np.int64]]:
    """The rows of each of these batches, as `cut_rows` has them: [rows, 2]."""
    rows = cut_rows(tokens, length)
    for batch in endless(lambda epoch: plan_epoch(rows, batch_tokens, seed, epoch), step):
        yield rows[batch]


def endless(plan: Callable[[int], Sequence[T]], step: int) -> Iterator[T]:
    """What is planned for round 0, 1, 2 and so on, one after the other, beginning with that of ``step``."""
    number = 0
    while True:
        batches = plan(number)
        yield from batches[step:]
        step = max(0, step - len(batches))
        number += 1


if __name__ == "__main__":
    explain(__doc__)
