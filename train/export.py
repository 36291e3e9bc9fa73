"""Between PyTorch and the one model file (GGUF): writes a trained model for the page, and reads one back.

    python -m train.export out/stories -o stories.gguf

A matrix is stored as Q8_0, about a byte per weight, or as another type that quantize.py has; norms are F32 always. The
tokenizer, the context, what the model was trained on and its licence go into the file, so that it stands alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor

from fabella import tokenizer as pieces
from fabella.console import run_command
from fabella.errors import FabellaError
from fabella.formats import FORMATS, QUANTISED, STORED
from fabella.gguf import describe, read_gguf, write_gguf
from fabella.modelfile import Config, ModelFile
from fabella.sources import FileSource
from fabella.tokenizer import Tokenizer

from .checkpoint import load_run
from .files import check_output, replacing
from .model import Llama
from .quantize import quantize, read_weights
from .run import RunFolder

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


def as_tokenizer(trained: SentencePieceProcessor) -> Tokenizer:
    """The product's own tokenizer with the vocabulary of a SentencePiece model."""
    ids = range(trained.vocab_size())

    def type_of(id: int) -> int:
        if trained.is_unknown(id):
            return pieces.UNKNOWN
        if trained.is_control(id):
            return pieces.CONTROL
        return pieces.BYTE if trained.is_byte(id) else pieces.NORMAL

    return Tokenizer(
        [trained.id_to_piece(id) for id in ids],
        [trained.get_score(id) for id in ids],
        [type_of(id) for id in ids],
        bos_id=trained.bos_id(),
        eos_id=trained.eos_id(),
        unknown_id=trained.unk_id(),
    )


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


def load_gguf(path: Path) -> tuple[Llama, ModelFile]:
    """Build the model from a GGUF file, its weights dequantised, and return it with what the file says.

    Raises ``FabellaError`` (a ``ModelFileError`` that names the field) if the file is not a usable model.
    """
    with FileSource(path) as source:
        file = read_gguf(source)
        weights = {name: torch.from_numpy(read_weights(source, tensor)) for name, tensor in file.tensors.items()}
    model = Llama(file.config)
    model.load_state_dict(weights)
    return model.eval(), file


def load_model(path: Path) -> tuple[Llama, Tokenizer]:
    """The model and tokenizer of a run folder or of a GGUF file."""
    if path.is_dir():
        run, tokenizer = load_run(path)
        return run.build_model(), as_tokenizer(tokenizer)
    model, file = load_gguf(path)
    return model, file.tokenizer


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
