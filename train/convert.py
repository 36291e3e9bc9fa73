"""Turns models from one format into another: GGUF, a Hugging Face folder, Meta's, llama2.c's.

    python -m train.convert SmolLM2-135M-Instruct -o smollm2.gguf --format Q8_0   # a Hugging Face folder
    python -m train.convert Llama-3.2-1B/original -o llama.gguf                   # consolidated.00.pth, params.json
    python -m train.convert ckpt.pt -o stories.gguf                               # llama2.c, .bin as well
    python -m train.convert out/stories -o stories-hf                             # a run as a Hugging Face folder
    python -m train.convert out/stories -o stories.bin --version 2                # as llama2.c's, with tokenizer.bin

What SOURCE is shows in its files, what is written in the output's name: .gguf, .bin, or else a folder. Numbers stay as
they are unless --format asks for others. A model that would not be the same afterwards is refused, in words.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fabella.console import run_command
from fabella.errors import FabellaError
from fabella.formats import FLOATS, STORED
from fabella.gguf import describe
from fabella.models import open_model

from . import llama2c
from .export import unstorable, writable
from .files import check_output, flush, replacing
from .huggingface import CONFIG, check_writable, open_huggingface, write_huggingface
from .load import load_run, naming
from .meta import PARAMS, open_checkpoint, open_meta
from .portable import Portable, Weights, from_file, with_metadata, write_as_gguf
from .run import RunFolder
from .tokenizer import as_tokenizer

TOKENIZER = "tokenizer.bin"


def main() -> int:
    """The command line. Returns the exit status."""
    return run_command("convert", lambda: convert(parse_arguments()), (OSError, ValueError, FabellaError))


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m train.convert", description="Turn a model from one format into another."
    )
    parser.add_argument(
        "source",
        type=Path,
        help="a Hugging Face folder, one of Meta's with params.json, the --out folder of train.train, a GGUF file, or "
        "llama2.c's .pt or .bin",
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        required=True,
        help="what to write: NAME.gguf; NAME.bin for llama2.c, with tokenizer.bin beside it; or else a new folder, for "
        "transformers",
    )
    parser.add_argument(
        "--format",
        choices=STORED,
        help="of the matrices in a GGUF file (default: as they are), or of all numbers in a folder: F32 (default), F16 "
        "or BF16",
    )
    parser.add_argument(
        "--version", type=int, choices=llama2c.VERSIONS, help="of llama2.c's format: 0 and 1 are float32, 2 is int8 (1)"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer.model or tokenizer.bin, where it is not beside SOURCE"
    )
    parser.add_argument("--name", help="what the model calls itself (default: the file's or folder's name)")
    return parser.parse_args()


def convert(options: argparse.Namespace) -> None:
    """Convert as the command's ``options`` say. Raises ``OSError``, ``ValueError`` or ``FabellaError``, in words."""
    suffix = options.output.suffix.lower()
    _check_options(options, suffix)
    with open_source(options.source, options.tokenizer) as model:
        if options.name:
            model = with_metadata(model, **{"general.name": options.name})
        for note in model.notes:
            print(f"Note: {note}.")
        if suffix == ".gguf":
            _write_gguf(model, options.output, options.format)
        elif suffix == ".bin":
            _write_llama2c(model, options.output, 1 if options.version is None else options.version)
        else:
            _write_folder(model, options.output, options.format or "F32")


def _check_options(options: argparse.Namespace, suffix: str) -> None:
    """Raise ``ValueError`` or ``OSError`` if options contradict each other, or nothing can be written there."""
    if suffix == ".bin" and options.format:
        raise ValueError("--format: llama2.c's files have none; --version says how numbers are stored")
    if suffix != ".bin" and options.version is not None:
        raise ValueError("--version: is that of llama2.c's files, NAME.bin")
    if suffix in (".gguf", ".bin"):
        check_output(options.output)
        if options.output.exists() and options.source.exists() and options.output.samefile(options.source):
            raise ValueError(f"{options.output}: is the source itself; write to another file")
        return
    if options.format and options.format not in FLOATS:
        raise ValueError(f"--format: a folder for transformers has {', '.join(FLOATS)} numbers, not {options.format}")
    if options.output.exists():
        raise FileExistsError(f"{options.output}: is there already; choose another folder")
    if not options.output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{options.output}: there is no folder {options.output.parent} to make it in")


@contextmanager
def open_source(path: Path, tokenizer: Path | None = None) -> Iterator[Portable]:
    """Open a model, whatever its format; its weights can be read until the ``with`` statement ends.

    Parameters
    ----------
    path
        As the command's SOURCE.
    tokenizer
        The tokenizer's file, where the format has none in the model and it is not beside it.

    Raises
    ------
    FabellaError
        The model is refused; the message names its file.
    OSError
        A file cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    with naming(path), _open(path, tokenizer) as model:
        yield model


@contextmanager
def _open(path: Path, tokenizer: Path | None) -> Iterator[Portable]:
    if path.is_dir():
        folder = RunFolder(path)
        if tokenizer and not (path / PARAMS).is_file():
            raise FabellaError(f"{path}: has its own tokenizer; leave --tokenizer out")
        if (path / CONFIG).is_file():
            reader = open_huggingface(path)
        elif (path / PARAMS).is_file():
            reader = open_meta(path, tokenizer)
        elif folder.checkpoint.is_file() or folder.previous.is_file():
            yield _from_run(path)
            return
        else:
            raise FabellaError(
                f"{path}: holds no model: neither {CONFIG} (Hugging Face) nor {PARAMS} (Meta) nor "
                f"{folder.checkpoint.name} (a run of train.train)"
            )
        with reader as model:
            yield model
    elif path.suffix in (".pt", ".pth"):
        with open_checkpoint(path, tokenizer) as model:
            yield model
    else:
        beside = path.parent / TOKENIZER
        found = tokenizer or (beside if path.suffix == ".bin" and beside.is_file() else None)
        with open_model(path, found, "--tokenizer") as (file, source):
            yield from_file(source, file, path.stem)


def _from_run(path: Path) -> Portable:
    """A trained model; it is in memory."""
    run, tokenizer = load_run(path)
    tensors = {
        name: Weights("F32", tuple(tensor.shape), lambda tensor=tensor: tensor.float().numpy())  # type: ignore[misc]
        for name, tensor in run.model.items()
    }
    about = {"general.name": writable(path.resolve().name)}
    return Portable(describe(run.config, as_tokenizer(tokenizer), about), tensors)


def _write_gguf(model: Portable, path: Path, format: str | None) -> None:
    config = model.config()
    if format and (reason := unstorable(config, format)):
        raise ValueError(f"{reason} (--format)")
    with replacing(path) as half:
        write_as_gguf(model, half, format)
    print(f"{path}: {path.stat().st_size:,} bytes")


def _write_llama2c(model: Portable, path: Path, version: int) -> None:
    beside = path.with_name(TOKENIZER)
    check_output(beside)
    llama2c.check_llama2c(model)
    tokenizer = llama2c.check_tokenizer(model.tokenizer())
    with replacing(path) as half, replacing(beside) as half_tokenizer:
        llama2c.write_tokenizer(tokenizer, half_tokenizer)
        if beside.exists() and beside.read_bytes() != half_tokenizer.read_bytes():
            raise FabellaError(f"{beside}: is there already, of another model; write into another folder")
        llama2c.write_model(model, half, version)
    print(f"{path}: {path.stat().st_size:,} bytes; {beside}: {beside.stat().st_size:,} bytes")


def _write_folder(model: Portable, folder: Path, format: str) -> None:
    """Write a folder that is whole or not there."""
    check_writable(model.config())
    half = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    half.mkdir()
    try:
        write_huggingface(model, half, format)
        for path in half.iterdir():
            flush(path)
        half.rename(folder)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()):,} bytes")


if __name__ == "__main__":
    sys.exit(main())
