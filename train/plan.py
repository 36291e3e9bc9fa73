"""What to train on a text, for how long, and what will come of it: known before anything is computed.

The text decides the model's size and its vocabulary, and how often to go through it; the size decides the rest. Each
value that the command gives stays as it is. The numbers are rules of thumb; LOG.md has the trials behind some.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from fabella.architectures import expected_shapes
from fabella.formats import FORMATS
from fabella.modelfile import Config

from . import explain
from .text import Text
from .tokenizer import COVERAGE_OF_MANY, SMALLEST_VOCABULARY, SPECIAL, count_needed

ROUNDS = 8  # through a small text: about where a small model begins to know it by heart
MANY_ROUNDS = 4  # from here on dropout helps
DROPOUT = 0.1
MEASUREMENTS = 20  # of the held-out text in a run, or more
MOST_MEASURING = 0.1  # of the time
FORWARD = 1 / 3  # what a token costs to measure, where to learn from it is 1
SMALL_TEXT, MIDDLE_TEXT, LARGE_TEXT = 100_000, 3_000_000, 100_000_000  # characters


@dataclass(frozen=True)
class Size:
    """A model's shape, and what training one of that shape takes."""

    dim: int
    hidden_dim: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    vocab_size: int  # the largest that is chosen for it
    batch_tokens: int
    learning_rate: float
    tokens: int  # that it can make use of


# llama2.c's shapes, but that 260K is 160 wide inside and not 172, which Q8_0 cannot store; 1M and 4M are our own.
SIZES = {
    "260K": Size(64, 160, 5, 8, 4, 512, 512, 2048, 8e-3, 5_000_000),
    "1M": Size(128, 320, 5, 4, 2, 512, 2048, 2048, 6e-3, 10_000_000),
    "4M": Size(256, 576, 4, 8, 4, 512, 4096, 4096, 4e-3, 20_000_000),
    "15M": Size(288, 768, 6, 6, 6, 256, 32768, 8192, 3e-3, 100_000_000),
    "42M": Size(512, 1376, 8, 8, 8, 1024, 32768, 32768, 2e-3, 300_000_000),
    "110M": Size(768, 2048, 12, 12, 12, 1024, 32768, 65536, 1e-3, 1_000_000_000),
}
SHAPE = ("dim", "hidden_dim", "layers", "heads", "kv_heads", "context")


def choose_model(options: argparse.Namespace, text: Text, fast: bool) -> None:
    """Fill in what ``options`` leaves open (None) of the model; ``fast``: there is a GPU."""
    if options.size is None:
        options.size = choose_size(text.n_characters, fast)
    size = SIZES[options.size]
    for name in SHAPE:
        if getattr(options, name) is None:
            setattr(options, name, getattr(size, name))
    options.vocab_is_chosen = options.vocab_size is None
    if options.vocab_size is None:
        options.vocab_size = choose_vocabulary(text, size.vocab_size)


def choose_size(n_characters: int, fast: bool) -> str:
    """The name of the size for a text of so many characters."""
    if n_characters < SMALL_TEXT:
        return "260K"
    if n_characters < MIDDLE_TEXT:
        return "1M"
    return "15M" if fast and n_characters >= LARGE_TEXT else "4M"


def choose_vocabulary(text: Text, largest: int) -> int:
    """The tokens that suit a text: 1,024 for 300 KB, 4,096 for 33 MB; more where its script has many characters."""
    suits = 1024 * (text.n_bytes / 300_000) ** 0.3
    size = min(largest, 2 ** int(math.log2(suits)))
    script = 2 * count_needed(text.characters, COVERAGE_OF_MANY)  # as many tokens of several characters as of one
    if script > size - SPECIAL:
        size = min(2 ** math.ceil(math.log2(script + SPECIAL)), 16384)
    return max(SMALLEST_VOCABULARY, size)


def choose_course(options: argparse.Namespace, n_tokens: int) -> None:
    """Fill in how to train, now that the text is known to have ``n_tokens`` to learn from."""
    size = SIZES[options.size]
    if options.batch_tokens is None:
        few = 2 ** int(math.log2(max(1, n_tokens / 32)))  # of a small text no steps so large that there are few
        options.batch_tokens = max(options.context, min(size.batch_tokens, few))
    if options.learning_rate is None:
        options.learning_rate = size.learning_rate
    if options.rounds:
        options.tokens = rounded(options.rounds * n_tokens)
    if options.tokens is None:
        options.tokens = rounded(suggested_tokens(size, n_tokens))
    if options.dropout is None:
        options.dropout = DROPOUT if options.tokens > MANY_ROUNDS * n_tokens else 0.0


def measure_every(options: argparse.Namespace, n_tokens: int, n_held_out: int) -> int:
    """After how many steps to measure on ``n_held_out`` tokens: twice a round through ``n_tokens``, or more often.

    But not so often that measuring takes more than a tenth of the time.
    """
    often = min(n_tokens / 2, options.tokens / MEASUREMENTS)
    return math.ceil(max(often, n_held_out * FORWARD / MOST_MEASURING) / options.batch_tokens)


def suggested_tokens(size: Size, n_tokens: int) -> int:
    """How many tokens to learn from, of a text of ``n_tokens``."""
    return min(ROUNDS * n_tokens, size.tokens)


def rounded(tokens: float) -> int:
    """A number of tokens with two or three digits that count."""
    unit = 10 ** max(0, int(math.log10(max(1, tokens))) - 2)
    return max(1, round(tokens / unit) * unit)


def count_parameters(config: Config) -> int:
    """How many numbers a model of this shape has."""
    return sum(map(math.prod, expected_shapes(config).values()))


def file_size(config: Config, format: str) -> int:
    """About how many bytes the model's file will have."""
    block = FORMATS[format]
    matrices = sum(math.prod(shape) for shape in expected_shapes(config).values() if len(shape) == 2)
    vocabulary = 25 * config.vocab_size
    return matrices * block.block_size // block.block + 4 * (count_parameters(config) - matrices) + vocabulary


def expectation(options: argparse.Namespace, n_bytes: int, n_tokens: int) -> str:
    """What will come of it, in words."""
    rounds = options.tokens / n_tokens
    size = SIZES[options.size]
    if n_bytes < SMALL_TEXT:
        words = "so small a text teaches words and phrases, hardly sentences; a model that knows the language and is "
        words += "fine-tuned on it (train.finetune) will tell more"
    elif n_bytes < MIDDLE_TEXT:
        words = "sentences in the manner of the text, without much sense from one to the next"
    else:
        words = "sentences in the manner of the text, the simpler it is the better"
    if rounds > 2 * ROUNDS:
        good = suggested_tokens(size, n_tokens) / n_tokens
        words += (
            f". {rounds:,.0f} rounds are many: it will begin to learn the text by heart; suggested: --rounds {good:.0f}"
        )
    return words


def duration(seconds: float) -> str:
    """A time in words, as exact as a forecast is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 86400:.1f} days"


if __name__ == "__main__":
    explain(__doc__)
