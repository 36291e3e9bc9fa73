"""Bits per byte: how many bits a model needs, on average, to tell the next byte of a text. Lower is better.

    python -m train.evaluate MODEL TEXT

MODEL is a run folder of train.train or a GGUF file. Unlike the loss per token, bits per byte compares models whose
vocabularies differ. The definition here: each document is told alone, from BOS on. Its first 512 tokens count (all of
them, if it has fewer): their bits, -log2 of the probability that the model gave each, are summed over the documents and
divided by the bytes that these tokens spell. The end of a document is not predicted. By this definition llama2.c's
stories260K has 0.963 bits per byte on the TinyStories validation text (tests/test_train.py checks that).
The rest of a longer document is not measured; how many bytes were is printed along.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from fabella.console import run_command
from fabella.errors import FabellaError
from fabella.tokenizer import Tokenizer

from .data import PADDING, read_documents
from .load import load_model
from .model import Llama
from .progress import Progress

COUNTED_TOKENS = 512
BATCH_TOKENS = 8192  # so that the logits of a batch fit in memory


@dataclass(frozen=True)
class HeldOut:
    """The text to measure on: the counted tokens of each document (``bos`` not among them), the bytes they spell."""

    documents: list[list[int]]
    n_bytes: int
    n_bytes_in_all: int  # of the whole documents
    bos: int

    def __str__(self) -> str:
        """What is counted, in words."""
        count = len(self.documents)
        documents = f"{count:,} document{'s' * (count > 1)}"
        if self.n_bytes == self.n_bytes_in_all:
            return f"{documents}, {self.n_bytes:,} bytes"
        longest = len(self.documents[-1])
        beginning = f"the first {longest} tokens of each" if count > 1 else f"its first {longest} tokens"
        return f"{documents}, {self.n_bytes:,} of {self.n_bytes_in_all:,} bytes ({beginning})"


def hold_out(documents: Sequence[str], tokenizer: Tokenizer, context: int) -> HeldOut:
    """Encode ``documents`` for measuring; of a model with a ``context`` below 512, only so many tokens count.

    Raises ``ValueError`` if nothing is left to measure on.
    """
    length = min(COUNTED_TOKENS, context)
    encoded: list[list[int]] = []
    with Progress("encoding held-out text", len(documents), " documents") as progress:
        for document in documents:
            encoded.append(first_tokens(document, tokenizer, length))
            progress.update(1)
    # Behind BOS, a document's first token spells no space: the tokenizer put that there.
    n_bytes = sum(len(tokenizer.decode([tokenizer.bos_id, *ids]).encode()) for ids in encoded)
    if not n_bytes:
        raise ValueError("the held-out text is empty: there is nothing to measure on")
    in_all = sum(len(document.encode("utf-8", "replace")) for document in documents)
    return HeldOut(sorted(filter(None, encoded), key=len), n_bytes, max(in_all, n_bytes), tokenizer.bos_id)


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
    left = text.documents
    with Progress("measuring", sum(map(len, left)), " tokens") as progress:
        while left:
            width = len(left[-1])  # the longest left, together with others of about its length
            rows = max(1, BATCH_TOKENS // width)
            left, batch = left[:-rows], left[-rows:]
            inputs = torch.full((len(batch), width), text.bos)
            targets = torch.full((len(batch), width), PADDING)
            for row, ids in enumerate(batch):
                inputs[row, 1 : len(ids)] = torch.tensor(ids[:-1])  # BOS, then every token but the last
                targets[row, : len(ids)] = torch.tensor(ids)
            logits = model(inputs.to(device)).float()  # [rows, width, vocab_size]
            nats += F.cross_entropy(
                logits.flatten(0, 1), targets.flatten().to(device), ignore_index=PADDING, reduction="sum"
            ).item()
            progress.update(sum(map(len, batch)))
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
