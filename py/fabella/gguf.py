"""Read and write GGUF, the one model file: weights, tokenizer, settings and licence together.

A GGUF file, all numbers little-endian:

    "GGUF"  u32 version (2 or 3)  u64 number of tensors  u64 number of key/value pairs
    key/value pairs:  string key   u32 value type   value          (an array: u32 item type, u64 count, items)
    tensor infos:     string name  u32 n_dims  u64 dims[n_dims] (row length first)  u32 type  u64 offset
    padding to a multiple of the alignment, then the tensors' data; offsets count from here

    a string: u64 length, then that many bytes of UTF-8

One tensor type is used here as nobody else does: I8, for the int8 weights of llama2.c's version 2, whose groups of any
size have F32 scales. Those of NAME.weight are a tensor of their own, NAME.scales, behind it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader believes nothing: a count, size
or offset is compared with the file before anything is allocated or read by it, every byte belongs to something, and the
tensors' data is never read.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, BinaryIO

from fabella import architectures, vocabulary
from fabella.card import BEGINNINGS, LONGEST, MOST_BEGINNINGS, read_card
from fabella.errors import ModelFileError, short_text
from fabella.formats import FORMATS, NAMES, UNREADABLE
from fabella.metadata import get
from fabella.modelfile import Config, ModelFile, Tensor
from fabella.sources import ByteSource, TextSource
from fabella.tokenizer import Tokenizer

MAGIC = b"GGUF"
ALIGNMENT = 32  # of tensor data, unless the metadata says otherwise

# Value types of metadata: number in the file → (name, struct code).
SCALARS = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "?"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
STRING = 8
ARRAY = 9
U64 = struct.Struct("<Q")
TYPE_NUMBERS = {name: number for number, (name, _) in SCALARS.items()} | {"string": STRING}

# Far above what real models need, so that a wrong count is refused before work is done for it.
MOST_PAIRS = 1 << 16
MOST_TENSORS = 1 << 16
MOST_ITEMS = 1 << 20  # in one array
LONGEST_KEY = 1 << 16
LONGEST_NAME = 64  # GGUF's own limit for tensor names
LONGEST_STRING = 1 << 20
LONGEST_HEADER = 64 << 20  # everything before the tensors' data
LARGEST_ALIGNMENT = 1 << 16

# The longest arrays, of which every item is needed, and what their items are.
VOCABULARY = {
    "tokenizer.ggml.tokens": ("text", (STRING,)),
    "tokenizer.ggml.scores": ("fractions", (6, 12)),
    "tokenizer.ggml.token_type": ("whole numbers", (0, 1, 2, 3, 4, 5, 10, 11)),
    "tokenizer.ggml.merges": ("text", (STRING,)),
}
# Of what else metadata holds, numbers and short texts are kept, and longer texts and arrays as long as they take no
# more memory than this: there may be 64 MiB of them, for nothing.
SHORT_TEXT = 256  # bytes
ROOM_FOR_MORE = 1 << 20  # bytes, counted as an item of an array takes them:
NUMBER_TAKES = 40
TEXT_TAKES = 64  # besides its characters
SHOWN = ("general.name", "general.license")  # to people: these are text, or left out

COPIED_AT_ONCE = 1 << 20  # bytes
WINDOW = 1 << 17  # bytes read at a time: each read may cross from Python into the engine's memory


def read_gguf(source: ByteSource) -> ModelFile:
    """Read and check a GGUF model: one of our families, FORMATS' tensors, a tokenizer that we have.

    Raises
    ------
    ModelFileError
        `field` is the part of the header, the metadata key or the tensor at fault.
    """
    reader = _Reader(source)
    n_tensors, n_pairs = _read_header(reader)
    metadata = _read_metadata(reader, n_pairs)
    _refuse_parts(metadata)
    if metadata.get("general.type") == "adapter":
        raise ModelFileError("general.type", "this is an adapter, no model: it goes with the model it was made for")
    architectures.check_family(metadata)  # the clearest words on a model that cannot be run
    vocabulary.check_kind(metadata)
    card = read_card(metadata)
    tokenizer = vocabulary.tokenizer_of(metadata)
    infos = _read_tensor_infos(reader, n_tensors)
    config = architectures.config_of(metadata, infos)
    alignment = _alignment(metadata)
    start = _round_up(reader.position, alignment)
    located = _locate(infos, start, alignment, source.size)
    tensors = architectures.split_fused(config, _with_scales(located))
    architectures.check_tensors(config, tensors)
    _check_gaps(source, reader.position, located.values(), start, alignment)
    name = short_text(metadata.get("general.name", ""))
    return ModelFile(name, config, tensors, tokenizer, metadata, card)


def read_parts(source: ByteSource) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the metadata and the tensors of a GGUF file, whatever they are for; nothing else may be in it.

    Raises
    ------
    ModelFileError
        `field` is the part of the header, the metadata key or the tensor at fault.
    """
    reader = _Reader(source)
    n_tensors, n_pairs = _read_header(reader)
    metadata = _read_metadata(reader, n_pairs)
    infos = _read_tensor_infos(reader, n_tensors)
    alignment = _alignment(metadata)
    start = _round_up(reader.position, alignment)
    tensors = _locate(infos, start, alignment, source.size)
    _check_gaps(source, reader.position, tensors.values(), start, alignment)
    return metadata, tensors


# --- Reading: the bytes -------------------------------------------------------------------------------------


class _Reader:
    """Takes one thing after the other from the front of a file, through a window that moves along."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.position = 0  # of the next byte to take, in the file
        self._window = b""
        self._start = 0  # where the window begins, in the file
        self._room = ROOM_FOR_MORE

    @property
    def remaining(self) -> int:
        return self.source.size - self.position

    def take(self, size: int, field: str) -> bytes:
        begin = self.position - self._start
        if begin + size > len(self._window):
            self._move_window(size, field)
            begin = 0
        self.position += size
        return self._window[begin : begin + size]

    def skip(self, size: int, field: str) -> None:
        self._check_size(size, field)
        self.position += size

    def _check_size(self, size: int, field: str) -> None:
        if size > self.remaining:
            raise ModelFileError(
                field,
                f"the file ends {size - self.remaining} bytes too early, after {self.source.size} bytes; "
                "the download may be incomplete",
            )
        if self.position + size > LONGEST_HEADER:
            raise ModelFileError(field, f"the header is longer than {LONGEST_HEADER >> 20} MiB")

    def _move_window(self, size: int, field: str) -> None:
        self._check_size(size, field)
        wanted = min(max(size, WINDOW), self.remaining)
        self._start = self.position
        self._window = self.source.read(self.position, wanted)
        if len(self._window) != wanted:
            raise ModelFileError(field, f"only {len(self._window)} of {wanted} bytes could be read")

    def u32(self, field: str) -> int:
        return int.from_bytes(self.take(4, field), "little")

    def u64(self, field: str) -> int:
        value: int = U64.unpack(self.take(8, field))[0]
        return value

    def count(self, field: str, most: int, smallest_item: int) -> int:
        """A u64 that counts items still to come, each at least `smallest_item` bytes long."""
        count = self.u64(field)
        if count > most:
            raise ModelFileError(field, f"{count} is more than the {most} that are accepted")
        if count * smallest_item > self.remaining:
            raise ModelFileError(
                field, f"{count} cannot fit into the {self.remaining} bytes left; the download may be incomplete"
            )
        return count

    def string(self, field: str, longest: int = LONGEST_STRING) -> str:
        return self._text(self._length(field, longest), field)

    def _length(self, field: str, longest: int = LONGEST_STRING) -> int:
        length = self.u64(field)
        if length > longest:
            raise ModelFileError(field, f"a text of {length} bytes is longer than the {longest} that are accepted")
        return length

    def _text(self, length: int, field: str) -> str:
        return self._decoded(self.take(length, field), field)

    def _decoded(self, data: bytes, field: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ModelFileError(field, "is not valid UTF-8") from None

    def value(self, key: str) -> Any:
        """The value of a metadata key; None for one that is too large to keep, though nothing needs it."""
        kind = self.u32(key)
        if kind == ARRAY:
            return self._array(key)
        if kind == STRING:
            length = self._length(key, LONGEST.get(key, LONGEST_STRING))
            if length <= SHORT_TEXT or key in LONGEST or self._has_room(4 * length):
                return self._text(length, key)
            self.skip(length, key)
            return None
        return self._numbers(kind, 1, key)[0]

    def _array(self, key: str) -> list[Any] | None:
        kind = self.u32(key)
        if kind == ARRAY:
            raise ModelFileError(key, "arrays of arrays are not supported")
        needed = key in VOCABULARY
        if needed and kind not in VOCABULARY[key][1]:
            raise ModelFileError(key, f"must be an array of {VOCABULARY[key][0]}")
        if kind == STRING and key == BEGINNINGS:
            return [self.string(key, LONGEST[key]) for _ in range(self.count(key, MOST_BEGINNINGS, 8))]
        if kind == STRING:
            count = self.count(key, MOST_ITEMS, 8)
            return self._texts(count, key) if needed else self._few_texts(count, key)
        count = self.count(key, MOST_ITEMS, 1)
        if needed or self._has_room(NUMBER_TAKES * count):
            return list(self._numbers(kind, count, key))
        self.skip(self._layout(kind, count, key).size, key)
        return None

    def _has_room(self, size: int) -> bool:
        """Whether so much memory is left for what nothing needs; it is used up then."""
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits

    def _numbers(self, kind: int, count: int, field: str) -> tuple[Any, ...]:
        layout = self._layout(kind, count, field)
        return layout.unpack(self.take(layout.size, field))

    def _layout(self, kind: int, count: int, field: str) -> struct.Struct:
        if kind not in SCALARS:
            raise ModelFileError(field, f"has the unknown value type {kind}")
        return struct.Struct(f"<{count}{SCALARS[kind][1]}")

    def _texts(self, count: int, field: str) -> list[str]:
        """Many texts, one after the other: all at once if the source can, or those that lie in the window whole."""
        if count and isinstance(self.source, TextSource) and (found := self.source.texts(self.position, count)):
            joined, end = found
            texts = self._decoded(joined, field).split("\0")
            if len(texts) == count:  # none of them holds a zero byte itself
                self.skip(end - self.position, field)
                return texts
        texts = []
        while len(texts) < count:
            window, at = self._window, self.position - self._start
            size = len(window)
            try:
                for _ in range(count - len(texts)):
                    begin = at + 8
                    if begin > size or (end := begin + U64.unpack_from(window, at)[0]) > size:
                        break
                    texts.append(window[begin:end].decode())
                    at = end
            except UnicodeDecodeError:
                raise ModelFileError(field, "is not valid UTF-8") from None
            self.position = self._start + at
            if len(texts) < count:
                texts.append(self.string(field))
        return texts

    def _few_texts(self, count: int, field: str) -> list[str] | None:
        """An array of texts; None if it is too large to keep, and then it is skipped."""
        texts: list[str] = []
        if self._has_room(TEXT_TAKES * count):
            for left in range(count, 0, -1):
                length = self._length(field)
                if not self._has_room(4 * length):
                    self.skip(length, field)
                    self._skip_texts(left - 1, field)
                    return None
                texts.append(self._text(length, field))
            return texts
        self._skip_texts(count, field)
        return None

    def _skip_texts(self, count: int, field: str) -> None:
        while count:
            self.skip(self._length(field), field)
            count -= 1
            # Then those whose lengths lie in the window.
            window, begin = self._window, self.position - self._start
            at, last = begin, len(self._window) - 8
            while count and at <= last:
                at += 8 + U64.unpack_from(window, at)[0]
                count -= 1
            self.skip(at - begin, field)


def _read_header(reader: _Reader) -> tuple[int, int]:
    if reader.remaining < len(MAGIC) or reader.take(len(MAGIC), "magic") != MAGIC:
        from fabella.filetype import BEGINNING, what_is  # a page that has a model need not wait for it

        beginning = reader.source.read(0, min(BEGINNING, reader.source.size))
        other = what_is(beginning, reader.source.size)
        starts = f"a GGUF file starts with {MAGIC!r}, this one with {beginning[:4]!r}"
        raise ModelFileError("magic", f"this is not a GGUF model but {other}" if other else starts)
    version = reader.u32("version")
    if int.from_bytes(version.to_bytes(4, "big"), "little") in (1, 2, 3):
        raise ModelFileError("version", "this file is in big-endian byte order; only little-endian GGUF is read")
    if version not in (2, 3):
        raise ModelFileError("version", f"GGUF version {version} is not supported, only 2 and 3 are")
    # A tensor info holds at least a name's length, n_dims, one dimension, type and offset; a pair at least a
    # key's length, a type and one byte.
    n_tensors = reader.count("tensor count", MOST_TENSORS, 8 + 4 + 8 + 4 + 8)
    n_pairs = reader.count("key/value count", MOST_PAIRS, 8 + 4 + 1)
    return n_tensors, n_pairs


def _read_metadata(reader: _Reader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    left_out: set[str] = set()
    for number in range(count):
        key = reader.string(f"key of pair {number}", LONGEST_KEY)
        if not key:
            raise ModelFileError(f"key of pair {number}", "is empty")
        if key in metadata or key in left_out:
            raise ModelFileError(key, "this key is in the file twice")
        value = reader.value(key)
        if value is None or (key in SHOWN and not isinstance(value, str)):
            left_out.add(key)
        else:
            metadata[key] = value
    return metadata


@dataclass(frozen=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int  # from the start of the data


def _read_tensor_infos(reader: _Reader, count: int) -> dict[str, _TensorInfo]:
    infos: dict[str, _TensorInfo] = {}
    for number in range(count):
        name = reader.string(f"name of tensor {number}", LONGEST_NAME)
        if not name:
            raise ModelFileError(f"name of tensor {number}", "is empty")
        if name in infos:
            raise ModelFileError(name, "this tensor is in the file twice")
        n_dims = reader.u32(name)
        if not 1 <= n_dims <= 4:
            raise ModelFileError(name, f"has {n_dims} dimensions; a tensor has 1 to 4")
        # The file gives the length of a row first; here it comes last.
        shape = struct.unpack(f"<{n_dims}Q", reader.take(8 * n_dims, name))[::-1]
        if 0 in shape:
            raise ModelFileError(name, f"has an empty dimension: {shape}")
        infos[name] = _TensorInfo(name, shape, reader.u32(name), reader.u64(name))
    return infos


def _alignment(metadata: Mapping[str, Any]) -> int:
    key = "general.alignment"
    alignment: int = get(metadata, key, int, default=ALIGNMENT)
    if not 8 <= alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise ModelFileError(key, f"is {alignment}, but must be a power of two from 8 to {LARGEST_ALIGNMENT}")
    return alignment


def _round_up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _format_name(tensor: str, number: int) -> str:
    """The name of a tensor's format, which must be one of those that are read."""
    if number not in NAMES:
        name = UNREADABLE.get(number, f"number {number}")
        readable = ", ".join(name for name in FORMATS if name != "I8")
        raise ModelFileError(tensor, f"tensor type {name} is not supported; take a file with {readable} weights")
    return NAMES[number]


def _tensor_size(name: str, type_name: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor, by its type and shape."""
    type = FORMATS[type_name]
    if shape[-1] % type.block:
        raise ModelFileError(name, f"{type_name} needs rows of a multiple of {type.block} numbers, not {shape[-1]}")
    return math.prod(shape) // type.block * type.block_size


def _locate(infos: Mapping[str, _TensorInfo], start: int, alignment: int, file_size: int) -> dict[str, Tensor]:
    """Find each tensor's bytes in the file and check that they are there and belong to it alone."""
    tensors: dict[str, Tensor] = {}
    for info in infos.values():
        if info.offset % alignment:
            raise ModelFileError(info.name, f"offset {info.offset} is not a multiple of the alignment {alignment}")
        type_name = _format_name(info.name, info.type)
        size = _tensor_size(info.name, type_name, info.shape)
        tensors[info.name] = Tensor(info.name, type_name, info.shape, start + info.offset, size)

    in_order = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    missing = max((tensor.offset + tensor.size for tensor in in_order), default=0) - file_size
    if missing > 0:
        first = next(tensor for tensor in in_order if tensor.offset + tensor.size > file_size)
        raise ModelFileError(
            first.name, f"the file is {missing} bytes too short ({file_size} bytes); the download may be incomplete"
        )
    for one, next_one in pairwise(in_order):
        if one.offset + one.size > next_one.offset:
            raise ModelFileError(next_one.name, f"overlaps tensor {one.name} in the file")
    return tensors


def _check_gaps(source: ByteSource, header: int, tensors: Iterable[Tensor], start: int, alignment: int) -> None:
    """Check that the tensors' data is all that follows the header, but for padding with zeros between tensors."""
    paddings = []
    written, end = header, start
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset != end:
            raise ModelFileError(
                tensor.name, f"{tensor.offset - end} bytes in front of it belong to nothing; the file is damaged"
            )
        paddings.append((written, end, f"padding in front of {tensor.name}"))
        written = tensor.offset + tensor.size
        end = _round_up(written, alignment)
    if source.size > end:
        raise ModelFileError(
            "size",
            f"{source.size - end} bytes at the end of the file belong to nothing; it is damaged, or more than one file",
        )
    paddings.append((written, source.size, "padding at the end"))
    for begin, end, field in paddings:
        if begin < end and any(source.read(begin, end - begin)):
            raise ModelFileError(field, "is not all zeros: it belongs to nothing, and the file is damaged")


def _with_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each I8 tensor its scales, which are then no longer a tensor of their own."""
    model = dict(tensors)
    for tensor in tensors.values():
        if tensor.type != "I8":
            continue
        name, count = scales_name(tensor.name), math.prod(tensor.shape)
        scales = model.pop(name, None)
        if scales is None:
            raise ModelFileError(tensor.name, f"is of type I8, but its scales ({name}) are missing from the file")
        if scales.type != "F32" or len(scales.shape) != 1 or count % scales.shape[0]:
            raise ModelFileError(name, f"must be F32 scales for {count} numbers, each for equally many")
        if scales.offset < tensor.offset:  # files are loaded from front to back
            raise ModelFileError(name, f"must lie behind {tensor.name} in the file")
        model[tensor.name] = replace(tensor, group=count // scales.shape[0], scales=scales.offset)
    return model


def scales_name(tensor: str) -> str:
    """What the scales of an I8 tensor are called."""
    return tensor.removesuffix(".weight") + ".scales"


# --- Reading: what the metadata means -----------------------------------------------------------------------


def _refuse_parts(metadata: Mapping[str, Any]) -> None:
    """Refuse one part of a file that llama.cpp's gguf-split has split; only the first has the model's numbers."""
    count = get(metadata, "split.count", int, default=1)
    if count > 1:
        number = get(metadata, "split.no", int, default=0) + 1
        raise ModelFileError(
            "split.count",
            f"this is part {number} of {count} of a split file; join them first: llama-gguf-split --merge PART-1 WHOLE",
        )


# --- Writing ------------------------------------------------------------------------------------------------


def copy_gguf(source: ByteSource, target: BinaryIO, changes: Mapping[str, Any]) -> None:
    """Write a GGUF file anew with other metadata: all that is not changed stays as it is, byte for byte.

    Parameters
    ----------
    source
        The file; `read_gguf` has accepted it.
    target
        A binary file open for writing.
    changes
        Values by their keys, as `write_gguf` takes them: in the place of those of the file, or behind them. None takes
        a key away.

    Raises
    ------
    ModelFileError
        Something cannot be expressed in GGUF, or `read_gguf` would not accept the source.
    """
    reader = _Reader(source)
    n_tensors, n_pairs = _read_header(reader)
    pairs: dict[str, bytes] = {}
    alignment = ALIGNMENT
    for number in range(n_pairs):
        begin = reader.position
        key = reader.string(f"key of pair {number}", LONGEST_KEY)
        value = reader.value(key)
        alignment = value if key == "general.alignment" else alignment
        pairs[key] = source.read(begin, reader.position - begin)
    for key, value in changes.items():
        if value is None:
            pairs.pop(key, None)
        else:
            pairs[key] = _string_bytes(key) + _value_bytes(key, value)
    begin = reader.position
    _read_tensor_infos(reader, n_tensors)
    infos = source.read(begin, reader.position - begin)
    header = MAGIC + source.read(len(MAGIC), 4) + struct.pack("<QQ", n_tensors, len(pairs)) + b"".join(pairs.values())
    target.write(header + infos + bytes(-len(header + infos) % alignment))
    for start in range(_round_up(reader.position, alignment), source.size, COPIED_AT_ONCE):
        target.write(source.read(start, min(COPIED_AT_ONCE, source.size - start)))


def describe(config: Config, tokenizer: Tokenizer, about: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a model, from which `read_gguf` reads the same: `about` (general.*), its numbers, its tokens."""
    numbers = architectures.describe(config)
    family = {"general.architecture": numbers.pop("general.architecture")}
    return family | dict(about) | numbers | vocabulary.describe(tokenizer)


@dataclass(frozen=True)
class Typed:
    """A metadata value whose width in the file matters: `Typed("u64", 5)`, `Typed("i8", [1, 2])`."""

    type: str  # u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 bool string; of each item, if the value is a list
    value: Any


def write_gguf(
    target: str | os.PathLike[str] | BinaryIO,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, str, Sequence[int], bytes | Callable[[], bytes]]],
) -> None:
    """Write a GGUF version 3 file; the same arguments give the same bytes.

    Parameters
    ----------
    target
        A path, or a binary file open for writing.
    metadata
        In the order of the file. bool, str and float (f32) are written as such; int as u32, else u64 or (below
        zero) i32 or i64; a list by its items, int items as i32 where all fit, else i64. `Typed` says otherwise.
    tensors
        (name, one of FORMATS, (rows, cols) or (n,), data). The data is little-endian, row after row, as
        wasm/formats.h and train/quantize.py say; or a function that returns it, which is called when its turn has
        come: so a model may be larger than memory.

    Raises
    ------
    ModelFileError
        A tensor's data does not fit its shape, or something cannot be expressed in GGUF.
    """
    items = list(tensors)
    parts = [MAGIC, struct.pack("<IQQ", 3, len(items), len(metadata))]
    for key, value in metadata.items():
        if key == "general.alignment":
            raise ModelFileError(key, f"is always {ALIGNMENT} here; leave it out")
        parts += [_string_bytes(key), _value_bytes(key, value)]

    offset = 0
    seen: set[str] = set()
    for name, type_name, shape, data in items:
        if name in seen:
            raise ModelFileError(name, "this tensor is given twice")
        seen.add(name)
        if type_name not in FORMATS:
            raise ModelFileError(name, f"tensor type {type_name} cannot be written, only {', '.join(FORMATS)}")
        size = _tensor_size(name, type_name, shape)
        if not callable(data):
            _check_length(name, data, size)
        parts += [_string_bytes(name), struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))]
        parts.append(struct.pack("<IQ", FORMATS[type_name].number, offset))
        offset += _round_up(size, ALIGNMENT)

    def contents() -> Iterator[bytes]:
        yield b"".join(parts)
        for name, type_name, shape, data in items:
            content = data() if callable(data) else data
            _check_length(name, content, _tensor_size(name, type_name, shape))
            yield content

    if isinstance(target, (str, os.PathLike)):
        with open(target, "wb") as file:
            _write_aligned(file, contents())
    else:
        _write_aligned(target, contents())


def _check_length(name: str, data: bytes, size: int) -> None:
    if len(data) != size:
        raise ModelFileError(name, f"by its type and shape it is {size} bytes, not {len(data)}")


def _write_aligned(file: BinaryIO, parts: Iterable[bytes]) -> None:
    for part in parts:
        file.write(part)
        file.write(bytes(-len(part) % ALIGNMENT))


def _string_bytes(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value_bytes(key: str, value: Any) -> bytes:
    if not isinstance(value, Typed):
        value = Typed(_type_of(key, value), value)
    if value.type not in TYPE_NUMBERS:
        raise ModelFileError(key, f"{value.type!r} is not a GGUF value type")
    number = TYPE_NUMBERS[value.type]
    values = value.value if isinstance(value.value, list) else [value.value]
    try:
        if number == STRING:
            data = b"".join(_string_bytes(item) for item in values)
        else:
            data = struct.pack(f"<{len(values)}{SCALARS[number][1]}", *values)
    except (struct.error, OverflowError, AttributeError) as error:
        raise ModelFileError(key, f"cannot be written as {value.type}: {error}") from None
    if isinstance(value.value, list):
        return struct.pack("<IIQ", ARRAY, number, len(values)) + data
    return struct.pack("<I", number) + data


def _type_of(key: str, value: Any) -> str:
    """The GGUF type for a plain Python value; for a list, the type of its items."""
    items = value if isinstance(value, list) else [value]
    kinds = {type(item) for item in items}
    if kinds == {bool}:
        return "bool"
    if kinds == {str}:
        return "string"
    if kinds == {float} or (kinds == {float, int} and isinstance(value, list)):
        return "f32"
    if kinds == {int}:
        low, high = min(items), max(items)
        if not isinstance(value, list) and low >= 0:
            return "u32" if high < 1 << 32 else "u64"
        return "i32" if low >= -(1 << 31) and high < 1 << 31 else "i64"
    raise ModelFileError(key, f"a value like {value!r} has no GGUF type; use Typed to name one")
