"""What GGUF's metadata says, key by key: the value, or an error that names the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fabella.errors import ModelFileError, short_text


def get(metadata: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """Return a value of the wanted kind; a key without a default must be there."""
    if key not in metadata:
        if default is None:
            raise ModelFileError(key, "this key is missing from the file's metadata")
        return default
    value = metadata[key]
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ModelFileError(key, f"must be of kind {kind.__name__}, not {type(value).__name__}")
    try:
        return float(metadata[key]) if kind is float else value
    except OverflowError:  # a whole number of hundreds of digits
        raise ModelFileError(key, "is too large a number") from None


def for_all_layers(metadata: Mapping[str, Any], key: str, n_layers: int, default: int | None = None) -> int:
    """Return a number that some converters write once for each layer; it must be the same in all."""
    value = metadata.get(key)
    if isinstance(value, list) and value and len(value) == n_layers:
        if any(type(item) is not int or item != value[0] for item in value):
            raise ModelFileError(key, "is not the same in all layers, which is not supported")
        return int(value[0])
    number: int = get(metadata, key, int, default)
    return number


def quoted(text: str) -> str:
    """Quote a text out of a file for a message: short, whatever it holds."""
    return repr(short_text(text, longest=40))
