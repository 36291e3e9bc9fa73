"""Trains a Llama on a text file.

    python -m train.train stories.txt --out out/stories

Ctrl-C saves and stops; the same command with --resume goes on where it stopped, with the same batches. The learning
rate warms up, stays, and falls linearly to zero over the last 30 % of the token budget (WSD), so a run may also be
resumed with another --tokens: a smaller budget ends it well, a larger one prolongs it.

Written to the --out folder: tokenizer.model, checkpoint.pt, curve.csv, curve.png.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from .checkpoint import CURVE_COLUMNS, Checkpoint
from .data import PADDING, Tokens, batches, encode_documents, read_documents, split_documents
from .evaluate import HeldOut, bits_per_byte, hold_out
from .export import as_tokenizer
from .model import Llama, ModelConfig
from .tokenizer import load_tokenizer, train_tokenizer

WARM_UP_STEPS = 100
DECAY_FROM = 0.7  # the part of the token budget after which the learning rate falls
LARGEST_GRADIENT = 1.0  # its norm is clipped to this
LOG_EVERY = 50  # steps between two rows of the curve
SAVE_EVERY = 180.0  # seconds between two checkpoints


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m train.train",
        description="Train a Llama on a text file. Ctrl-C saves and stops; --resume goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("text", type=Path, help="UTF-8 .txt or .txt.xz; a line <|endoftext|> ends each document")
    add("--valid", type=Path, help="held-out text (without it, the last 1%% of the text)")
    add("--out", type=Path, required=True, help="folder for this run's files")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--tokens", type=int, default=20_000_000, help="how many tokens to train on, in all")
    add("--vocab-size", type=int, default=4096, help="tokens in the vocabulary; a short text needs a smaller one")
    add("--dim", type=int, default=256, help="width of the model")
    add("--hidden-dim", type=int, default=576, help="width of the feed-forward")
    add("--layers", type=int, default=4)
    add("--heads", type=int, default=8, help="attention heads")
    add("--kv-heads", type=int, default=4, help="key/value heads, which attention heads share")
    add("--context", type=int, default=512, help="longest sequence in tokens, a multiple of 32")
    add("--batch-tokens", type=int, default=4096, help="tokens in a step, padding included")
    add("--learning-rate", type=float, default=4e-3, help="at its highest")
    add("--eval-every", type=int, default=500, help="steps between two validations")
    add("--seed", type=int, default=1)
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="fuse operations by torch.compile")
    options = parser.parse_args(arguments)
    if options.context % 32 or options.context < 32:
        parser.error(f"--context: must be a multiple of 32, not {options.context}")
    if not 300 <= options.vocab_size <= 65536:
        parser.error(f"--vocab-size: must be from 300 to 65536, not {options.vocab_size}")
    if options.batch_tokens < options.context:
        parser.error(f"--batch-tokens: {options.batch_tokens} does not hold one --context of {options.context}")
    return options


def main() -> None:
    """The command line."""
    options = parse_arguments()
    try:
        train(options)
    except (FileNotFoundError, FileExistsError, ValueError, FloatingPointError) as error:
        sys.exit(f"train: {error}")
    except KeyboardInterrupt:  # while the text was read: from the first step on, train() stops in good order
        sys.exit("train: stopped before the first step; nothing was saved")


def train(options: argparse.Namespace) -> Checkpoint:
    """Train as the command's ``options`` say until the token budget is used or a signal asks to stop.

    Raises ``FileNotFoundError``, ``FileExistsError`` (a run is there, without --resume), ``ValueError`` (unusable text
    or options) or ``FloatingPointError`` (the loss is not a number any more).
    """
    torch.manual_seed(options.seed)
    run = start_run(options)
    tokens, held_out = prepare_text(options, first=run.step == 0)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = choose_precision(device)
    model = Llama(run.config).to(device)
    optimizers = make_optimizers(model)
    if run.step:
        model.load_state_dict(run.model)
        for optimizer, state in zip(optimizers, run.optimizers, strict=True):
            optimizer.load_state_dict(state)
    loss_of = make_loss(model, options.compile)

    def validate() -> float:
        model.eval()
        with precision:
            value = bits_per_byte(model, held_out)
        model.train()
        return value

    def save() -> None:
        run.model = model.state_dict()
        run.optimizers = [optimizer.state_dict() for optimizer in optimizers]
        run.save(options.out)
        write_curve(run.curve, options.out)

    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters; {len(tokens.ids):,} tokens in an epoch; {options.tokens:,} to learn from; {device}")
    bar = tqdm(
        desc="training",
        total=options.tokens,
        initial=run.tokens,
        unit=" tokens",
        unit_scale=True,
        smoothing=0.02,
        mininterval=0.5,
    )
    measured = run.bits_per_byte
    saved_at = time.monotonic()
    stream = batches(tokens, options.context, options.batch_tokens, options.seed, run.step)
    with StopOnSignal() as stop:
        while run.tokens < options.tokens and not stop.requested:
            begin = time.monotonic()
            inputs, targets = next(stream)
            rate = learning_rate(options.learning_rate, run.step, run.tokens / options.tokens)
            with precision:
                loss = loss_of(inputs.to(device), targets.to(device))
            loss.backward()
            value = loss.item()
            if not math.isfinite(value) or not update(model, optimizers, rate):
                raise FloatingPointError(
                    f"loss {value}, or its gradient, is out of bounds at step {run.step}; the last checkpoint is good: "
                    "--resume with a lower --learning-rate"
                )
            learned = int((targets != PADDING).sum())
            run.losses.append(value)
            run.step += 1
            run.tokens += learned
            run.seconds += time.monotonic() - begin

            last = run.tokens >= options.tokens
            if run.step % LOG_EVERY == 0 or run.step % options.eval_every == 0 or last:
                valid = None
                if run.step % options.eval_every == 0 or last:
                    valid = measured = validate()
                mean = sum(run.losses) / len(run.losses)
                run.curve.append((run.step, run.tokens, rate, mean, valid, round(run.seconds, 1)))
                run.losses.clear()
            if time.monotonic() - saved_at > SAVE_EVERY:
                save()
                saved_at = time.monotonic()
            bar.update(learned)
            bar.set_postfix_str(
                f"loss {value:.3f}" + (f", {measured:.4f} bits/byte" if measured else ""), refresh=False
            )
        save()
    bar.close()

    if run.tokens < options.tokens:
        print(f"Stopped and saved at step {run.step:,}. To go on: the same command with --resume.")
    else:
        print(
            f"Done: {run.tokens:,} tokens, {measured:.4f} bits per byte on the held-out text. {options.out}/curve.png"
        )
    return run


def start_run(options: argparse.Namespace) -> Checkpoint:
    """A new run's empty checkpoint, or with --resume the one in --out, whose shape must be that of the command."""
    config = ModelConfig(
        dim=options.dim,
        hidden_dim=options.hidden_dim,
        n_layers=options.layers,
        n_heads=options.heads,
        n_kv_heads=options.kv_heads,
        vocab_size=options.vocab_size,
        seq_len=options.context,
    )
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    if not options.resume:
        if (options.out / "checkpoint.pt").exists():
            raise FileExistsError(f"{options.out}: has a checkpoint; go on with --resume, or choose another --out")
        return Checkpoint(config, kept)

    run = Checkpoint.load(options.out)
    for field, value in asdict(config).items():
        stored = getattr(run.config, field)
        if value != stored:
            raise ValueError(f"{field}: the checkpoint in {options.out} has {stored}, the command says {value}")
    for name in ("seed", "batch_tokens"):
        if run.options[name] != kept[name]:
            raise ValueError(f"{name}: the run in {options.out} began with {run.options[name]}, not {kept[name]}")
    if run.tokens >= options.tokens:
        raise ValueError(
            f"tokens: the run in {options.out} has learned from {run.tokens:,} already; ask for more to go on"
        )
    run.options = kept
    return run


def prepare_text(options: argparse.Namespace, first: bool) -> tuple[Tokens, HeldOut]:
    """The text to learn from and the held-out text, encoded. The run's ``first`` start trains the tokenizer."""
    documents = read_documents(options.text)
    if options.valid:
        held_out = read_documents(options.valid)
    else:
        documents, held_out = split_documents(documents)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "tokenizer.model"
    if first:
        train_tokenizer(documents, options.vocab_size, path)
    tokenizer = load_tokenizer(path)
    tokens = encode_documents(documents, tokenizer, cache=options.out.parent / "cache")
    if len(tokens.ids) < options.batch_tokens:
        raise ValueError(
            f"{options.text}: its {len(tokens.ids):,} tokens are fewer than --batch-tokens ({options.batch_tokens:,}); "
            "train on more text, or in smaller steps"
        )
    return tokens, hold_out(held_out, as_tokenizer(tokenizer), options.context)


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
    matrices = [p for name, p in model.named_parameters() if name.startswith("blk.") and p.dim() == 2]
    others = [p for name, p in model.named_parameters() if not (name.startswith("blk.") and p.dim() == 2)]
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
    return torch.compile(loss_of, dynamic=True)  # dynamic: batches come in many shapes


class StopOnSignal:
    """Between ``with`` and its end, Ctrl-C and SIGTERM set ``requested`` instead of ending the program."""

    def __enter__(self) -> StopOnSignal:
        self.requested = False
        self.previous = {number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def request(self, number: int, frame: object) -> None:
        print("\nFinishing this step, then saving...", file=sys.stderr)
        self.requested = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def write_curve(curve: list[tuple[Any, ...]], folder: Path) -> None:
    """``curve.csv`` and ``curve.png``: loss per token and bits per byte over the tokens learned from."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with open(folder / "curve.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CURVE_COLUMNS)
        writer.writerows(curve)
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
    figure.savefig(folder / "curve.png")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
