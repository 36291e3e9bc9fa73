"""The loop of training, whatever is trained: step, measure, save, until the budget is used or somebody asks to stop.

A caller brings the model, its optimizers, what its loss is, where batches come from and how it is measured; `fit` does
the rest: learning rate, gradients that go out of bounds, a full disk, Ctrl-C, the best model so far, and the end of
a run that has nothing but its text to learn by heart any more.

All that is random in a step follows from the seed and the step's number, so that a resumed run needs no more to go on
as if nothing had been.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fabella.console import words

from . import explain
from .checkpoint import State
from .curve import keep_curve
from .data import PADDING
from .model import Llama
from .progress import Progress, say
from .rounding import ROUND_FROM, stored_as
from .run import RunFolder
from .together import rank, ranks, total

WARM_UP_STEPS = 100
DECAY_FROM = 0.7  # the part of the token budget after which the learning rate falls
LARGEST_GRADIENT = 1.0  # its norm is clipped to this
LOG_EVERY = 50  # steps between two rows of the curve
WARM_UP = 0.1  # of the token budget, where that is sooner than WARM_UP_STEPS
AT_ONCE = {"cpu": 8192, "cuda": 32768}  # tokens of a step that go through the model together; memory limits them
UNTIMED_STEPS, TIMED_STEPS, LONG_ENOUGH = 2, 7, 5.0  # before a training; the last in seconds
SAVE_EVERY = 180.0  # seconds between two checkpoints
PATIENCE = 5  # measurements, none of them the best, before a run that learns by heart is ended
WORSE = 1.02  # times the best bits per byte: more than chance
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}  # bf16 operations a second

Loss = Callable[[Tensor, Tensor], Tensor]  # (inputs, targets), [rows, T] each -> mean loss in nats per token
Optimizers = list[torch.optim.Optimizer]
MakeOptimizers = Callable[[nn.Module], Optimizers]  # those that learn what is learned of a model


@dataclass(frozen=True)
class Plan:
    """How long to train, how fast, for what format, and how often to measure."""

    tokens: int  # the budget, of tokens learned from
    learning_rate: float  # at its highest
    eval_every: int  # steps between two measurements
    save_every: float  # seconds between two checkpoints
    seed: int = 0  # of what is random in a step
    decay_from: float = DECAY_FROM  # the part of the budget after which the learning rate falls
    quantize_aware: str | None = None  # the format that the weights are to be good in (rounding.py)
    round_from: float = ROUND_FROM  # the part of the budget after which the model computes with rounded weights


def fit(
    run: State,
    folder: RunFolder,
    model: nn.Module,
    optimizers_of: MakeOptimizers,
    loss_of: Loss,
    stream: Iterator[tuple[Tensor, Tensor]],
    measure: Callable[[], float],
    plan: Plan,
    stop: StopOnSignal,
    recorded: Callable[[], None] = lambda: None,
) -> None:
    """Train ``model`` from where ``run`` is, to the end of the plan or until ``stop``, and save it in ``folder``.

    ``stream`` yields batches of inputs and targets, [rows, T] each, where `PADDING` is not a target. ``measure``
    returns the model's bits per byte on the held-out text. ``recorded`` is called when the curve has a new row.

    Raises ``FloatingPointError`` when the numbers go out of bounds, ``MemoryError``, ``OSError`` (it could not be
    saved), ``KeyboardInterrupt`` if it is stopped before the first step, and ``BrokenPipeError``, after saving, if
    nobody reads what it prints any more.
    """
    Loop(run, folder, model, optimizers_of, loss_of, measure, plan, recorded).work(stream, stop)


class Loop:
    """A run at work: batch after batch, until the budget is used or somebody asks to stop.

    ``run`` is where it begins and what is saved in ``folder``; ``loss_of`` maps a batch, inputs and targets [rows, T],
    to the mean loss in nats per token; ``measure`` measures the model on the held-out text, in bits per byte.
    """

    def __init__(
        self,
        run: State,
        folder: RunFolder,
        model: nn.Module,
        optimizers_of: MakeOptimizers,
        loss_of: Loss,
        measure: Callable[[], float],
        plan: Plan,
        recorded: Callable[[], None],
    ) -> None:
        self.run, self.folder, self.model = run, folder, model
        self.loss_of, self.measure, self.plan = loss_of, measure, plan
        self.recorded = recorded
        self.device = next(model.parameters()).device
        self.precision = choose_precision(self.device.type)
        self.optimizers = optimizers_of(model)
        if run.step:
            run.put(model)
            for optimizer, state in zip(self.optimizers, run.optimizers, strict=True):
                optimizer.load_state_dict(state)
        self.saved_step = run.step  # 0: nothing is saved yet
        self.measured = run.bits_per_byte
        self.by_heart = learns_by_heart(run.measured, run.round_tokens)

    def work(self, stream: Iterator[tuple[Tensor, Tensor]], stop: StopOnSignal) -> None:
        """Learn until the budget is used or ``stop`` is requested; save every few minutes and at the end."""
        plan, run = self.plan, self.run
        saved_at = time.monotonic()
        ended: OSError | None = None
        with Progress("training", plan.tokens, " tokens", done=run.tokens, brief=False) as progress:
            stop.after_this_step()
            while run.tokens < plan.tokens:
                begin = time.monotonic()
                try:
                    if any(total([stop.requested or self.by_heart], self.device)):
                        break
                    inputs, targets = next(stream)
                    rate, loss, learned = self.step(inputs, targets)
                except RuntimeError as error:
                    if stop.requested:
                        break  # Ctrl-C reaches the compiler, too, that torch.compile has started
                    if lost := lost_in_words(error):
                        ended = lost
                        break
                    raise
                seconds = time.monotonic() - begin
                run.seconds += seconds
                if rank():
                    continue
                try:
                    self.record(rate)
                    if time.monotonic() - saved_at > plan.save_every and run.step > self.saved_step:
                        self.save_or_go_on()
                        self.draw()
                        saved_at = time.monotonic()
                    measured = f", {self.measured:.4f} bits/byte" if self.measured else ""
                    progress.update(learned, f"loss {loss:.3f}{measured}{self.use_of_gpu(learned, seconds)}")
                except BrokenPipeError as error:  # like Ctrl-C
                    ended = error
                    stop.requested = True
            if run.step and not rank():
                if run.step > self.saved_step:
                    self.save_or_fail()
                self.draw()
        if ended:
            raise ended
        if not run.step:
            raise KeyboardInterrupt

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[float, float, int]:
        """Learn from a batch, inputs and targets [rows, T].

        Returns the learning rate, the loss (nats per token) and how many tokens were learned from.
        """
        run, plan = self.run, self.plan
        progress = run.tokens / plan.tokens
        rate = learning_rate(plan.learning_rate, run.step, progress, plan.decay_from)
        seed_torch(plan.seed, run.step, rank())
        learned = int((targets != PADDING).sum())
        stored = plan.quantize_aware if progress >= plan.round_from else None
        with memory_in_words(targets.numel()), stored_as(self.model, stored):
            value = gradients(self.loss_of, self.precision, self.device, inputs, targets)
        value = total([value], self.device)[0] / ranks()
        if not math.isfinite(value) or not update(self.model, self.optimizers, rate):
            raise FloatingPointError(
                f"loss {value}, or its gradient, is out of bounds at step {run.step:,}; {self.way_back()}"
            )
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
            with self.precision, stored_as(self.model, plan.quantize_aware):
                valid = self.measure()
            self.model.train()
            if not math.isfinite(valid):
                raise FloatingPointError(f"no number comes out of the model at step {run.step:,}; {self.way_back()}")
            self.measured = valid
        mean = sum(run.losses) / len(run.losses)
        best = min((value for _, value in run.measured), default=math.inf)
        run.curve.append((run.step, run.tokens, rate, mean, valid, round(run.seconds, 3)))
        run.losses.clear()
        self.recorded()
        if valid is not None:
            self.by_heart = learns_by_heart(run.measured, run.round_tokens)
            if valid < best:
                self.save_best()

    def use_of_gpu(self, learned: int, seconds: float) -> str:
        """How much of the GPUs' arithmetic a step has used (MFU, attention's not counted); nothing on a CPU.

        Nor of an adapter, to which the weights beside it are no gradients.
        """
        if self.device.type != "cuda" or not all(parameter.requires_grad for parameter in self.model.parameters()):
            return ""
        name = torch.cuda.get_device_name(self.device)
        peak = next((operations for known, operations in PEAK.items() if known in name), None)
        if peak is None:
            return ""
        operations = 6 * sum(parameter.numel() for parameter in self.model.parameters()) * learned
        return f", MFU {operations / (seconds * peak * ranks()):.0%}"

    def save_best(self) -> None:
        """Keep the model as the best one so far. If that fails, say so."""
        self.save_or_go_on()  # first: a run that goes on from it has measured the best model, too
        self.run.model = self.run.weights_of(self.model)
        try:
            self.run.save_best(self.folder.path)
        except OSError as error:
            say(f"Could not save the best model so far: {words(error)}. Training goes on.")

    def save(self) -> None:
        """Save the checkpoint. Raises ``OSError``."""
        self.run.model = self.run.weights_of(self.model)
        self.run.optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        self.run.save(self.folder.path)
        self.saved_step = self.run.step

    def draw(self) -> None:
        """Keep the curve."""
        keep_curve(self.run.curve, self.folder, self.run.bytes_per_token, self.run.round_tokens)

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


def make_optimizers(model: nn.Module) -> Optimizers:
    """Muon for the matrices inside the blocks, AdamW for the embedding, the output and the norms (see LOG.md).

    Both take one learning rate: Muon's updates are scaled to the size that AdamW's have.
    """
    matrices = [p for name, p in model.named_parameters() if learned_by_muon(name, tuple(p.shape))]
    others = [p for name, p in model.named_parameters() if not learned_by_muon(name, tuple(p.shape))]
    return [
        torch.optim.Muon(matrices, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def update(model: nn.Module, optimizers: Optimizers, rate: float) -> bool:
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


def learning_rate(peak: float, step: int, progress: float, decay_from: float = DECAY_FROM) -> float:
    """The rate at ``step``, ``progress`` (0 to 1) into the token budget: warm up, stay, fall to zero."""
    warm_up = max((step + 1) / WARM_UP_STEPS, progress / WARM_UP)
    decay = (1.0 - progress) / (1.0 - decay_from)
    return peak * min(1.0, warm_up, decay)


def learns_by_heart(measured: list[tuple[int, float]], round_tokens: int) -> bool:
    """Whether a run, measured at so many tokens, only learns its text by heart any more.

    It does where held-out text has become worse, and has not become better since half of what was learned, since a
    whole round through the text, and since a number of measurements.
    """
    if not measured:
        return False
    since = min(range(len(measured)), key=lambda number: measured[number][1])
    (best_at, best), (now_at, now) = measured[since], measured[-1]
    late = len(measured) - 1 - since >= PATIENCE and now_at >= 2 * best_at and now_at - best_at >= round_tokens
    return late and now > WORSE * best


def seed_torch(*numbers: int) -> None:
    """Make all that is random from here on follow from ``numbers``."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def gradients(
    loss_of: Loss, precision: AbstractContextManager[Any], device: torch.device, inputs: Tensor, targets: Tensor
) -> float:
    """Add up the gradients of a batch's mean loss, inputs and targets [rows, T], and return that loss.

    Of several processes each takes every so-manieth row, and what a step's memory cannot hold goes in parts. Of the
    loss over all rows each part's is weighted by its share of the targets; the average over the processes, which DDP
    takes, is then the whole.
    """
    n_targets = int((targets != PADDING).sum())
    own_inputs, own_targets = inputs[rank() :: ranks()], targets[rank() :: ranks()]
    weight = float(ranks())
    if not len(own_inputs):  # a batch of fewer rows than processes: work that counts nothing
        own_inputs, own_targets, weight = inputs[:1], targets[:1], 0.0
    rows = max(1, AT_ONCE[device.type] // inputs.shape[1])
    parts = list(zip(own_inputs.split(rows), own_targets.split(rows), strict=True))
    loss_sum = 0.0
    for number, (part, part_targets) in enumerate(parts, 1):
        share = weight * int((part_targets != PADDING).sum()) / n_targets
        wait = nullcontext() if number == len(parts) else getattr(loss_of, "no_sync", nullcontext)()
        with wait:
            with precision:
                loss = loss_of(part.to(device), part_targets.to(device)) * share
            loss.backward()
            loss_sum += loss.item()
    return loss_sum


@contextmanager
def memory_in_words(n_tokens: int) -> Iterator[None]:
    """Where there is too little memory for a step of so many tokens, raise ``MemoryError``."""
    try:
        yield
    except RuntimeError as error:
        if "alloca" not in str(error):
            raise
        too_much = f"a step of {n_tokens:,} tokens needs more memory than there is"
        raise MemoryError(f"{too_much}: --batch-tokens must be smaller, or the model") from error


def lost_in_words(error: RuntimeError) -> ConnectionError | None:
    """What to say where one of several processes has ended; None if the error is another one."""
    known = ("gloo", "NCCL", "Connection", "connection", "peer", "socket", "store", "collective")
    if ranks() > 1 and any(word in str(error) for word in known):
        return ConnectionError("one of the processes has ended; the others have, too. Go on with --resume")
    return None


def tokens_a_second(
    model: nn.Module, optimizers_of: MakeOptimizers, loss_of: Loss, stream: Iterator[tuple[Tensor, Tensor]]
) -> float:
    """How many tokens ``model`` learns from in a second, by a few steps that change nothing of it.

    The first steps, in which torch.compile works, do not count, and of the others the middle one does. Raises
    ``MemoryError`` or ``FloatingPointError``, in words.
    """
    device = next(model.parameters()).device
    precision, optimizers = choose_precision(device.type), optimizers_of(model)
    rates: list[float] = []
    timed = 0.0
    for number, (inputs, targets) in enumerate(stream):
        begin = time.monotonic()
        with memory_in_words(targets.numel()):
            gradients(loss_of, precision, device, inputs, targets)
        if not update(model, optimizers, rate=0.0):
            raise FloatingPointError("the model gives no finite numbers, though it has learned nothing yet")
        if number >= UNTIMED_STEPS:
            timed += time.monotonic() - begin
            rates.append(int((targets != PADDING).sum()) / (time.monotonic() - begin))
        if len(rates) == TIMED_STEPS or any(total([timed > LONG_ENOUGH], device)):
            break  # all processes at once
    model.zero_grad()
    return statistics.median(rates)


def make_loss(model: Llama, compiled: bool) -> MeanLoss:
    """A module (inputs [B, T], targets [B, T]) -> mean loss in nats per token, compiled if a compiler is there."""
    return MeanLoss(model, compiled and has_compiler(model.token_embd.weight.device.type))


def has_compiler(device: str) -> bool:
    """Whether torch.compile can work here; if not, say so."""
    if device == "cuda" or shutil.which(os.environ.get("CXX", "g++")):
        return True
    print("No C++ compiler (g++): training without torch.compile, which is about a third slower.")
    return False


class MeanLoss(nn.Module):
    """The mean loss in nats per token, fused by torch.compile as long as that works."""

    def __init__(self, model: Llama, compiled: bool) -> None:
        super().__init__()
        self.model = model
        # dynamic: batches come in many shapes, which rules out CUDA's graphs, made for one shape each.
        self.compiled = torch.compile(self.loss_of, dynamic=True) if compiled else None

    def loss_of(self, *batch: Tensor) -> Tensor:
        """As it is written."""
        inputs, targets = batch
        logits = self.model(inputs)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=PADDING)

    def forward(self, *batch: Tensor) -> Tensor:
        if self.compiled is None:
            return self.loss_of(*batch)
        try:
            return self.compiled(*batch)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            say(f"Training without torch.compile, which is about a third slower: it failed ({reason}).")
            self.compiled = None
            return self.loss_of(*batch)


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
