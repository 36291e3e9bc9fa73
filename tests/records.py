"""A model as the engine hands it to C: Config, RoPE's base, then each tensor's numbers and bytes.

For programs without a driver, which begin with tests/setup.h.
"""

from __future__ import annotations

import struct
from pathlib import Path

from fabella import abi
from fabella.architectures import tensor_place
from fabella.formats import FORMATS
from fabella.gguf import read_gguf
from fabella.modelfile import Config
from fabella.sources import BytesSource


def config_bytes(config: Config, **changes: float) -> bytes:
    """Config as it lies in C's memory, and RoPE's base (double)."""
    values = {field: getattr(config, field) for field in abi.CONFIG} | changes
    return abi.struct_of(abi.CONFIG).pack(*values.values()) + struct.pack("<d", config.rope_base)


def tensor_records(path: Path) -> list[tuple[list[int], bytes]]:
    """What the engine passes to tensor_begin and tensor_rows for each tensor of a GGUF file: the numbers, the bytes."""
    data = path.read_bytes()
    records = []
    for tensor in read_gguf(BytesSource(data)).tensors.values():
        number, layer = tensor_place(tensor.name)
        head = [number, layer, FORMATS[tensor.type].number, tensor.rows, tensor.columns, 0, tensor.size, 0]
        records.append((head, data[tensor.offset : tensor.offset + tensor.size]))
    return records


def joined(config: bytes, records: list[tuple[list[int], bytes]]) -> bytes:
    """The input of tests/native.c."""
    return config + b"".join(struct.pack("<8i", *head) + data for head, data in records)
