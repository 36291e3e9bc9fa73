"""Opens a model file, whatever its format: the one place that decides between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fabella.adapter import Adapter, read_adapter
from fabella.errors import FabellaError, ModelFileError
from fabella.filetype import incomplete
from fabella.gguf import MAGIC, read_gguf
from fabella.llama2c import is_llama2c, read_llama2c
from fabella.modelfile import ModelFile
from fabella.sources import ByteSource, BytesSource, FileSource

if TYPE_CHECKING:
    from fabella.engine import Engine

File = str | os.PathLike[str] | bytes | BinaryIO  # where it is, its bytes, or it itself, opened


@contextmanager
def open_model(
    file: File, tokenizer: File | None = None, option: str = "-z"
) -> Iterator[tuple[ModelFile, FileSource | BytesSource]]:
    """Open and check a model: GGUF, or llama2.c's .bin together with its tokenizer.

    Parameters
    ----------
    file
        The model file.
    tokenizer
        tokenizer.bin for llama2.c's; None for GGUF, which has its own.
    option
        What the command line calls `tokenizer`, for messages.

    Yields
    ------
    What the file says, and the file, open for the weights to be read.

    Raises
    ------
    FabellaError
        The file is refused, here or by who reads the weights; the message names it.
    OSError
        A file cannot be opened.
    """
    try:
        with ExitStack() as files:
            source = _open(file, files)
            vocabulary = None if tokenizer is None else _open(tokenizer, files)
            yield read_model(source, vocabulary, option), source
    except ModelFileError as error:
        path = Path(file) if isinstance(file, (str, os.PathLike)) else None
        part = incomplete(path.name) if path else ""
        raise FabellaError(
            f"{path or 'the model'}: {error}" + (f"; by its name this is {part}" if part else "")
        ) from error


@contextmanager
def open_adapter(file: File) -> Iterator[tuple[Adapter, FileSource | BytesSource]]:
    """Open and check an adapter; yield what it says, and the file for its weights to be read. Raises as `open_model`.

    Whether it fits a model shows when it is given to that: a ModelFileError there gets the adapter's name, too.
    """
    try:
        with ExitStack() as files:
            source = _open(file, files)
            yield read_adapter(source), source
    except ModelFileError as error:
        path = Path(file) if isinstance(file, (str, os.PathLike)) else None
        raise FabellaError(f"{path or 'the adapter'}: {error}") from error


def put_adapter(engine: Engine, file: File | None) -> None:
    """Give a loaded model the adapter in a file, if one is named. Raises as `open_adapter`, and as the engine does."""
    if file is not None:
        with open_adapter(file) as (adapter, source):
            engine.adapt(adapter, source)


def _open(file: File, files: ExitStack) -> FileSource | BytesSource:
    if isinstance(file, (str, os.PathLike)):
        return files.enter_context(FileSource(file))
    if isinstance(file, TextIOBase):
        raise FabellaError("a model's file must be opened to read bytes, in mode 'rb'")
    if not isinstance(file, (bytes, bytearray, memoryview)) and not hasattr(file, "read"):
        raise FabellaError(f"a model is a path, bytes or an open file, not {file!r}")
    return BytesSource(bytes(file if isinstance(file, (bytes, bytearray, memoryview)) else file.read()))


def read_model(source: ByteSource, vocabulary: ByteSource | None, option: str) -> ModelFile:
    """Read and check a model's header, and its tokenizer, as `open_model` does. Raises ModelFileError."""
    if source.read(0, min(len(MAGIC), source.size)) == MAGIC:
        if vocabulary:
            raise ModelFileError("tokenizer", f"a GGUF file has its own; leave {option} out")
        return read_gguf(source)
    if vocabulary:
        return read_llama2c(source, vocabulary)
    if is_llama2c(source):
        raise ModelFileError("tokenizer", f"a llama2.c model needs {option} as well: its tokenizer.bin")
    return read_gguf(source)  # it says what else this is
