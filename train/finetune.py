"""Teaches a model that is there already something more: an answer's form, a voice, a text of yours.

    python -m train.finetune SmolLM2-135M-Instruct.Q4_1.gguf answers.jsonl --out out/answers
    python -m train.finetune web/models/stories.gguf mine.txt --out out/mine

The base is a GGUF file of the llama family or a folder of train.train; what it learns from, see answers.py. It learns
an adapter (lora.py) of a few megabytes, or, with --full, all of its weights. The answers alone are learned: the loss is
that of their tokens, and the logits of no others are computed. A twentieth of the examples is held out; the weights
that did best on them are kept, and are what train.export takes.

Ctrl-C saves and stops; the same command with --resume goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fabella.console import INTERRUPTED, run_command, words
from fabella.errors import FabellaError

from .answers import Example, Writer, make_batch, plan_round, read_examples, split_examples
from .base import Base
from .base import load_base as read_base
from .curve import CURVE_COLUMNS, as_csv
from .data import PADDING
from .loop import LARGEST_GRADIENT, StopOnSignal, choose_precision
from .lora import MATRICES, loras
from .model import Llama
from .options import LARGEST_RATE, LARGEST_SEED, number, whole_number
from .plan import duration
from .progress import Progress, say
from .run import RunFolder
from .tuned import FineTuning

HELD_OUT = 0.05  # of the examples
MEASURED = 2  # times a round
WARM_UP = 0.1  # the part of the steps in which the rate rises; then it falls to zero
SAVE_EVERY = 180.0  # seconds between two checkpoints
LONGEST_BY_DEFAULT = 512  # tokens
RATES = {"adapter": 1e-3, "full": 5e-5}
FIXED = ("full", "rank", "alpha", "matrices", "learning_rate", "batch_tokens", "context", "seed")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m train.finetune",
        description="Fine-tune a model on your text or answers. Ctrl-C saves and stops; --resume goes on.",
    )
    add, whole = parser.add_argument, whole_number
    add("base", type=Path, help="the model: a GGUF file of the llama family, or the --out folder of train.train")
    add("data", type=Path, help='text (.txt, .txt.xz), or .jsonl of {"prompt", "response"} or {"messages": [...]}')
    add("--out", type=Path, required=True, help="folder for what is learned")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--full", action="store_true", help="learn all weights, not an adapter: for small models, or much memory")
    add("--rank", type=whole(1, 1024), default=8, help="of the adapter: how much it can learn (default 8)")
    add("--alpha", type=number(0, 1000), help="how loud the adapter speaks (default: twice the rank)")
    add("--matrices", type=_matrices, default=MATRICES, help=f"those that get one (default: {','.join(MATRICES)})")
    add("--rounds", type=whole(1, 10**6), default=3, help="times that each example is learned from (default 3)")
    rates = f"{RATES['adapter']:g}, or {RATES['full']:g} with --full"
    add("--learning-rate", type=number(0, LARGEST_RATE), help=f"at its highest (default {rates})")
    add("--batch-tokens", type=whole(32, 10**9), default=1024, help="tokens in a step, with padding (default 1024)")
    longest = f"of an example, in tokens (default {LONGEST_BY_DEFAULT}, or the model's context)"
    add("--context", type=whole(8, 1 << 20), help=f"the greatest length {longest}")
    add("--seed", type=whole(0, LARGEST_SEED), default=1, help="of what is drawn (default 1)")
    options = parser.parse_args(arguments)
    options.alpha = options.alpha or 2.0 * options.rank
    options.learning_rate = options.learning_rate or RATES["full" if options.full else "adapter"]
    return options


def _matrices(text: str) -> tuple[str, ...]:
    """How the parser reads the names of matrices."""
    names = tuple(text.split(","))
    if not set(names) <= set(MATRICES) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(MATRICES)}, not {text[:80]!r}")
    return names


def main() -> int:
    """The command line. Returns the exit status."""

    def body() -> int:
        options = parse_arguments()
        try:
            finetune(options)
        except KeyboardInterrupt:
            kept = "the checkpoint is as it was" if options.resume else "nothing was saved"
            print(f"finetune: stopped before the first step; {kept}", file=sys.stderr)
            return INTERRUPTED
        return 0

    return run_command("finetune", body, (OSError, ValueError, FloatingPointError, MemoryError, FabellaError))


def finetune(options: argparse.Namespace) -> FineTuning:
    """Fine-tune as the command's ``options`` say, to the last round or until a signal asks to stop.

    Raises, in words, ``OSError``, ``ValueError`` (a base, data or options that are of no use), ``FabellaError``,
    ``FloatingPointError`` (the loss is not a number any more) or ``MemoryError``; ``KeyboardInterrupt`` if it is
    stopped before the first step.
    """
    folder = RunFolder(options.out)
    with StopOnSignal() as stop, folder.held(options.resume):
        run = start(options, folder)
        base = run.load_base(options.base) if options.resume else read_base(options.base)
        run.base_hash = base.hash
        torch.manual_seed(options.seed)
        count = sum(parameter.numel() for parameter in base.model.parameters())
        print(f"{options.base}: {base.name}, {count / 1e6:,.1f} million parameters", flush=True)
        learn, held_out = read_data(options, run, base)
        tuner = Tuner(run, folder, base.model, learn, held_out, options)
        tuner.plan()
        tuner.work(stop)
    report(run, folder, options)
    return run


def start(options: argparse.Namespace, folder: RunFolder) -> FineTuning:
    """A new run, or that which is to be resumed; ``ValueError`` if that began with other options."""
    chosen = {name: getattr(options, name) for name in FIXED}
    chosen["matrices"] = list(chosen["matrices"])
    if not options.resume:
        return FineTuning(chosen, str(options.base.resolve()), "")
    run = FineTuning.load_to_go_on(folder)
    for name in FIXED:
        if run.options[name] != chosen[name]:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option}: the run in {options.out} began with {run.options[name]}, not {chosen[name]}")
    return run


def read_data(options: argparse.Namespace, run: FineTuning, base: Base) -> tuple[list[Example], list[Example]]:
    """The examples to learn from and those held out, of which it says what they are."""
    context = base.model.config.seq_len
    longest = min(options.context or LONGEST_BY_DEFAULT, context) + 1  # the last token is a target alone
    examples, too_long = read_examples(options.data, Writer(base.tokenizer, base.template), longest)
    if too_long:
        advice = "a larger --context takes them" if longest <= context else f"the model's context is {context}"
        say(f"{too_long:,} examples of more than {longest - 1:,} tokens are left out; {advice}.")
    if len(examples) < 2:
        raise ValueError(f"{options.data}: {len(examples)} examples are too few: one is to be held out, others learned")
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.ids, example.learned)).encode())
    if options.resume and run.examples_hash != digest.hexdigest():
        raise ValueError(f"{options.data}: these are not the examples that the run in {options.out} began with")
    run.examples_hash = digest.hexdigest()
    learn, held_out = split_examples(examples, HELD_OUT, options.seed)
    print(
        f"{options.data}: {len(learn):,} examples to learn from and {len(held_out):,} held out, "
        f"{count_tokens(examples):,} tokens in all, of which {sum(e.n_learned for e in examples):,} are learned",
        flush=True,
    )
    return learn, held_out


def answer_loss(model: Llama, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """The loss in nats of the targets, [rows, T] like the inputs, that are not `PADDING`.

    The logits of no other position are computed: with 49,152 of them each, they would be most of the work.
    """
    counted = targets != PADDING
    logits = model.logits(model.states(inputs)[counted])  # [counted, vocab_size]
    return F.cross_entropy(logits.float(), targets[counted], reduction=reduction)


class Tuner:
    """A fine-tuning at work: batch after batch, round after round, the best kept."""

    def __init__(
        self,
        run: FineTuning,
        folder: RunFolder,
        model: Llama,
        learn: Sequence[Example],
        held_out: Sequence[Example],
        options: argparse.Namespace,
    ) -> None:
        self.run, self.folder, self.options = run, folder, options
        self.learn, self.held_out = learn, held_out
        run.prepare(model)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.to(self.device)
        self.precision = choose_precision(self.device)
        if isinstance(self.precision, torch.autocast):
            for _, lora in loras(model):  # autocast would round these, which stay as they are, anew at each step
                lora.matrix.to(torch.bfloat16)
        self.learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        if run.step:
            run.put(model, run.weights)
            self.optimizer.load_state_dict(run.optimizer)
        self.steps_a_round = len(plan_round(learn, options.batch_tokens, options.seed, 0))
        self.steps = self.steps_a_round * options.rounds
        self.measure_every = max(1, self.steps_a_round // MEASURED)
        self.saved_step = run.step

    def plan(self) -> None:
        """Try a few steps, of which nothing is kept, and say how long it will take and what it needs."""
        batches = plan_round(self.learn, self.options.batch_tokens, self.options.seed, 0)
        self.model.train()
        self._try(max(batches, key=count_tokens))  # the largest: what memory is needed, and what is made but once
        rate = sum(map(count_tokens, batches[:2])) / max(1e-3, sum(map(self._try, batches[:2])))
        for parameter in self.learned:
            parameter.grad = None
        left = count_tokens(self.learn) * (self.options.rounds - self.run.step / self.steps_a_round)
        seconds = (left + MEASURED * self.options.rounds * count_tokens(self.held_out) / 3) / rate
        count = sum(parameter.numel() for parameter in self.learned)
        what = "all weights" if self.options.full else f"an adapter of rank {self.options.rank}"
        print(
            f"Plan: {what}, {count / 1e6:,.2f} million parameters; {self.options.rounds} rounds of "
            f"{self.steps_a_round:,} steps; about {duration(seconds)} at {rate:,.0f} tokens/s; {memory_used()}",
            flush=True,
        )

    def _try(self, batch: Sequence[Example]) -> float:
        """How many seconds a step takes, without the learning."""
        began = time.monotonic()
        self._add_gradients(batch)
        return time.monotonic() - began

    def _add_gradients(self, batch: Sequence[Example]) -> float:
        """Add a batch's gradients to those that are there; return its loss."""
        inputs, targets = (part.to(self.device) for part in make_batch(batch))
        try:
            with self.precision:
                loss = answer_loss(self.model, inputs, targets)
            loss.backward()
        except RuntimeError as error:
            if "alloca" not in str(error):
                raise
            raise MemoryError("a step needs more memory than there is: --batch-tokens must be smaller") from error
        return loss.item()

    def work(self, stop: StopOnSignal) -> None:
        """Learn until the last round is done or ``stop`` is requested; save every few minutes and at the end."""
        run = self.run
        saved_at = time.monotonic()
        self.model.train()
        stop.after_this_step()
        if not run.step:
            self.measure()
        ended: BrokenPipeError | FloatingPointError | None = None
        with Progress("fine-tuning", self.steps, " steps", done=run.step, brief=False) as progress:
            for batch in self.batches():
                if stop.requested:
                    break
                began = time.monotonic()
                try:
                    loss = self.step(batch)
                except FloatingPointError as error:  # the weights are as they were before the step
                    ended = error
                    break
                run.seconds += time.monotonic() - began
                if run.step % self.measure_every == 0 or run.step == self.steps:
                    self.measure()
                if time.monotonic() - saved_at > SAVE_EVERY:
                    self.save_or_go_on()
                    saved_at = time.monotonic()
                try:
                    progress.update(1, f"loss {loss:.3f}, {run.curve[-1][4]:.4f} bits/byte held out")
                except BrokenPipeError as error:  # like Ctrl-C
                    ended = error
                    break
        if not run.step:
            raise ended or KeyboardInterrupt
        if run.step > self.saved_step:
            if run.curve[-1][0] < run.step:  # stopped between two measurements
                self.measure()
            self.save()
        if ended:
            raise ended

    def batches(self) -> Iterator[list[Example]]:
        """The batches that are left to learn from, round by round."""
        for round in range(self.run.step // self.steps_a_round, self.options.rounds):
            done = self.run.step - round * self.steps_a_round
            yield from plan_round(self.learn, self.options.batch_tokens, self.options.seed, round)[done:]

    def rate(self) -> float:
        """The learning rate of the next step: it rises for a tenth of the steps, then falls to zero."""
        begun = (self.run.step + 1) / max(1.0, WARM_UP * self.steps)
        left = (self.steps - self.run.step) / (self.steps * (1 - WARM_UP))
        return float(self.options.learning_rate) * min(1.0, begun, left)

    def step(self, batch: Sequence[Example]) -> float:
        """Learn from a batch; return its loss. Raises ``FloatingPointError`` if that is no number."""
        value = self._add_gradients(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.learned, LARGEST_GRADIENT)
        if not (math.isfinite(value) and norm.isfinite()):
            raise FloatingPointError(
                f"the loss is no number at step {self.run.step + 1:,}: begin again with a lower --learning-rate, in "
                "another --out; what was best until then is kept in this one"
                if self.run.step
                else "the loss is no number from the beginning on: the model, or an example, is beyond its numbers"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.run.step += 1
        self.run.tokens += count_tokens(batch)
        self.run.losses.append(value)
        return value

    @torch.no_grad()
    def measure(self) -> None:
        """Measure on the held-out examples, add a row to the curve, and keep the weights if they are the best."""
        run = self.run
        nats = 0.0
        self.model.eval()
        for batch in plan_round(self.held_out, self.options.batch_tokens, 0, 0):
            inputs, targets = (part.to(self.device) for part in make_batch(batch))
            with self.precision:
                nats += answer_loss(self.model, inputs, targets, reduction="sum").item()
        self.model.train()
        bits = nats / math.log(2) / sum(example.n_bytes for example in self.held_out)
        if run.best_bits is None and not math.isfinite(bits):
            raise FloatingPointError(
                "the model's answers to the held-out examples are no numbers, before it learns any"
            )
        mean = sum(run.losses) / len(run.losses) if run.losses else None
        run.losses.clear()
        run.curve.append((run.step, run.tokens, self.rate(), mean, bits, round(run.seconds, 1)))
        if run.best_bits is None or bits < run.best_bits:
            run.best_bits, run.best_step = bits, run.step
            run.best = {name: weight.detach().cpu().clone() for name, weight in run.weights_of(self.model).items()}

    def save(self) -> None:
        """Save the checkpoint and the curve. Raises ``OSError`` if the checkpoint cannot be saved."""
        run = self.run
        run.weights = {name: weight.detach().cpu() for name, weight in run.weights_of(self.model).items()}
        run.optimizer = self.optimizer.state_dict()
        run.save(self.folder)
        self.saved_step = run.step
        try:
            self.folder.write_curve_table(as_csv(CURVE_COLUMNS, run.curve))
        except OSError as error:
            say(f"The curve could not be written ({words(error)}).")

    def save_or_go_on(self) -> None:
        """Save; if that fails, say so: what was learned is safer in memory, and there may be room next time."""
        try:
            self.save()
        except OSError as error:
            say(f"Could not save: {words(error)}. It goes on, and tries again in a while.")


def count_tokens(examples: Sequence[Example]) -> int:
    """How many tokens examples have in all."""
    return sum(len(example.ids) for example in examples)


def memory_used() -> str:
    """The most memory that this process has had, in words; that of the largest step, if it was done."""
    try:
        import resource
    except ImportError:  # Windows
        return "memory not measured"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of memory"


def report(run: FineTuning, folder: RunFolder, options: argparse.Namespace) -> None:
    """Say how it ended and what comes next."""
    before, last = run.curve[0][4], run.curve[-1][4]
    steps = f"{run.step:,} steps, {run.tokens:,} tokens, {run.seconds:,.0f} seconds"
    best = f"{run.best_bits:.4f} bits per byte on the held-out examples after step {run.best_step:,}"
    end = "" if last == run.best_bits else f", {last:.4f} at the end"
    print(f"{steps}. Best, and kept: {best} ({before:.4f} before{end}).")
    if not run.best_step:
        print("It has learned nothing that helps with the held-out examples: try a lower --learning-rate.")
    export = ["python", "-m", "train.export", str(options.out)]
    name = folder.path.resolve().name
    print(f"The whole model as one file:  {shlex.join([*export, '-o', f'{name}.gguf'])}")
    if not options.full:
        print(f"The adapter alone:            {shlex.join([*export, '--adapter', '-o', f'{name}-adapter.gguf'])}")


if __name__ == "__main__":
    sys.exit(main())
