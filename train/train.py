"""Trains a Llama on a text file.

    python -m train.train stories.txt --out out/stories

Ctrl-C saves and stops; the same command with --resume goes on where it stopped, with the same batches. The learning
rate warms up, stays, and falls linearly to zero over the last 30 % of the token budget (WSD), so a run may also be
resumed with another --tokens: a smaller budget ends it well, a larger one prolongs it.

Written to the --out folder, which run.py describes: tokenizer.model, checkpoint.pt, curve.csv, curve.png.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from fabella.architectures import expected_shapes
from fabella.console import INTERRUPTED, run_command
from fabella.errors import FabellaError, ModelFileError
from fabella.modelfile import LARGEST, Config

from .checkpoint import Checkpoint, check_tokenizer
from .curve import keep_curve
from .data import Tokens, batches, encode_text, hash_documents, read_documents, split_documents
from .evaluate import HeldOut, bits_per_byte, hold_out
from .export import DEFAULT_FORMAT, unstorable
from .loop import Plan, StopOnSignal, fit, learned_by_muon, make_loss
from .model import Llama
from .progress import say
from .run import RunFolder
from .tokenizer import SMALLEST_VOCABULARY, as_tokenizer, load_tokenizer, train_tokenizer

SAVE_EVERY = 180.0  # seconds between two checkpoints
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


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options, checked: what cannot be is said here, before any text is read."""
    parser = argparse.ArgumentParser(
        prog="python -m train.train",
        description="Train a Llama on a text file. Ctrl-C saves and stops; --resume goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, whole = parser.add_argument, _whole_number
    vocab_size = "tokens in the vocabulary; a short text needs a smaller one"
    add("text", type=Path, help="plain text (UTF-8) or .txt.xz; a line <|endoftext|> ends each document")
    add("--valid", type=Path, help="held-out text (without it, the last 1%% of the text)")
    add("--out", type=Path, required=True, help="folder for this run's files")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--tokens", type=whole(1, 10**15), default=20_000_000, help="how many tokens to train on, in all")
    add("--vocab-size", type=whole(SMALLEST_VOCABULARY, 65536), default=4096, help=vocab_size)
    add("--dim", type=whole(1, LARGEST["dim"]), default=256, help="width of the model")
    add("--hidden-dim", type=whole(1, LARGEST["hidden_dim"]), default=576, help="width of the feed-forward")
    add("--layers", type=whole(1, LARGEST["n_layers"]), default=4)
    add("--heads", type=whole(1, LARGEST["n_heads"]), default=8, help="attention heads")
    add(
        "--kv-heads",
        type=whole(1, LARGEST["n_kv_heads"]),
        default=4,
        help="key/value heads, which attention heads share",
    )
    add(
        "--context",
        type=whole(32, LARGEST["seq_len"]),
        default=512,
        help="longest sequence in tokens, a multiple of 32",
    )
    add("--batch-tokens", type=whole(32, 10**9), default=4096, help="tokens in a step, padding included")
    add("--learning-rate", type=_rate, default=4e-3, help="at its highest")
    add("--eval-every", type=whole(1, 10**15), default=500, help="steps between two validations")
    add("--seed", type=whole(0, LARGEST_SEED), default=1)
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="fuse operations by torch.compile")
    options = parser.parse_args(arguments)
    if options.context % 32:
        parser.error(f"argument --context: must be a multiple of 32, not {options.context}")
    if options.batch_tokens < options.context:
        problem = f"{options.batch_tokens} does not hold one --context of {options.context}"
        parser.error(f"argument --batch-tokens: {problem}")
    try:
        shape(options)
    except ModelFileError as error:
        parser.error(f"argument {OPTION_OF[error.field]}: {error.problem}")
    return options


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    """How the parser reads a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text[:40]!r}") from error
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, not {text[:40]}")
        return value

    return read


def _rate(text: str) -> float:
    """How the parser reads a learning rate."""
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, not {text[:40]!r}") from error
    if not 0 < value <= LARGEST_RATE:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most {LARGEST_RATE:g}, not {text[:40]}")
    return value


def shape(options: argparse.Namespace) -> Config:
    """The model that the options ask for; ``ModelFileError`` if no Llama can have that shape."""
    return Config(
        dim=options.dim,
        hidden_dim=options.hidden_dim,
        n_layers=options.layers,
        n_heads=options.heads,
        n_kv_heads=options.kv_heads,
        vocab_size=options.vocab_size,
        seq_len=options.context,
    )


def main() -> int:
    """The command line. Returns the exit status."""

    def body() -> int:
        options = parse_arguments()
        try:
            train(options)
        except KeyboardInterrupt:  # from the first step on, train() stops in good order
            kept = "the checkpoint is as it was" if options.resume else "nothing was saved"
            print(f"train: stopped before the first step; {kept}", file=sys.stderr)
            return INTERRUPTED
        return 0

    return run_command("train", body, (OSError, ValueError, FloatingPointError, MemoryError, FabellaError))


def train(options: argparse.Namespace) -> Checkpoint:
    """Train as the command's ``options`` say until the token budget is used or a signal asks to stop.

    Raises, in words, ``OSError`` (a file or folder that cannot be used; --resume and --out that do not fit),
    ``ValueError`` (unusable text or options) or ``FloatingPointError`` (the loss is not a number any more).
    ``KeyboardInterrupt`` if it is stopped before the first step; ``BrokenPipeError``, after saving, if nobody reads
    what it prints any more.
    """
    config = shape(options)
    check_size(config)
    folder = RunFolder(options.out)
    with StopOnSignal() as stop, folder.held(options.resume):
        folder.check_room(checkpoint_size(config))
        run = start_run(options, config)
        documents, held_out = read_text(options, run)
        if run.tokens >= options.tokens:
            keep_curve(run.curve, folder)
            learned = f"the run has learned from {run.tokens:,} tokens; ask for more (--tokens) to go on"
            print(f"Done already: {learned}. {folder.curve_picture}")
            return run
        tokens, measured_on = encode(options, run, documents, held_out)
        learn(options, run, tokens, measured_on, stop)
    return run


def learn(options: argparse.Namespace, run: Checkpoint, tokens: Tokens, held_out: HeldOut, stop: StopOnSignal) -> None:
    """Go through with the training, and say how it ended."""
    folder = RunFolder(options.out)
    torch.manual_seed(options.seed)
    model = Llama(run.config).to("cuda" if torch.cuda.is_available() else "cpu")
    loss_of = make_loss(model, options.compile)
    count = sum(parameter.numel() for parameter in model.parameters())
    text = f"{len(tokens.ids):,} tokens in an epoch; {options.tokens:,} to learn from"
    print(f"{count:,} parameters; {text}; held out: {held_out}; {model.token_embd.weight.device.type}", flush=True)
    stream = batches(tokens, options.context, options.batch_tokens, options.seed, run.step)
    plan = Plan(options.tokens, options.learning_rate, options.eval_every, SAVE_EVERY)
    fit(run, folder, model, loss_of, stream, lambda: bits_per_byte(model, held_out), plan, stop)
    if run.tokens < options.tokens:
        print(f"Stopped and saved at step {run.step:,}. To go on: the same command with --resume.")
    else:
        measured = f"{run.bits_per_byte:.4f} bits per byte on the held-out text ({held_out})"
        print(f"Done: {run.tokens:,} tokens, {measured}. {folder.curve_picture}")


def check_size(config: Config) -> None:
    """Say before the training what is known of the model. ``ValueError`` if it does not fit this machine's memory."""
    if reason := unstorable(config, DEFAULT_FORMAT):
        field, problem = reason.split(": ", 1)
        say(f"Note: {OPTION_OF[field]}: {problem}. To export this model will take --format.")
    count = sum(map(math.prod, expected_shapes(config).values()))
    needed = 4 * 4 * count  # weights, gradients and the optimizers' two averages
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names and not torch.cuda.is_available():
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > memory:
            raise ValueError(
                f"a model of {count:,} parameters needs {needed / 1e9:,.1f} GB to train, and this machine has "
                f"{memory / 1e9:,.1f} GB; choose a smaller one (--dim, --hidden-dim, --layers, --vocab-size)"
            )


def checkpoint_size(config: Config) -> int:
    """The bytes of a checkpoint: each weight, and one average of it from Muon or two from AdamW."""
    shapes = expected_shapes(config).items()
    return sum(4 * math.prod(shape) * (2 if learned_by_muon(name, shape) else 3) for name, shape in shapes)


def start_run(options: argparse.Namespace, config: Config) -> Checkpoint:
    """A new run's empty checkpoint, or with --resume the one in --out, whose shape must be that of the command."""
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    if not options.resume:
        return Checkpoint(config, kept)
    run = Checkpoint.load_to_go_on(options.out)
    for field, value in asdict(config).items():
        stored = getattr(run.config, field)
        if value != stored:
            name = OPTION_OF.get(field, field)
            raise ValueError(f"{name}: the checkpoint in {options.out} has {stored}, the command says {value}")
    for name in ("seed", "batch_tokens"):
        if run.options[name] != kept[name]:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option}: the run in {options.out} began with {run.options[name]}, not {kept[name]}")
    check_tokenizer(run, options.out)
    run.options = {**kept, "text": run.options["text"], "valid": run.options["valid"]}
    return run


def read_text(options: argparse.Namespace, run: Checkpoint) -> tuple[list[str], list[str]]:
    """The documents to learn from and those held out; ``ValueError`` if the run began with others."""
    documents = read_documents(options.text)
    if options.valid:
        held_out = read_documents(options.valid)
    else:
        documents, held_out = split_documents(documents)
    if not documents:
        raise ValueError(f"{options.text}: is too short to train on")
    learned, kept = (sum(map(len, part)) for part in (documents, held_out))
    count = f"{len(documents):,} document{'s' * (len(documents) > 1)}"
    print(f"{options.text}: {count}, {learned:,} characters; held out: {kept:,} characters", flush=True)
    text_hash, held_out_hash = hash_documents(documents), hash_documents(held_out)
    if text_hash == held_out_hash:
        say("Note: the held-out text is the text itself: bits per byte will say how well it is learned by heart.")
    if not options.resume:
        run.text_hash, run.held_out_hash = text_hash, held_out_hash
    valid = f"--valid {run.options['valid']}" if run.options["valid"] else "without --valid"
    began = f"is another text than the one this run began with ({run.options['text']}, {valid}); give that one"
    if run.text_hash != text_hash:
        raise ValueError(f"{options.text}: {began}")
    if run.held_out_hash != held_out_hash:
        raise ValueError(f"{options.valid or options.text}: {began}")
    return documents, held_out


def encode(
    options: argparse.Namespace, run: Checkpoint, documents: list[str], held_out: list[str]
) -> tuple[Tokens, HeldOut]:
    """The text to learn from and the held-out text as tokens. A run's first start trains the tokenizer."""
    folder = RunFolder(options.out)
    if not options.resume:
        train_tokenizer(documents, options.vocab_size, folder.tokenizer)
        run.tokenizer_hash = folder.hash_tokenizer()
    tokenizer = load_tokenizer(folder.tokenizer)
    tokens = encode_text(folder, run.text_hash, documents, tokenizer)
    if len(tokens.ids) < options.batch_tokens:
        raise ValueError(
            f"{options.text}: its {len(tokens.ids):,} tokens are fewer than --batch-tokens ({options.batch_tokens:,}); "
            "train on more text, or in smaller steps"
        )
    return tokens, hold_out(held_out, as_tokenizer(tokenizer), options.context)


if __name__ == "__main__":
    sys.exit(main())
