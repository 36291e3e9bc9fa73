"""The options of a training's command: which there are, and how each is read. train.distill has them, too.

What cannot be is refused here, before any text is read: a number out of its bounds, a shape that no Llama can have.
What is left open, plan.py chooses for the text.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from fabella.config import Config
from fabella.errors import ModelFileError
from fabella.modelfile import LARGEST

from . import explain, plan
from .quantize import BITS
from .rounding import ROUND_FROM
from .sources import FIELD
from .tensorboard import check_installed
from .tokenizer import SMALLEST_VOCABULARY

LARGEST_SEED = 10**18 - 1
LARGEST_RATE = 1000.0
OPTION_OF = {  # the options that give the model its shape
    "dim": "--dim",
    "hidden_dim": "--hidden-dim",
    "n_layers": "--layers",
    "n_heads": "--heads",
    "n_kv_heads": "--kv-heads",
    "vocab_size": "--vocab-size",
    "seq_len": "--context",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training, which train.distill has, too."""
    add, whole = parser.add_argument, whole_number
    kinds = "a .txt (UTF-8), .txt.xz, .jsonl or .parquet file or a folder of such; in plain text a line <|endoftext|> "
    add("text", type=Path, help=f"{kinds}ends each document; or TinyStories, which is downloaded")
    add("--field", default=FIELD, help=f"of .jsonl and .parquet files, that holds the text (default: {FIELD})")
    add(
        "--valid",
        type=Path,
        help="held-out text (default: the last 5%% of the text)",
    )
    add("--out", type=Path, required=True, help="folder for this run's files")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--size", choices=plan.SIZES, help="of the model, in parameters; it sets its shape, --learning-rate and steps")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=number(0, 10**7), help="how long to train")
    budget.add_argument("--rounds", type=number(0, 10**6), help="how often to go through the text")
    budget.add_argument("--tokens", type=whole(1, 10**15), help="how many tokens to learn from, in all")
    add("--vocab-size", type=whole(SMALLEST_VOCABULARY, 65536), help="tokens in the vocabulary")
    add("--dim", type=whole(1, LARGEST["dim"]), help="width of the model")
    add("--hidden-dim", type=whole(1, LARGEST["hidden_dim"]), help="width of the feed-forward")
    add("--layers", type=whole(1, LARGEST["n_layers"]))
    add("--heads", type=whole(1, LARGEST["n_heads"]), help="attention heads")
    add("--kv-heads", type=whole(1, LARGEST["n_kv_heads"]), help="key/value heads, which attention heads share")
    add("--context", type=whole(32, LARGEST["seq_len"]), help="longest sequence in tokens, a multiple of 32")
    add("--batch-tokens", type=whole(32, 10**9), help="tokens in a step, padding included")
    add("--learning-rate", type=number(0, LARGEST_RATE), help="at its highest")
    add("--dropout", type=_dropout, help="share left out of each half layer's answer (small texts: 0.1)")
    last = f"learn to live with this format, in the last {100 * (1 - ROUND_FROM):.0f} %% of the tokens"
    add("--quantize-aware", choices=BITS, help=last)
    add("--eval-every", type=whole(1, 10**15), help="steps between two measurements of the held-out text")
    add("--tensorboard", action="store_true", help="write the curve for TensorBoard, too, into --out")
    add("--seed", type=whole(0, LARGEST_SEED), default=1)
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fuse operations by torch.compile, which takes half a minute at the start (default: yes)",
    )


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options that a ``parser`` with `add_options` reads, after a check of what they ask for."""
    options = parser.parse_args(arguments)
    try:
        check_shape(options)
        if options.tensorboard:
            check_installed()
    except ValueError as error:
        parser.error(f"argument {error}")
    return options


def check_shape(options: argparse.Namespace) -> None:
    """Raise ``ValueError`` if no Llama can have the shape that ``options`` give, as far as they do."""
    size = plan.SIZES[options.size] if options.size else None
    given = {name: getattr(options, name) or (size and getattr(size, name)) for name in plan.SHAPE}
    context, batch_tokens = given["context"], options.batch_tokens or math.inf
    if context and context % 32:
        raise ValueError(f"--context: must be a multiple of 32, not {context}")
    if context and batch_tokens < context:
        raise ValueError(f"--batch-tokens: {batch_tokens} does not hold one --context of {context}")
    if all(given.values()):
        shape(argparse.Namespace(**given, vocab_size=options.vocab_size or SMALLEST_VOCABULARY))


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """How the parser reads a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        # int() would take "1_000" and " 5" as well; more than 18 digits no option has.
        if not re.fullmatch("[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text[:40]!r}")
        return int(text)

    return read


def number(above: float, high: float) -> Callable[[str], float]:
    """How the parser reads a number above ``above``, at most ``high``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be a number, not {text[:40]!r}") from error
        if not above < value <= high:
            raise argparse.ArgumentTypeError(f"must be above {above:g} and at most {high:g}, not {text[:40]}")
        return value

    return read


def _dropout(text: str) -> float:
    """How the parser reads a share that may be nothing, but not all."""
    return 0.0 if text in ("0", "0.0") else number(0, 0.9)(text)


def shape(options: argparse.Namespace) -> Config:
    """The model that the options ask for; ``ValueError`` if no Llama can have that shape."""
    try:
        return Config(
            dim=options.dim,
            hidden_dim=options.hidden_dim,
            n_layers=options.layers,
            n_heads=options.heads,
            n_kv_heads=options.kv_heads,
            vocab_size=options.vocab_size,
            seq_len=options.context,
        )
    except ModelFileError as error:
        raise ValueError(f"{OPTION_OF[error.field]}: {error.problem}") from error


if __name__ == "__main__":
    explain(__doc__)
