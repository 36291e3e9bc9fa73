"""Bits per byte: how many bits a model needs, on average, to tell the next byte of a text. Lower is better.

    python -m train.evaluate MODEL TEXT

MODEL is a run folder of train.train or a GGUF file. Unlike the loss per token, bits per byte compares models whose
vocabularies differ. The definition here: each document is told alone, from BOS on. Its first 512 tokens count (all of
them, if it has fewer): their bits, -log2 of the probability that the model gave each, are summed over the documents and
divided by the bytes that these tokens spell. The end of a document is not predicted. By this definition llama2.c's
stories260K has 0.963 bits per byte on the TinyStories validation text (tests/test_train.py checks that).
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

from fabella.errors import FabellaError
from fabella.tokenizer import Tokenizer

from .data import PADDING, read_documents
from .export import load_model
from .model import Llama

COUNTED_TOKENS = 512
BATCH_TOKENS = 8192  # so that the logits of a batch fit in memory


@dataclass(frozen=True)
class HeldOut:
    """The text to measure on: the counted tokens of each document (``bos`` not among them), the bytes they spell."""

    documents: list[list[int]]
    n_bytes: int
    bos: int


def hold_out(documents: Sequence[str], tokenizer: Tokenizer, context: int) -> HeldOut:
    """Encode ``documents`` for measuring; of a model with a ``context`` below 512, only so many tokens count."""
    length = min(COUNTED_TOKENS, context)
    encoded = [tokenizer.encode(document, bos=False)[:length] for document in documents]
    # Behind BOS, a document's first token spells no space: the tokenizer put that there.
    n_bytes = sum(len(tokenizer.decode([tokenizer.bos_id, *ids]).encode()) for ids in encoded)
    return HeldOut(sorted(encoded, key=len), n_bytes, tokenizer.bos_id)


@torch.no_grad()
def bits_per_byte(model: Llama, text: HeldOut) -> float:
    """Measure ``model`` on ``text``, by the definition above."""
    device = model.token_embd.weight.device
    nats = 0.0
    left = text.documents
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
    return nats / math.log(2) / text.n_bytes


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description="Measure bits per byte.")
    parser.add_argument("model", type=Path, help="the --out folder of train.train, or a .gguf file")
    parser.add_argument("text", type=Path, help="UTF-8 .txt or .txt.xz that the model was not trained on")
    options = parser.parse_args()
    try:
        model, tokenizer = load_model(options.model)
        text = hold_out(read_documents(options.text), tokenizer, model.config.seq_len)
    except (OSError, ValueError, FabellaError) as error:
        sys.exit(f"evaluate: {error}")
    print(
        f"{bits_per_byte(model, text):.4f} bits per byte on {len(text.documents):,} documents, {text.n_bytes:,} bytes"
    )


if __name__ == "__main__":
    main()
