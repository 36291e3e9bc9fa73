"""Trains a small model, the student, on a text and on what a larger one, its teacher, expects in it.

    python -m train.distill TEACHER stories.txt --student 1M --out out/small

A text tells the student which token comes next, and nothing of those that might have come as well. The teacher knows
something of that: of each place in the text its likeliest tokens are kept with their probabilities (labels.py), and the
student learns to give the same ones. The loss is a mixture (G. Hinton, O. Vinyals, J. Dean, 2015, "Distilling the
Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531):

    soft x T^2 x KL(teacher at temperature T || student at temperature T) + (1 - soft) x cross-entropy of the text

What the teacher gives to tokens that are not kept is given to the token that the text has there.

TEACHER is the --out folder of a training or a GGUF file of the plain Llama family. The student gets its vocabulary. A
teacher with a vocabulary that this training does not write (byte-level) takes that of another model first
(python -m train.transplant), or teaches by text (python -m train.write). All else is as in python -m train.train.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fabella.console import INTERRUPTED, run_command
from fabella.errors import FabellaError
from fabella.sentencepiece import SPACE, SentencePiece
from fabella.tokenizer import Tokenizer

from . import plan
from .checkpoint import Checkpoint
from .data import PADDING, Tokens, make_batch, row_batches
from .labels import Labelling, Labels, make_labels
from .lesson import Lesson
from .load import hash_model, load_model
from .loop import MeanLoss, has_compiler
from .model import Llama
from .options import add_options, number, parse, whole_number
from .progress import say
from .run import RunFolder
from .sentencepiece_file import sentencepiece_file
from .together import rank
from .tokenizer import BOS, EOS
from .train import train

SOFT = 0.6  # of the loss is the teacher's
TOP = 8  # tokens of a label: most of the probability, and 32 bytes a token
LARGEST_VOCABULARY = 1 << 16  # labels and texts are kept in 16 bits
HOW = {"soft": SOFT, "temperature": 1.0, "top": TOP}  # the options that are the lesson's own, and what they are


def soft_loss(
    logits: Tensor, targets: Tensor, tokens: Tensor, probabilities: Tensor, soft: float, temperature: float
) -> Tensor:
    """The mixture of the module's docstring, in nats per token, but for the labels' own entropy.

    That does not depend on the student, so the gradient is that of the divergence. The value is another's: the text's
    cross-entropy alone, which can be compared with any training's.

    Parameters
    ----------
    logits
        The student's, [N, vocab_size].
    targets
        The text's tokens, int64 [N]; those that are `PADDING` do not count.
    tokens, probabilities
        The teacher's labels, int64 and F32 [N, top].
    soft
        The part of the teacher, 0 to 1.
    temperature
        By which logits are divided before they are compared; the teacher's were.
    """
    counted = (targets != PADDING).float()  # [N]
    true = targets.clamp(min=0)[:, None]  # [N, 1]
    log_sum = logits.logsumexp(-1)  # [N]
    hard = log_sum - logits.gather(1, true)[:, 0]
    scaled, scaled_log_sum = logits, log_sum
    if temperature != 1:  # else the largest arrays of a step need not be there twice
        scaled = logits / temperature
        scaled_log_sum = scaled.logsumexp(-1)
    outside = (1 - probabilities.sum(-1)).clamp(min=0)  # [N]
    expected = (probabilities * scaled.gather(1, tokens)).sum(-1) + outside * scaled.gather(1, true)[:, 0]
    taught = (probabilities.sum(-1) + outside) * scaled_log_sum - expected
    mixed = ((soft * temperature**2 * taught + (1 - soft) * hard) * counted).sum() / counted.sum()
    value = (hard * counted).sum() / counted.sum()
    return mixed + (value - mixed).detach()


class SoftLoss(MeanLoss):
    """A module (inputs [B, T], places [B, T] of the targets in the text) -> `soft_loss`, compiled if that works."""

    def __init__(
        self, model: Llama, compiled: bool, tokens: Tokens, labels: Labels, soft: float, temperature: float
    ) -> None:
        super().__init__(model, compiled)
        self.tokens, self.labels = tokens, labels
        self.soft, self.temperature = soft, temperature

    def loss_of(self, *batch: Tensor) -> Tensor:
        """As it is written."""
        inputs, targets, tokens, probabilities = batch
        logits = self.model(inputs).flatten(0, 1).float()
        labels = tokens.flatten(0, 1), probabilities.flatten(0, 1)
        return soft_loss(logits, targets.flatten(), *labels, self.soft, self.temperature)

    def forward(self, *batch: Tensor) -> Tensor:
        inputs, places = batch
        there = places.cpu().numpy()
        targets = np.where(there == PADDING, PADDING, self.tokens.ids[there].astype(np.int64))
        looked_up = targets, *self.labels.at(np.maximum(there, 0))  # that of padding does not count
        return super().forward(inputs, *(torch.from_numpy(array).to(inputs.device) for array in looked_up))


class Distillation(Lesson):
    """A text as a teacher sees it. Where other lessons have targets, its batches have their places in the text."""

    def __init__(self, options: argparse.Namespace) -> None:
        path = options.teacher
        self.teacher: Llama | None
        self.teacher, tokenizer = load_model(path)
        self.tokenizer = as_file(path, tokenizer)
        options.teacher_hash = hash_model(self.teacher)
        if options.vocab_size not in (None, len(tokenizer)):
            raise ValueError(f"--vocab-size: is the teacher's, {len(tokenizer)}, not {options.vocab_size}")
        options.vocab_size = len(tokenizer)
        if not options.resume:
            for name, usual in HOW.items():
                setattr(options, name, usual if getattr(options, name) is None else getattr(options, name))
        if options.top is not None and options.top > len(tokenizer):
            raise ValueError(f"--top: {options.top} are more tokens than the teacher has ({len(tokenizer)})")

    def check(self, options: argparse.Namespace, run: Checkpoint) -> None:
        began = run.options
        if "teacher" not in began:
            raise ValueError(f"{options.out}: this run has no teacher; go on with train.train --resume")
        if began["teacher_hash"] != options.teacher_hash:
            raise ValueError(f"{options.teacher}: is another teacher than the one this run has ({began['teacher']})")
        for name in HOW:
            if getattr(options, name) not in (None, began[name]):
                raise ValueError(f"--{name}: the run in {options.out} has {began[name]}, not {getattr(options, name)}")
            setattr(options, name, began[name])
        if options.labels is None and began["labels"]:
            options.labels = Path(began["labels"])

    def begin(self, options: argparse.Namespace, run: Checkpoint, tokens: Tokens) -> None:
        """Have the teacher label the text, as far as that is not done yet; then it is not needed any more."""
        assert self.teacher
        c = self.teacher.config
        length = min(run.config.seq_len, c.seq_len // 32 * 32)
        if not length:
            raise ValueError(f"{options.teacher}: its context of {c.seq_len} is too short to teach with")
        name = f"{options.teacher_hash} {run.text_hash} {run.held_out_hash} {run.tokenizer_hash}"
        how = Labelling(name, options.top, options.temperature, length)
        folder = options.labels or RunFolder(options.out).labels
        if not rank():
            size = len(tokens.ids) * how.record.itemsize
            say(
                f"Teacher: {plan.count_parameters(c):,} parameters; of each token its {how.top} best guesses, "
                f"{size / 1e6:,.0f} MB in {folder}; they make up {options.soft:.0%} of the loss."
            )
        if torch.cuda.is_available():
            self.teacher.to("cuda")
        self.labels = make_labels(folder, tokens, how, None if rank() else self.teacher)
        self.tokens, self.soft, self.temperature = tokens, options.soft, options.temperature
        self.teacher = None

    def batches(
        self, tokens: Tokens, length: int, batch_tokens: int, seed: int, step: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in row_batches(tokens, length, batch_tokens, seed, step):
            yield place_batch(tokens, rows)

    def loss(self, model: Llama, compiled: bool) -> SoftLoss:
        compiled = compiled and has_compiler(model.token_embd.weight.device.type)
        return SoftLoss(model, compiled, self.tokens, self.labels, self.soft, self.temperature)


def place_batch(tokens: Tokens, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Like `train.data.make_batch`, but where a target would be stands its place in the text: [rows, T] each."""
    inputs, places = make_batch(tokens, rows)
    for row, (start, end) in enumerate(rows.tolist()):
        places[row, : end - start - 1] = torch.arange(start + 1, end)
    return inputs, places


def as_file(path: Path, tokenizer: Tokenizer) -> bytes:
    """A teacher's vocabulary as a SentencePiece model; ``ValueError`` if a student of this training cannot have it."""
    other = "give it another vocabulary (python -m train.transplant), or have it teach by text (python -m train.write)"
    if not isinstance(tokenizer, SentencePiece):
        raise ValueError(f"{path}: its vocabulary is byte-level, and those of students are SentencePiece's; {other}")
    usual = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos, tokenizer.space) == (BOS, EOS, True, SPACE)
    if not usual or len(tokenizer) > LARGEST_VOCABULARY:
        raise ValueError(
            f"{path}: its vocabulary is none that students can have: BOS is token {BOS}, begins every text, EOS is "
            f"token {EOS}, and there are at most {LARGEST_VOCABULARY:,} tokens; {other}"
        )
    return sentencepiece_file(tokenizer)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m train.distill",
        description="Train a small model on a text and on what a larger one expects in it. Ctrl-C saves and stops; "
        "--resume goes on.",
    )
    add = parser.add_argument
    add("teacher", type=Path, help="the --out folder of a training, or a GGUF file of the plain Llama family")
    add_options(parser)
    add("--student", dest="size", choices=plan.SIZES, help="the same as --size")
    add("--soft", type=part, help=f"the teacher's part of the loss, 0 to 1 (default {SOFT})")
    add("--temperature", type=number(0, 100), help="at which teacher and student are compared (default 1)")
    add("--top", type=whole_number(1, 256), help=f"tokens that are kept of what the teacher expects (default {TOP})")
    add("--labels", type=Path, help="folder that keeps them, for several students (default: labels in --out)")
    return parse(parser, arguments)


def part(text: str) -> float:
    """How the parser reads a part of a whole."""
    return 0.0 if text in ("0", "0.0") else number(0, 1)(text)


def main() -> int:
    """The command line. Returns the exit status."""

    def body() -> int:
        options = parse_arguments()
        try:
            train(options, Distillation(options))
        except KeyboardInterrupt:  # from the first step on, train() stops in good order
            print("distill: stopped before the first step; what the teacher has labelled is kept", file=sys.stderr)
            return INTERRUPTED
        return 0

    return run_command("distill", body, (OSError, ValueError, FloatingPointError, MemoryError, FabellaError))


if __name__ == "__main__":
    sys.exit(main())
