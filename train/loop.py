"""The loop of training, whatever is trained: step, measure, save, until the budget is used or somebody asks to stop.

A caller brings the model, what its loss is, where batches come from and how it is measured; `fit` does the rest:
optimizers, learning rate, gradients that go out of bounds, a full disk, Ctrl-C.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fabella.console import words

from . import explain
from .checkpoint import Checkpoint
from .curve import keep_curve
from .data import PADDING
from .model import Llama
from .progress import Progress, say
from .run import RunFolder

WARM_UP_STEPS = 100
DECAY_FROM = 0.7  # the part of the token budget after which the learning rate falls
LARGEST_GRADIENT = 1.0  # its norm is clipped to this
LOG_EVERY = 50  # steps between two rows of the curve

Loss = Callable[[Tensor, Tensor], Tensor]  # (inputs, targets), [rows, T] each -> mean loss in nats per token


@dataclass(frozen=True)
class Plan:
    """How long to train, how fast, and how often to measure."""

    tokens: int  # the budget, of tokens learned from
    learning_rate: float  # at its highest
    eval_every: int  # steps between two measurements
    save_every: float  # seconds between two checkpoints


def fit(
    run: Checkpoint,
    folder: RunFolder,
    model: nn.Module,
    loss_of: Loss,
    stream: Iterator[tuple[Tensor, Tensor]],
    measure: Callable[[], float],
    plan: Plan,
    stop: StopOnSignal,
) -> None:
    """Train ``model`` from where ``run`` is, to the end of the plan or until ``stop``, and save it in ``folder``.

    ``stream`` yields batches of inputs and targets, [rows, T] each, where `PADDING` is not a target. ``measure``
    returns the model's bits per byte on the held-out text. Raises ``FloatingPointError`` when the numbers go out of
    bounds, ``MemoryError``, ``OSError`` (it could not be saved), ``KeyboardInterrupt`` if it is stopped before the
    first step, and ``BrokenPipeError``, after saving, if nobody reads what it prints any more.
    """
    Loop(run, folder, model, loss_of, measure, plan).work(stream, stop)


class Loop:
    """A run at work: batch after batch, until the budget is used or somebody asks to stop.

    ``run`` is where it begins and what is saved in ``folder``; ``loss_of`` maps a batch, inputs and targets [rows, T],
    to the mean loss in nats per token; ``measure`` measures the model on the held-out text, in bits per byte.
    """

    def __init__(
        self,
        run: Checkpoint,
        folder: RunFolder,
        model: nn.Module,
        loss_of: Loss,
        measure: Callable[[], float],
        plan: Plan,
    ) -> None:
        self.run, self.folder, self.model = run, folder, model
        self.loss_of, self.measure, self.plan = loss_of, measure, plan
        self.device = next(model.parameters()).device
        self.precision = choose_precision(self.device.type)
        self.optimizers = make_optimizers(model)
        if run.step:
            model.load_state_dict(run.model)
            for optimizer, state in zip(self.optimizers, run.optimizers, strict=True):
                optimizer.load_state_dict(state)
        self.saved_step = run.step  # 0: nothing is saved yet
        self.measured = run.bits_per_byte

    def work(self, stream: Iterator[tuple[Tensor, Tensor]], stop: StopOnSignal) -> None:
        """Learn until the budget is used or ``stop`` is requested; save every few minutes and at the end."""
        plan, run = self.plan, self.run
        saved_at = time.monotonic()
        nobody_reads: BrokenPipeError | None = None
        with Progress("training", plan.tokens, " tokens", done=run.tokens, brief=False) as progress:
            stop.after_this_step()
            while run.tokens < plan.tokens and not stop.requested:
                begin = time.monotonic()
                inputs, targets = next(stream)
                try:
                    rate, loss, learned = self.step(inputs, targets)
                except RuntimeError as error:
                    if stop.requested:
                        break  # Ctrl-C reaches the compiler, too, that torch.compile has started
                    if "alloca" not in str(error):
                        raise
                    raise MemoryError(
                        f"a step of {targets.numel():,} tokens needs more memory than there is: --batch-tokens "
                        "must be smaller, or the model"
                    ) from error
                run.seconds += time.monotonic() - begin
                try:
                    self.record(rate)
                    if time.monotonic() - saved_at > plan.save_every:
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

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[float, float, int]:
        """Learn from a batch, inputs and targets [rows, T].

        Returns the learning rate, the loss (nats per token) and how many tokens were learned from.
        """
        run, plan = self.run, self.plan
        rate = learning_rate(plan.learning_rate, run.step, run.tokens / plan.tokens)
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
        run, plan = self.run, self.plan
        measure = run.step % plan.eval_every == 0 or run.tokens >= plan.tokens
        if not measure and run.step % LOG_EVERY:
            return
        valid = None
        if measure:
            self.model.eval()
            with self.precision:
                valid = self.measure()
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
        self.run.save(self.folder.path)
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


def learned_by_muon(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon, not AdamW, learns a parameter: the matrices inside the blocks."""
    return name.startswith("blk.") and len(shape) == 2


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the embedding, the output and the norms (see LOG.md).

    Both take one learning rate: Muon's updates are scaled to the size that AdamW's have.
    """
    matrices = [p for name, p in model.named_parameters() if learned_by_muon(name, tuple(p.shape))]
    others = [p for name, p in model.named_parameters() if not learned_by_muon(name, tuple(p.shape))]
    return [
        torch.optim.Muon(matrices, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def update(model: nn.Module, optimizers: list[torch.optim.Optimizer], rate: float) -> bool:
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


def make_loss(model: Llama, compiled: bool) -> Loss:
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


if __name__ == "__main__":
    explain(__doc__)
