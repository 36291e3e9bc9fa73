"""A model as the engine hands it to C: Config, RoPE's base, then each tensor's numbers and bytes.

For programs without a driver, which begin with tests/setup.h.
"""

from __future__ import annotations

import struct
from pathlib import Path

from fabella import abi
from fabella.adapter import read_adapter
from fabella.architectures import tensor_place
from fabella.formats import FORMATS
from fabella.gguf import read_gguf
from fabella.modelfile import Config
from fabella.sources import BytesSource

ADAPTER = -2  # in the place of a tensor's number


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


def adapter_records(path: Path) -> list[tuple[list[int], bytes]]:
    """The same of an adapter, for tests/native.c alone, which says what the numbers are."""
    data = path.read_bytes()
    adapter = read_adapter(BytesSource(data))
    records = []
    for name, pair in adapter.pairs.items():
        number, layer = tensor_place(name)
        (scale,) = struct.unpack("<i", struct.pack("<f", adapter.scale(pair)))
        head = [ADAPTER, number, layer, FORMATS[pair.a.type].number, pair.rank, pair.a.size, pair.b.size, scale]
        parts = [data[part.offset : part.offset + part.size] for part in (pair.a, pair.b)]
        records.append((head, b"".join(parts)))
    return records


def joined(config: bytes, records: list[tuple[list[int], bytes]]) -> bytes:
    """The input of tests/native.c."""
    return config + b"".join(struct.pack("<8i", *head) + data for head, data in records)
