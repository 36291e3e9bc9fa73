"""What a training says: its plan, a story at each measurement, how it ended, and what to do next."""

from __future__ import annotations

import argparse
import math
import shlex
import textwrap
from pathlib import Path

from fabella.errors import short_text
from fabella.generate import generate
from fabella.sampler import Settings
from fabella.tokenizer import Tokenizer

from . import explain, plan
from .checkpoint import Checkpoint
from .evaluate import HeldOut
from .export import DEFAULT_FORMAT, unstorable
from .loop import learns_by_heart
from .model import Llama
from .run import RunFolder
from .sample import TorchModel

SAMPLE = 60  # tokens of the story that is told at each measurement


def too_small(text: Path, n_characters: int) -> ValueError:
    """What to say of a text that gives no vocabulary."""
    return ValueError(
        f"{text}: its {n_characters:,} characters are too few, or too uniform, to learn a language from. A model that "
        "is trained from nothing needs 20,000 and more, and sentences come from a million on; with so little text, "
        "fine-tune a model that knows the language (train.finetune)"
    )


def describe(options: argparse.Namespace, run: Checkpoint, measured_on: HeldOut, speed: float, device: str) -> str:
    """The plan, in words."""
    c, left = run.config, options.tokens - run.tokens
    steps = left / options.batch_tokens
    measuring = math.ceil(steps / options.eval_every) * measured_on.n_tokens * plan.FORWARD  # at the end, too
    learned = int(run.round_tokens * run.bytes_per_token)  # bytes
    time = plan.duration((left + measuring) / speed)
    heads = f"{c.n_heads} heads, {c.n_kv_heads} of keys and values"
    format = options.quantize_aware or DEFAULT_FORMAT
    size = plan.file_size(c, format if not unstorable(c, format) else "F16")
    lines = {
        "Vocabulary": f"{c.vocab_size:,} tokens; {run.round_tokens:,} to learn from in a round through the text",
        "Model": f"{plan.count_parameters(c):,} parameters: {c.dim} wide, {c.n_layers} layers, {heads}, {c.hidden_dim} "
        f"in the feed-forward, a context of {c.seq_len}; its file will have {size / 1e6:.1f} MB",
        "Training": f"{left:,} tokens, {left / run.round_tokens:.1f} rounds, in steps of {options.batch_tokens:,}; "
        f"learning rate {options.learning_rate:g}, dropout {options.dropout:g}"
        + (f"; at last, and when measured, as {options.quantize_aware}" if options.quantize_aware else ""),
        "Held out": f"{measured_on}; measured every {options.eval_every:,} steps",
        "Time": f"{time} on this machine ({device}, {speed:,.0f} tokens a second in the first steps)",
        "To expect": plan.expectation(options, learned, run.round_tokens),
    }
    wide = max(map(len, lines)) + 2
    return "\n".join(
        textwrap.fill(f"{name + ':':{wide}}{words}", 100, subsequent_indent=" " * wide, break_on_hyphens=False)
        for name, words in lines.items()
    )


def tell(model: Llama, tokenizer: Tokenizer, document: str) -> str:
    """The beginning of a story, in one line, that begins like a held-out ``document``."""
    length = min(SAMPLE, model.config.seq_len)
    beginning = " ".join(document[:40].split()[:3])
    while len(tokenizer.encode(beginning)) > length // 2:
        beginning = beginning[:-1]
    settings = Settings(temperature=0.8, top_p=0.9, seed=1)
    steps = generate(TorchModel(model), tokenizer, beginning, settings, length)
    return short_text("".join(step.text for step in steps), longest=1000)


def say_end(options: argparse.Namespace, run: Checkpoint, measured_on: HeldOut) -> None:
    """How the training ended, and what to do next."""
    folder = RunFolder(options.out)
    best_at, best = min(run.measured, key=lambda point: point[1]) if run.measured else (0, math.nan)
    if run.tokens < options.tokens and not learns_by_heart(run.measured, run.round_tokens):
        print(f"Stopped and saved at step {run.step:,}. To go on: the same command with --resume.")
        return
    if run.tokens < options.tokens:
        print(
            f"Stopped at step {run.step:,}: the model only learns the text by heart any more. On the held-out text it "
            f"was best at {best_at:,} tokens, and has {run.bits_per_byte:.4f} bits per byte now."
        )
    print(f"Done: {run.tokens:,} tokens; best: {best:.4f} bits per byte on the held-out text ({measured_on}).")
    print(f"{folder.curve_picture} shows the way there. Next, with the best model:")
    folder_name, name = (shlex.quote(part) for part in (str(options.out), f"{options.out.resolve().name}.gguf"))
    print(f"    python -m train.export {folder_name} -o {name}\n    python build.py serve --model {name}")


if __name__ == "__main__":
    explain(__doc__)
