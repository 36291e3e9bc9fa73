"""Bits per byte: how many bits a model needs, on average, to tell the next byte of a text. Lower is better.

    python -m train.evaluate MODEL TEXT

MODEL is a run folder of train.train or a GGUF file. Unlike the loss per token, bits per byte compares models whose
vocabularies differ. The definition here: each document is told alone, from BOS on. Its first 512 tokens count (all of
them, if it has fewer): their bits, -log2 of the probability that the model gave each, are summed over the documents and
divided by the bytes that these tokens spell. The end of a document is not predicted. By this definition llama2.c's
stories260K has 0.963 bits per byte on the TinyStories validation text (tests/test_train.py checks that).
The rest of a longer document is not measured; how many bytes were is printed along. (train.train measures whole
documents, so that a small held-out text counts to its end.)
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fabella.console import run_command
from fabella.errors import FabellaError
from fabella.tokenizer import Tokenizer

from .data import PADDING
from .load import load_model
from .model import Llama
from .progress import Progress
from .sources import read_documents

COUNTED_TOKENS = 512
BATCH_LOGITS = 1 << 25  # of a batch, so that they fit in memory


class Window(NamedTuple):
    """Tokens that a model reads at once. The last ``counted`` are measured, those before them are what it knows."""

    tokens: list[int]
    counted: int


@dataclass(frozen=True)
class HeldOut:
    """The text to measure on: windows of ``n_documents``, shortest first, and the bytes that what counts spells."""

    windows: list[Window]
    n_documents: int
    n_bytes: int
    n_bytes_in_all: int  # of the whole documents

    @property
    def n_tokens(self) -> int:
        """How many tokens a model reads to be measured."""
        return sum(len(window.tokens) - 1 for window in self.windows)

    def __str__(self) -> str:
        """What is counted, in words."""
        documents = f"{self.n_documents:,} document{'s' * (self.n_documents > 1)}"
        if self.n_bytes == self.n_bytes_in_all:
            return f"{documents}, {self.n_bytes:,} bytes"
        longest = self.windows[-1].counted
        beginning = f"the first {longest} tokens of each" if self.n_documents > 1 else f"its first {longest} tokens"
        return f"{documents}, {self.n_bytes:,} of {self.n_bytes_in_all:,} bytes ({beginning})"


def hold_out(documents: Sequence[str], tokenizer: Tokenizer, context: int, whole: bool = False) -> HeldOut:
    """Encode ``documents`` for measuring a model with a ``context`` of so many tokens.

    The first 512 tokens of each document count, or as many as the context holds; with ``whole``, all of them, each
    known by half a context of what precedes it, or more. Raises ``ValueError`` if nothing is left to measure on.
    """
    length = min(COUNTED_TOKENS, context)
    windows: list[Window] = []
    n_bytes = n_documents = 0
    with Progress("encoding held-out text", len(documents), " documents") as progress:
        for document in documents:
            ids = tokenizer.encode(document, bos=False) if whole else first_tokens(document, tokenizer, length)
            windows += windows_of([tokenizer.bos_id, *ids], context)
            n_documents += bool(ids)
            # Behind BOS, a document's first token spells no space: the tokenizer put that there.
            n_bytes += len(tokenizer.decode([tokenizer.bos_id, *ids]).encode())
            progress.update(1)
    if not n_bytes:
        raise ValueError("the held-out text is empty: there is nothing to measure on")
    in_all = sum(len(document.encode("utf-8", "replace")) for document in documents)
    windows.sort(key=lambda window: len(window.tokens))
    return HeldOut(windows, n_documents, n_bytes, max(in_all, n_bytes))


def windows_of(tokens: list[int], context: int) -> Iterator[Window]:
    """Windows of which each token but the first counts in one; the last token of a window is read by none."""
    known = 1
    while known < len(tokens):
        begin = max(0, known - context // 2) if known > 1 else 0
        end = min(len(tokens), begin + context + 1)
        yield Window(tokens[begin:end], end - known)
        known = end


def first_tokens(document: str, tokenizer: Tokenizer, length: int) -> list[int]:
    """The document's first ``length`` tokens. Of a long one only the beginning is encoded.

    That is enough when it has twice as many tokens: how a text ends does not reach so far back.
    """
    end = 16 * length
    while end < len(document):
        ids = tokenizer.encode(document[:end], bos=False)
        if len(ids) >= 2 * length:
            return ids[:length]
        end *= 2
    return tokenizer.encode(document, bos=False)[:length]


@torch.no_grad()
def bits_per_byte(model: Llama, text: HeldOut) -> float:
    """Measure ``model`` on ``text``, by the definition above."""
    device = model.token_embd.weight.device
    nats = 0.0
    left = text.windows
    with Progress("measuring", sum(window.counted for window in left), " tokens") as progress:
        while left:
            width = len(left[-1].tokens) - 1  # the longest left, together with others of about its length
            rows = max(1, BATCH_LOGITS // (width * model.config.vocab_size))
            left, batch = left[:-rows], left[-rows:]
            inputs = torch.zeros((len(batch), width), dtype=torch.int64)
            targets = torch.full((len(batch), width), PADDING)
            for row, (tokens, counted) in enumerate(batch):
                end = len(tokens) - 1
                inputs[row, :end] = torch.tensor(tokens[:-1])
                targets[row, end - counted : end] = torch.tensor(tokens[-counted:])
            logits = model(inputs.to(device)).float()  # [rows, width, vocab_size]
            nats += F.cross_entropy(
                logits.flatten(0, 1), targets.flatten().to(device), ignore_index=PADDING, reduction="sum"
            ).item()
            progress.update(sum(window.counted for window in batch))
    return nats / math.log(2) / text.n_bytes


def main() -> int:
    """The command line. Returns the exit status."""
    return run_command("evaluate", lambda: evaluate(parse_arguments()), (OSError, ValueError, FabellaError))


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description="Measure bits per byte.")
    parser.add_argument("model", type=Path, help="the --out folder of train.train, or a .gguf file")
    parser.add_argument("text", type=Path, help="UTF-8 .txt or .txt.xz that the model was not trained on")
    return parser.parse_args()


def evaluate(options: argparse.Namespace) -> None:
    """Measure as the command's ``options`` say. Raises ``OSError``, ``ValueError`` or ``FabellaError``, in words."""
    model, tokenizer = load_model(options.model)
    text = hold_out(read_documents(options.text), tokenizer, model.config.seq_len)
    value = bits_per_byte(model, text)
    if not math.isfinite(value):
        raise ValueError(f"{options.model}: its answers are no finite numbers")
    print(f"{value:.4f} bits per byte on {text}")


if __name__ == "__main__":
    sys.exit(main())
