"""The weights in a folder of safetensors files: where each lies, checked, and read one at a time.

One file ``model.safetensors``, or several that ``model.safetensors.index.json`` lists. The library safetensors reads
them and checks that every size and offset is within the file. Written are they here, because the library wants a whole
model in memory: eight bytes with the length of a header in JSON, the header, the numbers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fabella.errors import FabellaError, ModelFileError
from fabella.filetype import BEGINNING, what_is
from fabella.metadata import quoted

from . import explain
from .portable import Weights

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
TYPES = ("F32", "F16", "BF16")  # called as in GGUF


@contextmanager
def open_weights(folder: Path) -> Iterator[dict[str, Weights]]:
    """Open the folder's files; the tensors, by their names in them, can be read until the ``with`` statement ends.

    Raises
    ------
    FabellaError
        No such files, or a damaged one; the message names it.
    ModelFileError
        `field` is the tensor that is missing, there twice, or of a type that is not read.
    """
    with ExitStack() as files:
        tensors: dict[str, Weights] = {}
        for path, listed in _files(folder).items():
            file = files.enter_context(_open(path))
            names = set(file.keys())
            for name in sorted(listed - names):
                raise ModelFileError(name, f"{INDEX} says it is in {path.name}, but it is not")
            for name in sorted(names & listed or names):
                if name in tensors:
                    raise ModelFileError(name, f"this tensor is in {path.name} and in another file")
                tensors[name] = _weights(file, name)
        yield tensors


def _files(folder: Path) -> dict[Path, set[str]]:
    """The files, each with the tensors that the index lists in it: none if there is no index."""
    if (folder / ONE).is_file():
        return {folder / ONE: set()}
    if not (folder / INDEX).is_file():
        others = sorted(path.name for path in folder.glob("*.bin"))
        there = f"; {others[0]} is of the time before: save the model anew as safetensors" if others else ""
        raise FabellaError(f"{folder}: has neither {ONE} nor {INDEX}, the weights{there}")
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise FabellaError(f"{folder / INDEX}: has no weight_map, which says what is where")
    files: dict[Path, set[str]] = {}
    for name, file in listed.items():
        if not isinstance(file, str) or PurePath(file).name != file or "\\" in file:
            raise FabellaError(f"{folder / INDEX}: {name} is said to be in {file!r}, which is no file beside it")
        files.setdefault(folder / file, set()).add(name)
    for path in files:
        if not path.is_file():
            raise FabellaError(f"{path}: is missing; {INDEX} lists {len(files)} files, and all are needed")
    return files


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        with path.open("rb") as damaged:
            other = what_is(damaged.read(BEGINNING), path.stat().st_size)
        is_other = other and "safetensors" not in other
        reason = f"is {other}" if is_other else f"is damaged, or its download is incomplete ({error})"
        raise FabellaError(f"{path}: {reason}") from None
    with file:
        yield file


def _weights(file: Any, name: str) -> Weights:
    part = file.get_slice(name)
    shape, type = tuple(part.get_shape()), str(part.get_dtype())
    if type not in TYPES:
        raise ModelFileError(
            name, f"holds numbers of type {type}; only {', '.join(TYPES)} are read, not what has been quantised"
        )
    if not 1 <= len(shape) <= 2 or 0 in shape:
        raise ModelFileError(name, f"has shape {shape}, but must be a matrix or a vector")
    return Weights(type, shape, lambda: file.get_tensor(name).float().numpy())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises ``FabellaError`` if it is none, or ``OSError``."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        with path.open("rb") as file:
            other = what_is(file.read(BEGINNING), path.stat().st_size) or ""
        reason = other if other and "JSON" not in other else f"{error}"
        raise FabellaError(f"{path}: is no JSON, or is damaged ({reason})") from None
    if not isinstance(value, dict):
        raise FabellaError(f"{path}: must hold a JSON object")
    return value


def as_object(value: Any, name: str) -> dict[str, Any]:
    """A part of a JSON file that must be an object; ``ModelFileError``, by its ``name``, if it is none."""
    if not isinstance(value, dict):
        raise ModelFileError(name, f"must be an object, not {shown(value)}")
    return value


def as_list(value: Any, name: str) -> list[Any]:
    """The same of a list."""
    if not isinstance(value, list):
        raise ModelFileError(name, f"must be a list, not {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A part of a JSON file for a message: short, whatever it is."""
    return quoted(value) if isinstance(value, str) else quoted(json.dumps(value, ensure_ascii=False)).strip("'")


def write_weights(
    path: Path, tensors: Mapping[str, tuple[str, Sequence[int], Callable[[], bytes]]], about: Mapping[str, str]
) -> None:
    """Write one safetensors file.

    Parameters
    ----------
    path
        The file.
    tensors
        By their names: one of `TYPES`, the shape, and a function that returns the bytes when their turn has come.
    about
        The file's own metadata.

    Raises
    ------
    ModelFileError
        A tensor's bytes do not fit its shape.
    OSError
        The file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, (type, shape, _) in tensors.items():
        begin, end = end, end + int(np.prod(shape)) * (4 if type == "F32" else 2)
        header[name] = {"dtype": type, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (_, _, content) in tensors.items():
            data = content()
            begin, end = header[name]["data_offsets"]
            if len(data) != end - begin:
                raise ModelFileError(name, f"by its type and shape it is {end - begin} bytes, not {len(data)}")
            file.write(data)


if __name__ == "__main__":
    explain(__doc__)
