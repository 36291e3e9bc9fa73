"""Teaches a model that is there already something more: an answer's form, a voice, a text of yours.

    python -m train.finetune SmolLM2-135M-Instruct.Q4_1.gguf answers.jsonl --out out/answers
    python -m train.finetune web/models/stories.gguf mine.txt --out out/mine

The base is a GGUF file of the llama family, a Hugging Face folder or a folder of train.train; what it learns from, see
answers.py. It learns an adapter (lora.py) of a few megabytes or, with --full, all of its weights. The answers alone are
learned: the loss is that of their tokens, and the logits of no others are computed. A twentieth of the examples is held
out; the weights that did best on them are kept, and are what train.export takes. The loop is that of all trainings
(loop.py), and so is what lies in the --out folder (run.py).

Ctrl-C saves and stops; the same command with --resume goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fabella.console import INTERRUPTED, run_command
from fabella.errors import FabellaError

from .answers import Example, Writer, batches, make_batch, plan_round, read_examples, split_examples
from .base import Base, load_base
from .curve import keep_curve
from .data import PADDING
from .export import unstorable
from .loop import AT_ONCE, SAVE_EVERY, Plan, StopOnSignal, choose_precision, fit, learns_by_heart, tokens_a_second
from .lora import MATRICES, loras
from .model import Llama
from .options import LARGEST_RATE, LARGEST_SEED, number, whole_number
from .plan import FORWARD, duration
from .progress import say
from .quantize import BITS
from .rounding import stored_as
from .run import RunFolder
from .tuned import FineTuning

HELD_OUT = 0.05  # of the examples
MEASURED = 2  # times a round
DECAY_FROM = 0.1  # the part of the budget after which the learning rate falls: it has just risen then
LONGEST_BY_DEFAULT = 512  # tokens
COUNTED_STEP = 256  # logits are computed for so many positions at a time
RATES = {"adapter": 1e-3, "full": 5e-5}
FIXED = ("full", "quantize_aware", "rank", "alpha", "matrices", "batch_tokens", "context", "seed")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m train.finetune",
        description="Fine-tune a model on your text or answers. Ctrl-C saves and stops; --resume goes on.",
    )
    add, whole = parser.add_argument, whole_number
    add(
        "base",
        type=Path,
        help="the model: a GGUF file of the llama family, a Hugging Face folder, or one of train.train",
    )
    add("data", type=Path, help='text (.txt, .txt.xz), or .jsonl of {"prompt", "response"} or {"messages": [...]}')
    add("--out", type=Path, required=True, help="folder for what is learned")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--full", action="store_true", help="learn all weights, not an adapter: for small models, or much memory")
    add("--quantize-aware", choices=BITS, help="with --full: learn for this format, with weights rounded to it")
    add("--rank", type=whole(1, 1024), default=4, help="of the adapter: how much it can learn (default 4)")
    add("--alpha", type=number(0, 1000), help="how loud the adapter speaks (default: twice the rank)")
    add(
        "--matrices", type=_matrices, default=list(MATRICES), help=f"those that get one (default: {','.join(MATRICES)})"
    )
    add("--rounds", type=whole(1, 10**6), default=3, help="times that each example is learned from (default 3)")
    rates = f"{RATES['adapter']:g}, or {RATES['full']:g} with --full"
    add("--learning-rate", type=number(0, LARGEST_RATE), help=f"at its highest (default {rates})")
    add("--batch-tokens", type=whole(32, 10**9), default=1024, help="tokens in a step, with padding (default 1024)")
    longest = f"of an example, in tokens (default {LONGEST_BY_DEFAULT}, or the model's context)"
    add("--context", type=whole(8, 1 << 20), help=f"the greatest length {longest}")
    add("--seed", type=whole(0, LARGEST_SEED), default=1, help="of what is drawn (default 1)")
    options = parser.parse_args(arguments)
    if options.quantize_aware and not options.full:
        parser.error("--quantize-aware: the weights that an adapter leaves as they are cannot learn it; give --full")
    options.alpha = options.alpha or 2.0 * options.rank
    return options


def _matrices(text: str) -> list[str]:
    """How the parser reads the names of matrices."""
    names = text.split(",")
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
    stopped before the first step; ``BrokenPipeError``, after saving, if nobody reads what it prints any more.
    """
    folder = RunFolder(options.out)
    with StopOnSignal() as stop, folder.held(options.resume):
        run = go_on(options) if options.resume else None
        base = load_base(options.base)
        if run is None:
            chosen = {name: getattr(options, name) for name in FIXED}
            run = FineTuning(options=chosen, base=str(options.base.resolve()), base_hash=base.hash)
        run.check(base)
        usual = run.options.get("learning_rate", RATES["full" if options.full else "adapter"])
        run.options["learning_rate"] = options.learning_rate or usual
        if options.quantize_aware and (reason := unstorable(base.model.config, options.quantize_aware)):
            raise ValueError(f"--quantize-aware: {reason}")
        count = sum(parameter.numel() for parameter in base.model.parameters())
        print(f"{options.base}: {base.name}, {count / 1e6:,.1f} million parameters", flush=True)
        learn, held_out = read_data(options, run, base)
        if run.tokens >= options.rounds * run.round_tokens:
            keep_curve(run.curve, folder, run.bytes_per_token, run.round_tokens)
            print(f"Done already: {run.tokens / run.round_tokens:.0f} rounds; ask for more (--rounds) to go on.")
        else:
            torch.manual_seed(options.seed)
            run.prepare(base.model)
            model = base.model.to("cuda" if torch.cuda.is_available() else "cpu")
            work(options, run, model, learn, held_out, stop)
    report(run, folder, options)
    return run


def go_on(options: argparse.Namespace) -> FineTuning:
    """The run that is to be resumed; ``ValueError`` if it began with other options."""
    run = FineTuning.load_to_go_on(options.out)
    for name in FIXED:
        if (said := getattr(options, name)) != run.options.get(name):
            began = f"the run in {options.out} began with {run.options.get(name)}, not {said}"
            raise ValueError(f"--{name.replace('_', '-')}: {began}")
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
    run.round_tokens = count_learned(learn)
    run.bytes_per_token = sum(example.n_bytes for example in learn) / run.round_tokens
    print(
        f"{options.data}: {len(learn):,} examples to learn from and {len(held_out):,} held out, "
        f"{sum(len(example.ids) for example in examples):,} tokens in all, of which {count_learned(examples):,} are "
        "learned",
        flush=True,
    )
    return learn, held_out


def count_learned(examples: Sequence[Example]) -> int:
    """How many tokens of examples are learned."""
    return sum(example.n_learned for example in examples)


def answer_loss(model: Llama, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """The loss in nats of the targets, [rows, T] like the inputs, that are not `PADDING`.

    The logits of no other position are computed: with 49,152 of them each, they would be most of the work. How many
    there are is rounded up, or oneDNN would keep a program for every number (train/__init__.py).
    """
    counted = targets != PADDING
    more = -int(counted.sum()) % COUNTED_STEP
    states = F.pad(model.states(inputs)[counted], (0, 0, 0, more))  # [counted + more, dim]
    wanted = F.pad(targets[counted], (0, more), value=PADDING)  # [counted + more]
    return F.cross_entropy(model.logits(states).float(), wanted, ignore_index=PADDING, reduction=reduction)


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """What learns an adapter, or all weights that are there already: AdamW, without decay towards zero."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [torch.optim.AdamW(learned, betas=(0.9, 0.99), weight_decay=0.0, fused=True)]


def work(
    options: argparse.Namespace,
    run: FineTuning,
    model: Llama,
    learn: Sequence[Example],
    held_out: Sequence[Example],
    stop: StopOnSignal,
) -> None:
    """Say the plan and go through with the training."""
    device = model.token_embd.weight.device
    precision = choose_precision(device.type)
    if isinstance(precision, torch.autocast):
        for _, lora in loras(model):  # autocast would round these, which stay as they are, anew at each step
            lora.matrix.to(torch.bfloat16)

    at_once = min(options.batch_tokens, AT_ONCE[device.type])

    @torch.no_grad()
    def measure() -> float:
        nats = 0.0
        for batch in plan_round(held_out, at_once, 0, 0):
            inputs, targets = (part.to(device) for part in make_batch(batch))
            nats += answer_loss(model, inputs, targets, reduction="sum").item()
        return nats / math.log(2) / sum(example.n_bytes for example in held_out)

    if run.before is None:
        with precision, stored_as(model, options.quantize_aware):
            run.before = measure()
        if not math.isfinite(run.before):
            raise FloatingPointError(
                "the model's answers to the held-out examples are no numbers, before it learns any"
            )
    loss_of = partial(answer_loss, model)
    one_round = plan_round(learn, options.batch_tokens, options.seed, 0)
    largest = make_batch(max(one_round, key=lambda batch: sum(len(example.ids) for example in batch)))
    some = chain([largest], batches(learn, options.batch_tokens, options.seed))  # the first says what memory it takes
    with stored_as(model, options.quantize_aware):  # which takes memory, too
        speed = tokens_a_second(model, make_optimizers, loss_of, some)
    print(describe(options, run, model, len(one_round), count_learned(held_out), speed), flush=True)
    plan = Plan(
        tokens=options.rounds * run.round_tokens,
        learning_rate=run.options["learning_rate"],
        eval_every=max(1, len(one_round) // MEASURED),
        save_every=SAVE_EVERY,
        seed=options.seed,
        decay_from=DECAY_FROM,
        quantize_aware=options.quantize_aware,
        round_from=0.0,
    )
    stream = batches(learn, options.batch_tokens, options.seed, run.step)
    fit(run, RunFolder(options.out), model, make_optimizers, loss_of, stream, measure, plan, stop)


def describe(
    options: argparse.Namespace, run: FineTuning, model: Llama, n_batches: int, n_held_out: int, speed: float
) -> str:
    """The plan, in words."""
    left = options.rounds * run.round_tokens - run.tokens
    seconds = (left + MEASURED * options.rounds * n_held_out * FORWARD) / speed
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    what = "all weights" if options.full else f"an adapter of rank {options.rank}"
    what += f" to be stored as {options.quantize_aware}" if options.quantize_aware else ""
    return (
        f"Plan: {what}, {count:,} parameters; {options.rounds} rounds of {n_batches:,} steps; about "
        f"{duration(seconds)} at {speed:,.0f} learned tokens/s; {memory_used()}"
    )


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
    print(f"{run.step:,} steps, {run.tokens:,} learned tokens, {run.seconds:,.0f} seconds. {folder.curve_picture}")
    if run.measured:
        best_at, best = min(run.measured, key=lambda point: point[1])
        end = "" if run.bits_per_byte == best else f", {run.bits_per_byte:.4f} at the end"
        print(
            f"Best, and kept: {best:.4f} bits per byte on the held-out examples after {best_at / run.round_tokens:.1f} "
            f"rounds ({run.before:.4f} before{end})."
        )
        if run.before is not None and best >= run.before:
            print("It has learned nothing that helps with them: begin again with a lower --learning-rate.")
    if run.tokens < options.rounds * run.round_tokens:
        if learns_by_heart(run.measured, run.round_tokens):
            print("It was ended: held-out examples only become worse. More of them would help, or fewer --rounds.")
        else:
            print("To go on: the same command with --resume.")
    export = ["python", "-m", "train.export", str(options.out)]
    name = folder.path.resolve().name
    print(f"The whole model as one file:  {shlex.join([*export, '-o', f'{name}.gguf'])}")
    if not options.full:
        print(f"The adapter alone:            {shlex.join([*export, '--adapter', '-o', f'{name}-adapter.gguf'])}")


if __name__ == "__main__":
    sys.exit(main())
