"""Writes a trained model as the one file (GGUF) that the page and the terminal read.

    python -m train.export out/stories -o stories.gguf
    python -m train.export stories.gguf -o mine.gguf --title "Stories of mine"   # the same model, in other words
    python -m train.export out/mine -o mine.gguf               # a fine-tuned one: base and adapter merged
    python -m train.export out/mine --adapter -o mine.gguf     # the adapter alone, as llama.cpp has them

A matrix is stored as Q8_0, about a byte per weight, or as another type that quantize.py has; norms are F32 always. The
tokenizer, the context, what the model was trained on, its licence and what it says of itself (fabella/card.py) go into
the file, so that it stands alone. Of a GGUF file in the run's place these words are changed, and nothing else. Of a
fine-tuning (train.finetune) the weights that did best on its held-out examples are written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fabella.adapter import describe_adapter, read_adapter
from fabella.card import metadata_of
from fabella.console import run_command
from fabella.errors import FabellaError
from fabella.formats import FLOATS, FORMATS, GROUP, QUANTISED, STORED
from fabella.gguf import copy_gguf, describe, read_gguf, write_gguf
from fabella.modelfile import Config
from fabella.sources import FileSource
from fabella.tokenizer import Tokenizer

from .beginnings import own_beginnings
from .files import check_output, replacing
from .load import load_run, naming
from .lora import merge_lora
from .model import Llama
from .quantize import fitting, quantize
from .run import RunFolder
from .tokenizer import as_tokenizer
from .tuned import FineTuning

DEFAULT_FORMAT = "Q8_0"
ADAPTER_FORMAT = "BF16"


def unstorable(config: Config, format: str) -> str | None:
    """Why a model of this shape cannot be stored in ``format``; None if it can. It is known before it is trained."""
    if format not in QUANTISED:
        return None
    group = GROUP  # in which types of larger blocks are stored where the rows do not fit them
    for name, width in (("dim", config.dim), ("hidden_dim", config.hidden_dim)):
        if width % group:
            below, above = width // group * group, -(-width // group) * group
            near = f"{below} or {above} is" if below else f"{above} is"
            return f"{name}: {format} needs a multiple of {group}, as {near}; {width} can be stored in F16, BF16 or F32"
    return None


def save_gguf(model: Llama, tokenizer: Tokenizer, path: Path, format: str, about: dict[str, Any]) -> None:
    """Write ``model`` as GGUF with its matrices in ``format``, one of `STORED`.

    Raises ``ValueError`` if a matrix cannot be stored so.
    """
    tensors = []
    for name, parameter in model.state_dict().items():  # the names are GGUF's already
        weights = parameter.float().cpu().numpy()
        type = fitting(format, weights.shape[1]) if weights.ndim == 2 else "F32"
        tensors.append((name, type, weights.shape, quantize(weights, type)))
    about = {**about, "general.quantization_version": 2, "general.file_type": FORMATS[format].file_type}
    with replacing(path) as half:
        write_gguf(half, describe(model.config, tokenizer, about), tensors)
        with FileSource(half) as source:
            read_gguf(source)  # what the page would refuse is refused here


def writable(name: str) -> str:
    """A file's name as text; its bytes may be no text in any encoding."""
    return name.encode("utf-8", "replace").decode()


def main() -> int:
    """The command line. Returns the exit status."""
    return run_command("export", lambda: export(parse_arguments()), (OSError, ValueError, FabellaError))


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m train.export",
        description="Write a trained model as one GGUF file, for the page and for any program that reads GGUF.",
    )
    parser.add_argument(
        "run", type=Path, help="the --out folder of train.train or train.finetune, or a GGUF file to give other words"
    )
    parser.add_argument("-o", dest="output", metavar="FILE", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--format",
        choices=STORED,
        help=f"of the matrices (default: {DEFAULT_FORMAT}, {ADAPTER_FORMAT} of an adapter, what they were trained "
        "for, or as a GGUF file has them)",
    )
    parser.add_argument("--adapter", action="store_true", help="of a fine-tuning, write the adapter alone")
    parser.add_argument(
        "--base", metavar="FILE", type=Path, help="of a fine-tuning, where its base is now, if it was moved"
    )
    parser.add_argument("--name", help="what the model calls itself (default: the folder's name)")
    parser.add_argument("--license", help="of the model, an SPDX name; the training text's licence may decide it")
    parser.add_argument("--data", help="what it was trained on, in words (default: the text's file name)")
    add_words(parser)
    return parser.parse_args()


def add_words(parser: argparse.ArgumentParser) -> None:
    """Add the options for what a model says of itself to those who meet it."""
    parser.add_argument("--title", help="of a page around the model")
    parser.add_argument("--about", metavar="TEXT", help="what the model is, in one or two sentences")
    parser.add_argument(
        "--beginning",
        action="append",
        metavar="TEXT",
        help="of a text that it tells well; may be given several times (default: of texts that the run's model tells)",
    )
    parser.add_argument("--language", metavar="TAG", help="that it speaks, as en or pt-BR")
    parser.add_argument("--settings", metavar="JSON", help="how it picks its tokens, as '{\"temperature\": 0.7}'")


def words_of(options: argparse.Namespace) -> dict[str, Any]:
    """The metadata of the words that the options give. Raises ``FabellaError`` if they cannot be a model's."""
    given = {
        "general.name": options.name,
        "general.license": options.license,
        "general.datasets": options.data and [options.data],
    }
    words = {key: value for key, value in given.items() if value is not None}
    return words | metadata_of(options.title, options.about, options.beginning, options.language, options.settings)


def export(options: argparse.Namespace) -> None:
    """Export as the command's ``options`` say. Raises ``OSError``, ``ValueError`` or ``FabellaError``, in words."""
    check_output(options.output)
    if options.output.suffix.lower() == ".bin":
        raise ValueError(f"{options.output}: export writes GGUF; for llama2.c's format take python -m train.convert")
    words = words_of(options)
    tuned = None if options.run.is_file() else FineTuning.find(options.run)
    if (options.adapter or options.base) and not tuned:
        option = "--adapter" if options.adapter else "--base"
        raise ValueError(f"{option}: is for the folder of a fine-tuning (train.finetune), which {options.run} is not")
    if options.run.is_file():
        reword(options, words)
    elif tuned:
        export_tuned(options, tuned, words)
    else:
        export_run(options, words)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


def reword(options: argparse.Namespace, words: dict[str, Any]) -> None:
    """Write a GGUF file with other words."""
    if options.format:
        raise ValueError(f"{options.run}: is a GGUF file, whose matrices stay as they are; leave --format out")
    with naming(options.run), FileSource(options.run) as source:
        read_gguf(source)
        with replacing(options.output) as half, half.open("wb") as file:
            copy_gguf(source, file, words)


def export_tuned(options: argparse.Namespace, run: FineTuning, words: dict[str, Any]) -> None:
    """Write what a fine-tuning has learned: a model of its own, or the adapter alone."""
    if RunFolder(options.run).owns(options.output):
        raise ValueError(f"{options.output}: is a file of the run itself; write to another one")
    for base in filter(None, (options.base, Path(run.base))):
        if base.exists() and options.output.exists() and options.output.samefile(base):
            raise ValueError(f"{options.output}: is the model that was fine-tuned; write to another file")
    words = {"general.name": writable(options.run.resolve().name), **words}
    if options.adapter:
        export_adapter(run, options.output, options.format or ADAPTER_FORMAT, words)
        return
    format = options.format or run.options.get("quantize_aware") or DEFAULT_FORMAT
    base = run.load_base(options.base)
    if reason := unstorable(base.model.config, format):
        raise ValueError(f"{reason} (--format)")
    run.prepare(base.model)
    run.put(base.model)
    merge_lora(base.model)
    save_gguf(base.model, base.tokenizer, options.output, format, {**base.about, **words})


def export_adapter(run: FineTuning, path: Path, format: str, words: dict[str, Any]) -> None:
    """Write an adapter as llama.cpp has it; fabella/adapter.py says how it lies in the file."""
    if run.options["full"]:
        raise ValueError("--adapter: this fine-tuning changed all weights (--full), and has none")
    if format not in FLOATS:
        raise ValueError(f"--format: an adapter is stored as one of {', '.join(FLOATS)}, not {format}")
    tensors = [
        (name, format, tuple(weight.shape), quantize(weight.numpy(), format)) for name, weight in run.model.items()
    ]
    with replacing(path) as half:
        write_gguf(half, describe_adapter("llama", run.options["alpha"], words), tensors)
        with FileSource(half) as source:
            read_adapter(source)


def export_run(options: argparse.Namespace, words: dict[str, Any]) -> None:
    """Write a trained model."""
    if RunFolder(options.run).owns(options.output):
        raise ValueError(f"{options.output}: is a file of the run itself; write to another one")
    run, tokenizer = load_run(options.run)
    format = options.format or run.options.get("quantize_aware") or DEFAULT_FORMAT
    if reason := unstorable(run.config, format):
        raise ValueError(f"{reason} (--format)")
    model, tokens = run.build_model(), as_tokenizer(tokenizer)
    if options.beginning is None and (beginnings := own_beginnings(model, tokens)):
        words = metadata_of(beginnings=beginnings) | words
    about: dict[str, Any] = {
        "general.name": writable(options.run.resolve().name),
        "general.datasets": [writable(Path(run.options["text"]).name)],
        **words,
        "fabella.training.tokens": run.tokens,
    }
    if run.bits_per_byte is not None:
        about["fabella.training.bits_per_byte"] = run.bits_per_byte
    save_gguf(model, tokens, options.output, format, about)


if __name__ == "__main__":
    sys.exit(main())
