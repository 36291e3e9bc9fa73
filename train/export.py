"""Writes a trained model as the one file (GGUF) that the page and the terminal read.

    python -m train.export out/stories -o stories.gguf

A matrix is stored as Q8_0, about a byte per weight, or as another type that quantize.py has; norms are F32 always. The
tokenizer, the context, what the model was trained on and its licence go into the file, so that it stands alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fabella.console import run_command
from fabella.errors import FabellaError
from fabella.formats import FORMATS, QUANTISED, STORED
from fabella.gguf import describe, read_gguf, write_gguf
from fabella.modelfile import Config
from fabella.sources import FileSource
from fabella.tokenizer import Tokenizer

from .files import check_output, replacing
from .load import load_run
from .model import Llama
from .quantize import quantize
from .run import RunFolder
from .tokenizer import as_tokenizer

DEFAULT_FORMAT = "Q8_0"


def unstorable(config: Config, format: str) -> str | None:
    """Why a model of this shape cannot be stored in ``format``; None if it can. It is known before it is trained."""
    if format not in QUANTISED:
        return None
    group = FORMATS[format].block
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
        type = format if weights.ndim == 2 else "F32"
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
    parser.add_argument("run", type=Path, help="the --out folder of train.train")
    parser.add_argument("-o", dest="output", metavar="FILE", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--format", choices=STORED, default=DEFAULT_FORMAT, help=f"of the matrices (default: {DEFAULT_FORMAT})"
    )
    parser.add_argument("--name", help="what the model calls itself (default: the folder's name)")
    parser.add_argument("--license", help="of the model, an SPDX name; the training text's licence may decide it")
    parser.add_argument("--data", help="what it was trained on, in words (default: the text's file name)")
    return parser.parse_args()


def export(options: argparse.Namespace) -> None:
    """Export as the command's ``options`` say. Raises ``OSError``, ``ValueError`` or ``FabellaError``, in words."""
    check_output(options.output)
    if RunFolder(options.run).owns(options.output):
        raise ValueError(f"{options.output}: is a file of the run itself; write to another one")
    run, tokenizer = load_run(options.run)
    if reason := unstorable(run.config, options.format):
        raise ValueError(f"{reason} (--format)")
    about: dict[str, Any] = {"general.name": options.name or writable(options.run.resolve().name)}
    if options.license:
        about["general.license"] = options.license
    about["general.datasets"] = [options.data or writable(Path(run.options["text"]).name)]
    about["fabella.training.tokens"] = run.tokens
    if run.bits_per_byte is not None:
        about["fabella.training.bits_per_byte"] = run.bits_per_byte
    save_gguf(run.build_model(), as_tokenizer(tokenizer), options.output, options.format, about)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
