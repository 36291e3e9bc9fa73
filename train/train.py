"""Trains a Llama on a text file.

    python -m train.train stories.txt --out out/stories

Ctrl-C saves and stops; the same command with --resume goes on where it stopped, with the same batches. The learning
rate warms up, stays, and falls linearly to zero over the last 30 % of the token budget (WSD), so a run may also be
resumed with another --tokens: a smaller budget ends it well, a larger one prolongs it.

Written to the --out folder, which run.py describes: tokenizer.model, checkpoint.pt, curve.csv, curve.png.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fabella.architectures import expected_shapes
from fabella.console import INTERRUPTED, run_command, words
from fabella.errors import FabellaError, ModelFileError
from fabella.modelfile import LARGEST, Config

from .checkpoint import CURVE_COLUMNS, Checkpoint, check_tokenizer
from .data import PADDING, Tokens, batches, encode_text, hash_documents, read_documents, split_documents
from .evaluate import HeldOut, bits_per_byte, hold_out
from .export import DEFAULT_FORMAT, as_tokenizer, unstorable
from .model import Llama
from .progress import Progress, say
from .run import RunFolder
from .tokenizer import SMALLEST_VOCABULARY, load_tokenizer, train_tokenizer

WARM_UP_STEPS = 100
DECAY_FROM = 0.7  # the part of the token budget after which the learning rate falls
LARGEST_GRADIENT = 1.0  # its norm is clipped to this
LOG_EVERY = 50  # steps between two rows of the curve
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
    """The model that the options ask for; ``ModelFileError`` if there is no such Llama."""
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
        Training(options, run, tokens, measured_on).work(stop)
    return run


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


def learned_by_muon(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon, not AdamW, learns a parameter: the matrices inside the blocks."""
    return name.startswith("blk.") and len(shape) == 2


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


class Training:
    """A run at work: the model, its optimizers, and the checkpoint that they are saved in."""

    def __init__(self, options: argparse.Namespace, run: Checkpoint, tokens: Tokens, held_out: HeldOut) -> None:
        self.options, self.run, self.tokens, self.held_out = options, run, tokens, held_out
        self.folder = RunFolder(options.out)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.precision = choose_precision(self.device)
        torch.manual_seed(options.seed)
        self.model = Llama(run.config).to(self.device)
        self.optimizers = make_optimizers(self.model)
        if run.step:
            self.model.load_state_dict(run.model)
            for optimizer, state in zip(self.optimizers, run.optimizers, strict=True):
                optimizer.load_state_dict(state)
        self.loss_of = make_loss(self.model, options.compile)
        self.saved_step = run.step  # 0: nothing is saved yet
        self.measured = run.bits_per_byte

    def work(self, stop: StopOnSignal) -> None:
        """Learn until the budget is used or ``stop`` is requested; save every few minutes and at the end."""
        options, run = self.options, self.run
        count = sum(parameter.numel() for parameter in self.model.parameters())
        text = f"{len(self.tokens.ids):,} tokens in an epoch; {options.tokens:,} to learn from"
        print(f"{count:,} parameters; {text}; held out: {self.held_out}; {self.device}", flush=True)
        stream = batches(self.tokens, options.context, options.batch_tokens, options.seed, run.step)
        saved_at = time.monotonic()
        nobody_reads: BrokenPipeError | None = None
        with Progress("training", options.tokens, " tokens", done=run.tokens, brief=False) as progress:
            stop.after_this_step()
            while run.tokens < options.tokens and not stop.requested:
                begin = time.monotonic()
                try:
                    rate, loss, learned = self.step(*next(stream))
                except RuntimeError as error:
                    if stop.requested:
                        break  # Ctrl-C reaches the compiler, too, that torch.compile has started
                    if "alloca" not in str(error):
                        raise
                    raise MemoryError(
                        f"a step of {options.batch_tokens:,} tokens needs more memory than there is: --batch-tokens "
                        "must be smaller, or the model"
                    ) from error
                run.seconds += time.monotonic() - begin
                try:
                    self.record(rate)
                    if time.monotonic() - saved_at > SAVE_EVERY:
                        self.save_or_go_on()
                        saved_at = time.monotonic()
                    measured = f", {self.measured:.4f} bits/byte" if self.measured else ""
                    progress.update(learned, f"loss {loss:.3f}{measured}")
                except BrokenPipeError as error:  # like Ctrl-C
                    nobody_reads = error
                    break
            if run.step > self.saved_step:
                self.save_or_fail()
        if nobody_reads:
            raise nobody_reads
        if not run.step:
            raise KeyboardInterrupt
        if run.tokens < options.tokens:
            print(f"Stopped and saved at step {run.step:,}. To go on: the same command with --resume.")
        else:
            measured = f"{self.measured:.4f} bits per byte on the held-out text ({self.held_out})"
            print(f"Done: {run.tokens:,} tokens, {measured}. {self.folder.curve_picture}")

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[float, float, int]:
        """Learn from a batch, inputs and targets [rows, T].

        Returns the learning rate, the loss (nats per token) and how many tokens were learned from.
        """
        run, options = self.run, self.options
        rate = learning_rate(options.learning_rate, run.step, run.tokens / options.tokens)
        with self.precision:
            loss = self.loss_of(inputs.to(self.device), targets.to(self.device))
        loss.backward()
        value = loss.item()
        if not math.isfinite(value) or not update(self.model, self.optimizers, rate):
            raise FloatingPointError(
                f"loss {value}, or its gradient, is out of bounds at step {run.step:,}; {self.way_back()}"
            )
        learned = int((targets != PADDING).sum())
        run.losses.append(value)
        run.step += 1
        run.tokens += learned
        return rate, value, learned

    def record(self, rate: float) -> None:
        """Measure when it is time, and add a row to the curve; ``rate`` is the last step's learning rate."""
        run, options = self.run, self.options
        measure = run.step % options.eval_every == 0 or run.tokens >= options.tokens
        if not measure and run.step % LOG_EVERY:
            return
        valid = None
        if measure:
            self.model.eval()
            with self.precision:
                valid = bits_per_byte(self.model, self.held_out)
            self.model.train()
            if not math.isfinite(valid):
                raise FloatingPointError(f"no number comes out of the model at step {run.step:,}; {self.way_back()}")
            self.measured = valid
        mean = sum(run.losses) / len(run.losses)
        run.curve.append((run.step, run.tokens, rate, mean, valid, round(run.seconds, 1)))
        run.losses.clear()

    def save(self) -> None:
        """Save the checkpoint and the curve. ``OSError`` if the checkpoint cannot be saved."""
        self.run.model = self.model.state_dict()
        self.run.optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        self.run.save(self.options.out)
        self.saved_step = self.run.step
        keep_curve(self.run.curve, self.folder)

    def save_or_go_on(self) -> None:
        """Save; if that fails, say so: what was learned is safer in memory, and there may be room next time."""
        try:
            self.save()
        except OSError as error:
            say(f"Could not save: {words(error)}. {self.kept()}. Training goes on, and tries again in a while.")

    def save_or_fail(self) -> None:
        """Save at the end; ``OSError`` says what is kept."""
        try:
            self.save()
        except OSError as error:
            raise OSError(f"could not save step {self.run.step:,}: {words(error)}. {self.kept()}") from error

    def kept(self) -> str:
        """What is on the disk, in words."""
        if self.saved_step:
            return f"The last checkpoint, of step {self.saved_step:,}, is whole ({self.folder.checkpoint})"
        return "Nothing is saved yet"

    def way_back(self) -> str:
        """What to do when the numbers are out of bounds."""
        if not self.saved_step:
            return "nothing was saved; begin again with a lower --learning-rate"
        if self.saved_step < self.run.step:
            return f"--resume with a lower --learning-rate goes on from step {self.saved_step:,}"
        straight = f"the checkpoint of step {self.saved_step:,} leads straight here"
        if self.folder.previous.is_file():
            return (
                f"{straight}: delete {self.folder.checkpoint}, and --resume with a lower --learning-rate goes on from "
                "the one before it"
            )
        return f"{straight}: begin again with a lower --learning-rate, in another --out"


def choose_precision(device: str) -> AbstractContextManager[Any]:
    """bf16 matrix products where the hardware has them, else plain f32. Weights and optimizer state stay f32."""
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.autocast(device, dtype=torch.bfloat16) if fast else nullcontext()


def make_optimizers(model: Llama) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the embedding, the output and the norms (see LOG.md).

    Both take one learning rate: Muon's updates are scaled to the size that AdamW's have.
    """
    matrices = [p for name, p in model.named_parameters() if learned_by_muon(name, tuple(p.shape))]
    others = [p for name, p in model.named_parameters() if not learned_by_muon(name, tuple(p.shape))]
    return [
        torch.optim.Muon(matrices, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def update(model: Llama, optimizers: list[torch.optim.Optimizer], rate: float) -> bool:
    """Step against the gradients at learning rate ``rate``; False, without a step, if one of them is not finite."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
    if not norm.isfinite():
        return False
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return True


def learning_rate(peak: float, step: int, progress: float) -> float:
    """The rate at ``step``, ``progress`` (0 to 1) into the token budget: warm up, stay, fall to zero."""
    warm_up = (step + 1) / WARM_UP_STEPS
    decay = (1.0 - progress) / (1.0 - DECAY_FROM)
    return peak * min(1.0, warm_up, decay)


def make_loss(model: Llama, compiled: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (inputs [B, T], targets [B, T]) -> mean loss in nats per token, compiled if a compiler is there."""

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs)  # [B, T, vocab_size]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=PADDING)

    if not compiled:
        return loss_of
    if not shutil.which(os.environ.get("CXX", "g++")):
        print("No C++ compiler (g++): training without torch.compile, which is about a third slower.")
        return loss_of
    chosen = torch.compile(loss_of, dynamic=True)  # dynamic: batches come in many shapes

    def compiled_if_possible(inputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal chosen
        try:
            return chosen(inputs, targets)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            say(f"Training without torch.compile, which is about a third slower: it failed ({reason}).")
            chosen = loss_of
            return loss_of(inputs, targets)

    return compiled_if_possible


class StopOnSignal:
    """Between ``with`` and its end, Ctrl-C, SIGTERM and SIGHUP (the terminal was closed) do not end the program.

    They interrupt it like Ctrl-C (``KeyboardInterrupt``) while there is nothing to save yet; after `after_this_step`
    they set ``requested`` instead, and no second one can tear the saving.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __enter__(self) -> StopOnSignal:
        self.requested = False
        self.at_once = True
        self.previous = {
            number: signal.signal(number, self.request)
            for number in self.SIGNALS
            # nohup and the like ignore the end of the terminal, and that is to stay so; scripts ignore Ctrl-C for all
            # that they start in the background, though whoever sends it there means it.
            if not (number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN)
        }
        return self

    def after_this_step(self) -> None:
        """From now on finish the step."""
        self.at_once = False

    def request(self, number: int, frame: object) -> None:
        """The signals' handler."""
        if self.at_once:
            raise KeyboardInterrupt
        if not self.requested:
            with suppress(OSError):  # written past Python's buffers, which may be in use just now
                os.write(2, b"\nFinishing this step, then saving...\n")
        self.requested = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def keep_curve(curve: list[tuple[Any, ...]], folder: RunFolder) -> None:
    """Write ``curve.csv`` and ``curve.png``. What goes wrong is said and ends nothing: both can be had again."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(CURVE_COLUMNS)
    writer.writerows(curve)
    try:
        folder.write_curve_table(table.getvalue())
        folder.write_curve_picture(draw_curve(curve))
    except Exception as error:  # whatever matplotlib, or a missing one, may raise
        say(f"The curve could not be written ({words(error)}); the same command with --resume writes it anew.")


def draw_curve(curve: list[tuple[Any, ...]]) -> bytes:
    """A PNG: loss per token and bits per byte over the tokens learned from."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    millions = [row[1] / 1e6 for row in curve]
    figure, left = pyplot.subplots(figsize=(7, 4), dpi=100)
    left.plot(millions, [row[3] for row in curve], color="tab:blue", linewidth=1)
    left.set_xlabel("tokens (millions)")
    left.set_ylabel("training loss (nats per token)", color="tab:blue")
    right = left.twinx()
    measured = [(row[1] / 1e6, row[4]) for row in curve if row[4] is not None]
    right.plot([x for x, _ in measured], [y for _, y in measured], "o-", color="tab:red", linewidth=1, markersize=3)
    right.set_ylabel("held-out bits per byte", color="tab:red")
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    pyplot.close(figure)
    return picture.getvalue()


if __name__ == "__main__":
    sys.exit(main())
