"""Bits per byte: how many bits a model needs, on average, to tell the next byte of a text. Lower is better.

    python -m train.evaluate MODEL [MODEL ...] TEXT
    python -m train.evaluate MODEL [MODEL ...] TEXT --report report.html   # and much more, to look at

MODEL is a run folder of train.train or a GGUF file. Unlike the loss per token, bits per byte compares models whose
vocabularies differ. The definition here: each document is told alone, from BOS on. Its first 512 tokens count (all of
them, if it has fewer): their bits, -log2 of the probability that the model gave each, are summed over the documents and
divided by the bytes that these tokens spell. The end of a document is not predicted. By this definition llama2.c's
stories260K has 0.963 bits per byte on the TinyStories validation text (tests/test_train.py checks that).
The rest of a longer document is not measured; how many bytes were is printed along. (train.train measures whole
documents, so that a small held-out text counts to its end, and so does the report; what else that has, report.py says.)
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fabella.console import run_command
from fabella.errors import FabellaError
from fabella.tokenizer import Tokenizer

from .data import PADDING
from .files import check_output, replacing
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
    document: int = 0  # whose tokens they are


@dataclass(frozen=True)
class HeldOut:
    """The text to measure on: windows of ``n_documents``, and the bytes that what counts spells."""

    windows: list[Window]
    n_documents: int
    n_given: int  # documents, with those that have no tokens
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
        longest = max(window.counted for window in self.windows)
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
        for number, document in enumerate(documents):
            ids = tokenizer.encode(document, bos=False) if whole else first_tokens(document, tokenizer, length)
            windows += (window._replace(document=number) for window in windows_of([tokenizer.bos_id, *ids], context))
            n_documents += bool(ids)
            # Behind BOS, a document's first token spells no space: the tokenizer put that there.
            n_bytes += len(tokenizer.decode([tokenizer.bos_id, *ids]).encode())
            progress.update(1)
    if not n_bytes:
        raise ValueError("the held-out text is empty: there is nothing to measure on")
    in_all = sum(len(document.encode("utf-8", "replace")) for document in documents)
    return HeldOut(windows, n_documents, len(documents), n_bytes, max(in_all, n_bytes))


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


def bits_per_byte(model: Llama, text: HeldOut) -> float:
    """Measure ``model`` on ``text``, by the definition above."""
    return float(bits_of_documents(model, text).sum()) / text.n_bytes


def bits_of_documents(model: Llama, text: HeldOut) -> NDArray[np.float64]:
    """How many bits ``model`` needs to tell what counts of each document: [n_given]."""
    bits = np.zeros(text.n_given)
    with Progress("measuring", sum(window.counted for window in text.windows), " tokens") as progress:
        for batch, nats in nats_of_windows(model, text.windows):
            np.add.at(bits, [window.document for window in batch], nats / math.log(2))
            progress.update(sum(window.counted for window in batch))
    return bits


@torch.no_grad()
def nats_of_windows(model: Llama, windows: list[Window]) -> Iterator[tuple[list[Window], NDArray[np.float64]]]:
    """How unlikely ``model`` finds what counts of each window: yields some windows, and the nats of each of these.

    The longest come first, as many of about one length at once as memory has room for.
    """
    device = model.token_embd.weight.device
    windows = sorted(windows, key=lambda window: len(window.tokens))
    while windows:
        width = len(windows[-1].tokens) - 1
        rows = max(1, BATCH_LOGITS // (width * model.config.vocab_size))
        windows, batch = windows[:-rows], windows[-rows:]
        inputs = torch.zeros((len(batch), width), dtype=torch.int64)
        targets = torch.full((len(batch), width), PADDING)
        for row, (tokens, counted, _) in enumerate(batch):
            end = len(tokens) - 1
            inputs[row, :end] = torch.tensor(tokens[:-1])
            targets[row, end - counted : end] = torch.tensor(tokens[-counted:])
        logits = model(inputs.to(device)).float()  # [rows, width, vocab_size]
        nats = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten().to(device), ignore_index=PADDING, reduction="none"
        )
        yield batch, nats.view(len(batch), width).sum(dim=1).double().cpu().numpy()


def main() -> int:
    """The command line. Returns the exit status."""
    return run_command("evaluate", lambda: evaluate(parse_arguments()), (OSError, ValueError, FabellaError))


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate", description="Measure bits per byte; with --report, compare models in a page."
    )
    parser.add_argument(
        "models", metavar="model", type=Path, nargs="+", help="the --out folder of train.train, or a .gguf file"
    )
    parser.add_argument("text", type=Path, help="a text, as train.train reads it, that the models were not trained on")
    report = parser.add_argument_group("a report")
    report.add_argument("--report", metavar="FILE", type=Path, help="the .html file to write")
    report.add_argument("--prompts", metavar="FILE", type=Path, help="one per line, or a list in .yaml (default: ours)")
    report.add_argument("--training-text", metavar="TEXT", type=Path, help="to look for copied passages in")
    report.add_argument("--judge", metavar="MODEL", type=Path, help="a stronger model, to measure the stories with")
    report.add_argument("--quantised", action="store_true", help="each model in F32 and in each quantised format")
    return parser.parse_args()


def evaluate(options: argparse.Namespace) -> None:
    """Measure as the command's ``options`` say. Raises ``OSError``, ``ValueError`` or ``FabellaError``, in words."""
    if options.report:
        write_report(options)
        return
    for name in ("prompts", "training_text", "judge", "quantised"):
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} is for a report: name its file, --report FILE")
    documents = read_documents(options.text)
    for path in options.models:
        model, tokenizer = load_model(path)
        text = hold_out(documents, tokenizer, model.config.seq_len)
        value = bits_per_byte(model, text)
        if not math.isfinite(value):
            raise ValueError(f"{path}: its answers are no finite numbers")
        which = f"{path}: " if len(options.models) > 1 else ""
        print(f"{which}{value:.4f} bits per byte on {text}")


def write_report(options: argparse.Namespace) -> None:
    """Compare models as the command's ``options`` say, and write a page about it. Raises as `evaluate`."""
    from .compare import PROMPTS, candidates, compare, read_prompts
    from .report import render

    # Whatever is wrong with the command is said before anything is computed.
    check_output(options.report)
    prompts = read_prompts(options.prompts or PROMPTS)
    models = candidates(options.models, options.quantised)
    for path in (options.judge, options.training_text):
        if path and not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
    inputs = [*options.models, options.text, options.judge, options.training_text, options.prompts]
    if any(path and path.exists() and options.report.exists() and path.samefile(options.report) for path in inputs):
        raise ValueError(f"{options.report}: is read for the report; write to another file")
    text = options.text.resolve().name.encode("utf-8", "replace").decode()
    comparison = compare(models, (text, read_documents(options.text)), prompts, options.judge, options.training_text)
    with replacing(options.report) as half:
        half.write_text(render(comparison), encoding="utf-8")
    print(f"{options.report}: {options.report.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
