"""Trains a Llama on a text.

    python -m train.train stories.txt --out out/stories

It looks at the text first and says what it is going to do, how long that will take here, and what to expect
(announce.py). What is not asked for (options.py) is chosen for the text (plan.py). Ctrl-C saves and stops; the same
command with --resume goes on where it stopped, as if it had not. The learning rate warms up, stays, and falls linearly
to zero over the last 30 % of the token budget (WSD), so a run may also be resumed with another --tokens: a smaller
budget ends it well, a larger one prolongs it. The model that is best on the held-out text is kept, and is what export,
sample and evaluate take.

Several processes train one model together: torchrun --nproc-per-node 2 -m train.train ... (together.py).

Written to the --out folder, which run.py describes: tokenizer.model, checkpoint.pt, best.pt, curve.csv, curve.png.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from fabella.architectures import expected_shapes
from fabella.config import Config
from fabella.console import INTERRUPTED, run_command
from fabella.errors import FabellaError

from . import plan, tinystories
from .announce import describe, say_end, tell, too_small
from .checkpoint import Checkpoint, check_tokenizer
from .curve import keep_curve
from .data import Tokens, encode_text, hash_documents, read_tokens
from .evaluate import HeldOut, bits_per_byte, hold_out
from .export import DEFAULT_FORMAT, unstorable
from .lesson import TEXT, Lesson
from .loop import SAVE_EVERY, Plan, StopOnSignal, fit, learned_by_muon, lost_in_words, make_optimizers, tokens_a_second
from .model import Llama
from .options import OPTION_OF, add_options, check_shape, parse, shape
from .progress import say
from .run import RunFolder
from .sources import documents_of
from .tensorboard import EventLog
from .text import Part, Text, first_characters
from .together import averaging, from_first, rank, together
from .tokenizer import TooLarge, as_tokenizer, load_tokenizer, train_tokenizer

# Of a resumed run, unless the command says others.
KEPT = ("size", "learning_rate", "dropout", "eval_every", "tokens", "quantize_aware")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options, checked: what cannot be is said here, before any text is read.

    What is None is chosen later, for the text.
    """
    parser = argparse.ArgumentParser(
        prog="python -m train.train",
        description="Train a Llama on a text. What is not given is chosen for the text. Ctrl-C saves and stops; "
        "--resume goes on.",
    )
    add_options(parser)
    return parse(parser, arguments)


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


def train(options: argparse.Namespace, lesson: Lesson = TEXT) -> Checkpoint:
    """Train as the command's ``options`` say until the token budget is used or a signal asks to stop.

    ``lesson`` is what is taught: the text alone, or what a teacher makes of it.

    Raises, in words, ``OSError`` (a file or folder that cannot be used; --resume and --out that do not fit; another
    process of this training has ended), ``ValueError`` (unusable text or options), ``MemoryError`` or
    ``FloatingPointError`` (the loss is not a number any more). ``KeyboardInterrupt`` if it is stopped before the first
    step; ``BrokenPipeError``, after saving, if nobody reads what it prints any more.
    """
    folder = RunFolder(options.out)
    with StopOnSignal() as stop, together():
        if rank():
            try:
                return follow(stop, lesson)
            except RuntimeError as error:
                raise (lost_in_words(error) or error) from None
        with folder.held(options.resume):
            run, learned, held_out = prepare(options, lesson)
            tokens, measured_on = encode(options, run, learned, held_out, lesson)
            plan.choose_course(options, len(tokens.ids))
            check_course(options, tokens)
            run.options = kept_options(options) | began(run)
            if run.tokens >= options.tokens and not options.minutes:
                keep_curve(run.curve, folder, run.bytes_per_token, run.round_tokens)
                if options.tensorboard:
                    with EventLog(folder, run):
                        pass  # it begins with the whole curve, and there is no more
                done = f"the run has learned from {run.tokens:,} tokens; ask for more (--tokens) to go on"
                print(f"Done already: {done}. {folder.curve_picture}")
                return from_first((options, run))[1]
            lesson.begin(options, run, tokens)
            from_first((options, run))
            learn(options, run, tokens, measured_on, held_out, stop, lesson)
    return run


def follow(stop: StopOnSignal, lesson: Lesson) -> Checkpoint:
    """Train like the first process, which has prepared everything, and write nothing."""
    options, run = from_first((argparse.Namespace(), Checkpoint(config=None, options={})))  # type: ignore[arg-type]
    folder = RunFolder(options.out)
    tokens = read_tokens(folder, run.text_hash + run.held_out_hash, load_tokenizer(folder.tokenizer))
    if tokens is None:
        raise FileNotFoundError(f"{folder.cache}: is not there, and every process of a training reads it")
    if run.tokens < options.tokens or options.minutes:
        lesson.begin(options, run, tokens)
        learn(options, run, tokens, None, [], stop, lesson)
    return run


def prepare(options: argparse.Namespace, lesson: Lesson) -> tuple[Checkpoint, Part, list[str]]:
    """Where the run begins, the part of the text to learn from, and the documents held out.

    Of a new run this fills in what ``options`` leave open of the model's shape; of a resumed one, all.
    """
    run = go_on(options, lesson) if options.resume else None
    learned, held_out = read_text(options)
    text = learned.text
    count = f"{learned.n_documents:,} document{'s' * (learned.n_documents > 1)}"
    held_out_size = sum(map(len, held_out))
    print(f"Text: {count}, {learned.n_characters:,} characters to learn from; held out: {held_out_size:,}", flush=True)
    text_hash, held_out_hash = text.hash, hash_documents(held_out)
    if held_out_hash == text_hash:
        say("Note: the held-out text is the text itself: bits per byte will say how well it is learned by heart.")
    if run is None:
        plan.choose_model(options, text, torch.cuda.is_available())
        check_shape(options)
        run = Checkpoint(
            config=shape(options), options=kept_options(options), text_hash=text_hash, held_out_hash=held_out_hash
        )
    valid = f"--valid {run.options['valid']}" if run.options["valid"] else "without --valid"
    other = f"is another text than the one this run began with ({run.options['text']}, {valid}); give that one"
    if run.text_hash != text_hash:
        raise ValueError(f"{options.text}: {other}")
    if run.held_out_hash != held_out_hash:
        raise ValueError(f"{options.valid or options.text}: {other}")
    check_size(run.config)
    if options.quantize_aware and (reason := unstorable(run.config, options.quantize_aware)):
        raise ValueError(f"--quantize-aware: {reason}")
    RunFolder(options.out).check_room(checkpoint_size(run.config))
    return run, learned, held_out


def read_text(options: argparse.Namespace) -> tuple[Part, list[str]]:
    """What to learn from, and the documents held out. Raises ``OSError`` or ``ValueError``, in words."""
    if tinystories.is_named(options.text):
        options.text = tinystories.fetch(tinystories.TRAIN)
        options.valid = options.valid or tinystories.fetch(tinystories.VALID)
    text = Text(options.text, options.field)
    if options.valid:
        learned, held_out = text.all(), first_characters(documents_of(options.valid, options.field))
    else:
        learned, held_out = text.split()
    if not learned.n_documents:
        raise ValueError(f"{options.text}: is too short to train on")
    return learned, held_out


def kept_options(options: argparse.Namespace) -> dict[str, object]:
    """The options as a checkpoint keeps them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def go_on(options: argparse.Namespace, lesson: Lesson) -> Checkpoint:
    """The checkpoint in --out; what ``options`` leave open becomes as it was, and what they say must fit to it."""
    run = Checkpoint.load_to_go_on(options.out)
    if not {"size", "dropout"} <= run.options.keys():
        problem = "was begun by an earlier version of this program: it can be exported, but not gone on with"
        raise ValueError(f"{RunFolder(options.out).checkpoint}: {problem}")
    lesson.check(options, run)
    for field, stored in asdict(run.config).items():
        name = OPTION_OF.get(field, "")[2:].replace("-", "_")
        if not name:
            continue
        if (said := getattr(options, name)) not in (None, stored):
            raise ValueError(f"--{name.replace('_', '-')}: the checkpoint in {options.out} has {stored}, not {said}")
        setattr(options, name, stored)
    for name in ("seed", "batch_tokens", "size"):
        if getattr(options, name) not in (None, run.options[name]):
            option = f"--{name.replace('_', '-')}"
            problem = f"the run in {options.out} began with {run.options[name]}, not {getattr(options, name)}"
            raise ValueError(f"{option}: {problem}")
    options.batch_tokens = run.options["batch_tokens"]
    for name in KEPT:
        if getattr(options, name) is None and not (name == "tokens" and (options.minutes or options.rounds)):
            setattr(options, name, run.options.get(name))
    check_tokenizer(run, options.out)
    return run


def began(run: Checkpoint) -> dict[str, object]:
    """The files that a run began with, whatever they are called now."""
    return {name: run.options[name] for name in ("text", "valid")}


def encode(
    options: argparse.Namespace, run: Checkpoint, learned: Part, held_out: list[str], lesson: Lesson
) -> tuple[Tokens, HeldOut]:
    """The text to learn from and the held-out text as tokens. A run's first start trains the tokenizer."""
    folder, text = RunFolder(options.out), learned.text
    if not options.resume:
        if lesson.tokenizer:
            folder.write_tokenizer(lesson.tokenizer)
        else:
            learn_tokenizer(options, learned)
        run.tokenizer_hash = folder.hash_tokenizer()
    tokenizer = load_tokenizer(folder.tokenizer)
    run.config = replace(run.config, vocab_size=tokenizer.vocab_size())
    tokens = encode_text(folder, run.text_hash + run.held_out_hash, learned, tokenizer, learned.n_characters)
    run.round_tokens = len(tokens.ids) - learned.n_documents  # BOS is nothing to learn
    run.bytes_per_token = text.n_bytes * learned.n_characters / text.n_characters / run.round_tokens
    return tokens, hold_out(held_out, as_tokenizer(tokenizer), run.config.seq_len, whole=True)


def learn_tokenizer(options: argparse.Namespace, learned: Part) -> None:
    """Train the run's tokenizer. Raises ``ValueError`` if the text gives none, or none so large as is asked for."""
    chosen = options.vocab_is_chosen
    path, characters = RunFolder(options.out).tokenizer, learned.text.characters
    try:
        train_tokenizer(learned, options.vocab_size, path, characters, exactly=not chosen)
    except TooLarge as error:
        raise too_small(options.text, learned.n_characters) if chosen else error from error


def check_course(options: argparse.Namespace, tokens: Tokens) -> None:
    """Raise ``ValueError`` if the text has not tokens enough for the steps."""
    if options.batch_tokens < options.context:
        raise ValueError(f"--batch-tokens: {options.batch_tokens} does not hold one --context of {options.context}")
    if len(tokens.ids) < options.batch_tokens:
        raise ValueError(
            f"{options.text}: its {len(tokens.ids):,} tokens are fewer than --batch-tokens ({options.batch_tokens:,}); "
            "train on more text, or in smaller steps (--batch-tokens, --context)"
        )


def learn(
    options: argparse.Namespace,
    run: Checkpoint,
    tokens: Tokens,
    measured_on: HeldOut | None,
    held_out: list[str],
    stop: StopOnSignal,
    lesson: Lesson,
) -> None:
    """Say the plan, go through with the training, and say how it ended. Only the first process measures."""
    folder = RunFolder(options.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    model = Llama(run.config, options.dropout).to(device)
    loss = lesson.loss(model, options.compile)
    loss_of = averaging(loss)
    if loss.compiled:
        print("Compiling, which takes about half a minute...", flush=True)

    def stream(step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return lesson.batches(tokens, run.config.seq_len, options.batch_tokens, options.seed, step)

    speed = from_first(tokens_a_second(model, make_optimizers, loss_of, stream(0)))
    if options.minutes:
        options.tokens = run.tokens + plan.rounded(60 * options.minutes * speed)
    if options.eval_every is None:
        options.eval_every = plan.measure_every(options, len(tokens.ids), measured_on.n_tokens if measured_on else 0)
    options.eval_every = from_first(options.eval_every)
    if measured_on:
        print(describe(options, run, measured_on, speed, device), flush=True)
    run.options = kept_options(options) | began(run)

    tokenizer = as_tokenizer(load_tokenizer(folder.tokenizer))

    def measure() -> float:
        assert measured_on
        value = bits_per_byte(model, measured_on)
        say(f"{run.tokens:,} tokens, {value:.3f} bits/byte: {tell(model, tokenizer, held_out[-1])}")
        return value

    course = Plan(
        tokens=options.tokens,
        learning_rate=options.learning_rate,
        eval_every=options.eval_every,
        save_every=SAVE_EVERY,
        seed=options.seed,
        quantize_aware=options.quantize_aware,
    )
    with EventLog(folder, run) if options.tensorboard and measured_on else nullcontext() as log:
        recorded = log.write if log else lambda: None
        fit(
            run,
            folder,
            model,
            make_optimizers,
            loss_of,
            stream(run.step),
            measure,
            course,
            stop,
            recorded=recorded,
        )
    if measured_on:
        say_end(options, run, measured_on)


def check_size(config: Config) -> None:
    """Say before the training what is known of the model. ``ValueError`` if it does not fit this machine's memory."""
    if reason := unstorable(config, DEFAULT_FORMAT):
        field, problem = reason.split(": ", 1)
        say(f"Note: {OPTION_OF[field]}: {problem}. To export this model will take --format.")
    count = plan.count_parameters(config)
    needed = 4 * 4 * count  # weights, gradients and the optimizers' two averages
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names and not torch.cuda.is_available():
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > memory:
            raise ValueError(
                f"a model of {count:,} parameters needs {needed / 1e9:,.1f} GB to train, and this machine has "
                f"{memory / 1e9:,.1f} GB; choose a smaller one (--size, --dim, --layers, --vocab-size)"
            )


def checkpoint_size(config: Config) -> int:
    """The bytes of a checkpoint: each weight, and one average of it from Muon or two from AdamW."""
    shapes = expected_shapes(config).items()
    return sum(4 * math.prod(shape) * (2 if learned_by_muon(name, shape) else 3) for name, shape in shapes)


if __name__ == "__main__":
    sys.exit(main())
