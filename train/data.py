"""Turns a text file into batches of token ids.

A text holds documents (stories), each ended by a line ``<|endoftext|>``; a text without such lines is one document.
Every document becomes BOS + tokens + EOS. Training rows never mix documents: a row is one whole document, or a piece of
one longer than the context, so that a model learns stories as it will tell them: from BOS, at position 0.

Rows of similar length share a batch, which leaves little padding. The order is shuffled, but by (seed, epoch) alone, so
that a resumed run sees exactly what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor
from tqdm import tqdm  # type: ignore[import-untyped]

from .tokenizer import BOS, EOS

END_OF_TEXT = "<|endoftext|>"
PADDING = -1  # as a target: not counted in the loss
LENGTH_STEP = 32  # row lengths are rounded up to this: fewer shapes to allocate, faster kernels


def read_documents(path: Path) -> list[str]:
    """The documents of a ``.txt`` or ``.txt.xz`` file (UTF-8), without surrounding newlines and empty ones."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such text file")
    try:
        raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        text = raw.decode("utf-8")
    except lzma.LZMAError as error:
        raise ValueError(f"{path}: not a complete .xz file ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8 text; convert the file first (iconv)") from error
    text = text.replace("\r\n", "\n")
    documents = [document.strip("\n") for document in text.split(END_OF_TEXT)]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise ValueError(f"{path}: holds no text")
    return documents


def split_documents(documents: list[str], held_out: float = 0.01) -> tuple[list[str], list[str]]:
    """Keep the last ``held_out`` of the documents (at least one) for validation; of a single one, its last part."""
    if len(documents) == 1:
        text = documents[0]
        cut = len(text) - max(1, int(len(text) * held_out))
        return [text[:cut]], [text[cut:]]
    count = max(1, int(len(documents) * held_out))
    return documents[:-count], documents[-count:]


@dataclass(frozen=True)
class Tokens:
    """Encoded documents, one after the other: ``ids`` uint16 [n]; document i is ``ids[starts[i]:starts[i + 1]]``."""

    ids: NDArray[np.uint16]
    starts: NDArray[np.int64]


def encode_documents(documents: list[str], tokenizer: SentencePieceProcessor, cache: Path) -> Tokens:
    """BOS + tokens + EOS for every document; kept under ``cache``, by the hash of the text and of the tokenizer."""
    digest = hashlib.sha256(tokenizer.serialized_model_proto())
    for document in documents:
        digest.update(document.encode() + b"\0")
    path = cache / f"tokens-{digest.hexdigest()[:16]}.npz"
    if path.is_file():
        stored = np.load(path)
        return Tokens(stored["ids"], stored["starts"])

    encoded = [
        np.array([BOS, *tokenizer.encode(document), EOS], dtype=np.uint16)
        for document in tqdm(documents, desc="encoding", unit=" documents", leave=False)
    ]
    starts = np.cumsum([0, *(len(ids) for ids in encoded)], dtype=np.int64)
    tokens = Tokens(np.concatenate(encoded), starts)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, ids=tokens.ids, starts=tokens.starts)
    temporary.replace(path)
    return tokens


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
    rows = cut_rows(tokens, length)
    epoch = 0
    while True:
        plan = plan_epoch(rows, batch_tokens, seed, epoch)
        for batch in plan[step:]:
            yield make_batch(tokens, rows[batch])
        step = max(0, step - len(plan))
        epoch += 1
