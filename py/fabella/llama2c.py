"""Read the files of llama2.c (https://github.com/karpathy/llama2.c): a model .bin, versions 0 to 2, and tokenizer.bin.

All numbers are little-endian. The header of a model has seven int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads,
vocab_size, seq_len.

    version 0   these alone, and then float32 weights. A negative vocab_size means that the classifier is not the token
                embedding but follows at the end.
    version 1   256 bytes: "ak42" as a uint32, int32 1, the seven, one byte that says whether the classifier is the
                token embedding, zeros. Then float32 weights, the norms first.
    version 2   the same with int32 2, and behind the byte an int32, the group size. The norms are float32; of each
                matrix come the int8 weights and then their float32 scales, one for each group of so many weights.

The order of the weights is that of `ORDER`. The tokenizer file is an int32, the length of the longest piece, then for
each token a float32 score, an int32 length and that many bytes.

Version 0 and the tokenizer do not say what kind of file they are, so the sizes must fit to the byte.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fabella.architectures import check_tensors, expected_shapes
from fabella.errors import ModelFileError
from fabella.filetype import BEGINNING, TOKENIZER_BIN, what_is
from fabella.gguf import describe, scales_name, write_gguf
from fabella.modelfile import Config, ModelFile, Tensor
from fabella.sentencepiece import SentencePiece
from fabella.sources import ByteSource, FileSource
from fabella.tokenizer import BYTE, CONTROL, LONGEST_PIECE, NORMAL, UNKNOWN

SIZES = struct.Struct("<7i")
SIZE_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
MAGIC = 0x616B3432  # "ak42": versions 1 and 2 start with it
VERSION = struct.Struct("<Ii")  # magic and version
FLAGS = struct.Struct("<Bi")  # behind the sizes: shared classifier, group size
HEADER_SIZE = 256  # of versions 1 and 2
# In the order of the file, each for all layers; "output" is there if the classifier is not the token embedding.
ORDER_0 = """
    token_embd attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_down ffn_up output_norm rope output
""".split()
ORDER = """
    attn_norm ffn_norm output_norm token_embd attn_q attn_k attn_v attn_output ffn_gate ffn_down ffn_up output
""".split()
UNKNOWN_ID, BOS_ID, EOS_ID = 0, 1, 2  # fixed in llama2.c


@dataclass(frozen=True)
class _Header:
    version: int
    size: int  # bytes
    config: Config
    group: int  # weights that share a scale; 0 in versions 0 and 1


def read_llama2c(source: ByteSource, tokenizer_source: ByteSource) -> ModelFile:
    """Read and check a model and its tokenizer. The model's `name` is empty: the file has none.

    Raises
    ------
    ModelFileError
        `field` is the part of the header or the tensor at fault, "size", or begins with "tokenizer".
    """
    header = _read_header(source)
    tensors = {tensor.name: tensor for tensor in _locate(header, source.size)}
    check_tensors(header.config, tensors)
    return ModelFile("", header.config, tensors, read_tokenizer(tokenizer_source, header.config.vocab_size), {})


def convert_llama2c(model: Path, tokenizer: Path, target: Path) -> None:
    """Write a model and its tokenizer as one GGUF file; their numbers stay as they are.

    Raises
    ------
    ModelFileError
        As `read_llama2c`.
    """
    with FileSource(model) as weights, FileSource(tokenizer) as vocabulary:
        read = read_llama2c(weights, vocabulary)
        tensors = []
        for tensor in read.tensors.values():
            tensors.append((tensor.name, tensor.type, tensor.shape, weights.read(tensor.offset, tensor.size)))
            if tensor.type == "I8":
                scales = weights.read(tensor.scales, tensor.scales_size)
                tensors.append((scales_name(tensor.name), "F32", (len(scales) // 4,), scales))
        write_gguf(target, describe(read.config, read.tokenizer, {"general.name": model.stem}), tensors)


def is_llama2c(source: ByteSource) -> bool:
    """Whether a file begins as a model of llama2.c does."""
    try:
        _read_header(source)
    except ModelFileError:
        return False
    return True


def _what_is(source: ByteSource) -> str | None:
    return what_is(source.read(0, min(BEGINNING, source.size)), source.size)


def _read_header(source: ByteSource) -> _Header:
    if source.size < SIZES.size:
        raise ModelFileError("header", f"the file has only {source.size} bytes; {SIZES.size} are the header alone")
    magic, version = VERSION.unpack(source.read(0, VERSION.size))
    if magic != MAGIC:
        numbers = SIZES.unpack(source.read(0, SIZES.size))
        vocab_size = numbers[SIZE_FIELDS.index("vocab_size")]
        try:
            config = _config(numbers, abs(vocab_size), tied=vocab_size > 0)
        except ModelFileError:  # these are not sizes: this file is something else
            if other := _what_is(source):
                raise ModelFileError("format", f"this is not a llama2.c model but {other}") from None
            raise
        return _Header(0, SIZES.size, config, group=0)
    if version not in (1, 2):
        raise ModelFileError("version", f"llama2.c version {version} is not supported, only 0, 1 and 2 are")
    if source.size < HEADER_SIZE:
        raise ModelFileError("header", f"the file has only {source.size} bytes; {HEADER_SIZE} are the header alone")
    numbers = SIZES.unpack(source.read(VERSION.size, SIZES.size))
    shared, group = FLAGS.unpack(source.read(VERSION.size + SIZES.size, FLAGS.size))
    if shared not in (0, 1):
        raise ModelFileError("shared_classifier", f"is {shared}, but must be 0 or 1")
    if version == 2 and group < 1:
        raise ModelFileError("group_size", f"is {group}, but must be 1 or more")
    config = _config(numbers, numbers[SIZE_FIELDS.index("vocab_size")], tied=shared == 1)
    return _Header(version, HEADER_SIZE, config, group=group if version == 2 else 0)


def _config(numbers: tuple[int, ...], vocab_size: int, tied: bool) -> Config:
    sizes: dict[str, Any] = dict(zip(SIZE_FIELDS, numbers, strict=True))
    return Config(**(sizes | {"vocab_size": vocab_size}), tied=tied)


def _locate(header: _Header, file_size: int) -> list[Tensor]:
    config = header.config
    shapes = expected_shapes(replace(config, n_layers=1))  # all layers are alike
    tensors: list[Tensor] = []
    offset = header.size
    for name in ORDER_0 if header.version == 0 else ORDER:
        if name == "rope":  # cosines and sines of the rotary embedding: they are computed here
            offset += 4 * config.seq_len * config.head_size
        if (shape := shapes.get(f"{name}.weight")) is not None:
            names = [f"{name}.weight"]
        elif (shape := shapes.get(f"blk.0.{name}.weight")) is not None:
            names = [f"blk.{layer}.{name}.weight" for layer in range(config.n_layers)]
        else:
            continue
        count, group = math.prod(shape), header.group if len(shape) == 2 else 0
        if group and count % group:
            raise ModelFileError("group_size", f"{group} does not divide the {count} weights of {names[0]} evenly")
        for full_name in names:
            if group:
                tensors.append(Tensor(full_name, "I8", shape, offset, count, group, scales=offset + count))
                offset += count + 4 * (count // group)
            else:
                tensors.append(Tensor(full_name, "F32", shape, offset, 4 * count))
                offset += 4 * count
    if offset != file_size:
        raise ModelFileError(
            "size",
            f"the header asks for a file of {offset} bytes, but this one has {file_size}; either the download is "
            f"incomplete or this is not a llama2.c version {header.version} model",
        )
    return tensors


def read_tokenizer(source: ByteSource, vocab_size: int) -> SentencePiece:
    """Read a tokenizer.bin; it does not say how many tokens it holds, so the model's header must.

    The file has no types: token 0 is taken as unknown, 1 and 2 as BOS and EOS, "<0x0A>" and the like as bytes.
    llama2.c ends a story at BOS alone.

    Raises
    ------
    ModelFileError
        `field` begins with "tokenizer".
    """
    try:
        return _read_tokenizer(source, vocab_size)
    except ModelFileError:
        if (other := _what_is(source)) and other != TOKENIZER_BIN:
            raise ModelFileError("tokenizer", f"this is not a tokenizer.bin but {other}") from None
        raise


def _read_tokenizer(source: ByteSource, vocab_size: int) -> SentencePiece:
    smallest, largest = 4 + 8 * vocab_size, 4 + (8 + LONGEST_PIECE) * vocab_size
    if not smallest <= source.size <= largest:
        raise ModelFileError(
            "tokenizer",
            f"a file of {source.size} bytes cannot hold exactly the {vocab_size} tokens of this model; "
            "it is incomplete or belongs to another model",
        )
    data = source.read(0, source.size)
    (longest,) = struct.unpack_from("<i", data)
    if not 1 <= longest <= LONGEST_PIECE:
        raise ModelFileError("tokenizer max_token_length", f"is {longest}, but must be from 1 to {LONGEST_PIECE}")

    pieces: list[str] = []
    scores: list[float] = []
    position = 4
    for id in range(vocab_size):
        field = f"tokenizer token {id}"
        if position + 8 > len(data):
            raise ModelFileError(field, f"the file ends before it, with only {id} of this model's {vocab_size} tokens")
        score, length = struct.unpack_from("<fi", data, position)
        position += 8
        if not 0 <= length <= longest:
            raise ModelFileError(field, f"has a length of {length}, but the longest is said to be {longest}")
        if position + length > len(data):
            raise ModelFileError(field, "the file ends inside it; the download may be incomplete")
        try:
            pieces.append(data[position : position + length].decode())
        except UnicodeDecodeError:
            raise ModelFileError(field, "is not valid UTF-8") from None
        scores.append(score)
        position += length
    if position != len(data):
        raise ModelFileError(
            "tokenizer", f"{len(data) - position} bytes are left after this model's {vocab_size} tokens"
        )

    try:
        return SentencePiece(
            pieces,
            scores,
            types=[_type_of(id, piece) for id, piece in enumerate(pieces)],
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unknown_id=UNKNOWN_ID,
            stop_ids=frozenset((BOS_ID,)),
            space=" ",
            print_control_bytes=False,
        )
    except ModelFileError as error:
        raise ModelFileError(f"tokenizer {error.field}", error.problem) from None


def _type_of(id: int, piece: str) -> int:
    if id == UNKNOWN_ID:
        return UNKNOWN
    if id in (BOS_ID, EOS_ID):
        return CONTROL
    return BYTE if re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece) else NORMAL
