"""Read the files of llama2.c (https://github.com/karpathy/llama2.c): a version 0 model .bin and its tokenizer.bin.

All numbers are little-endian. The model file is seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads,
vocab_size, seq_len) and then float32 alone: the weights in the order of `_groups`. A negative vocab_size means
that the classifier is not the token embedding but follows at the end. The tokenizer file is an int32, the length of
the longest piece, then for each token a float32 score, an int32 length and that many bytes.

Neither file says what kind of file it is, so the sizes must fit to the byte.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator

from fabella.errors import ModelFileError
from fabella.modelfile import ByteSource, Config, ModelFile, Tensor, check_tensors
from fabella.tokenizer import BYTE, CONTROL, LONGEST_PIECE, NORMAL, UNKNOWN, Tokenizer

HEADER = struct.Struct("<7i")
HEADER_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
LATER_MAGIC = 0x616B3432  # "ak42": versions 1 and 2 start with it
UNKNOWN_ID, BOS_ID, EOS_ID = 0, 1, 2  # fixed in llama2.c


def read_llama2c(source: ByteSource, tokenizer_source: ByteSource) -> ModelFile:
    """Read and check a version 0 model and its tokenizer. The model's `name` is empty: the file has none.

    Raises
    ------
    ModelFileError
        `field` is the part of the header at fault, "size", or begins with "tokenizer".
    """
    config, tied = _read_config(source)
    tensors = {tensor.name: tensor for tensor in _locate(config, tied, source.size)}
    check_tensors(config, tensors)
    return ModelFile("", config, tensors, read_tokenizer(tokenizer_source, config.vocab_size), {})


def _read_config(source: ByteSource) -> tuple[Config, bool]:
    """Return the model's numbers, and whether the token embedding is the classifier too."""
    if source.size < HEADER.size:
        raise ModelFileError("header", f"the file has only {source.size} bytes; {HEADER.size} are the header alone")
    numbers = dict(zip(HEADER_FIELDS, HEADER.unpack(source.read(0, HEADER.size)), strict=True))
    if numbers["dim"] == LATER_MAGIC:
        raise ModelFileError(
            "magic", "llama2.c version 1 and 2 files are not supported yet; export as version 0 or as GGUF"
        )
    tied = numbers["vocab_size"] > 0
    numbers["vocab_size"] = abs(numbers["vocab_size"])
    return Config(**numbers), tied


def _groups(config: Config, tied: bool) -> Iterator[tuple[str, bool, tuple[int, ...]]]:
    """Yield (GGUF name, whether each layer has one, shape) in the order of the file; no name means: to be skipped."""
    c = config
    yield "token_embd", False, (c.vocab_size, c.dim)
    yield "attn_norm", True, (c.dim,)
    yield "attn_q", True, (c.dim, c.dim)
    yield "attn_k", True, (c.kv_dim, c.dim)
    yield "attn_v", True, (c.kv_dim, c.dim)
    yield "attn_output", True, (c.dim, c.dim)
    yield "ffn_norm", True, (c.dim,)
    yield "ffn_gate", True, (c.hidden_dim, c.dim)  # w1
    yield "ffn_down", True, (c.dim, c.hidden_dim)  # w2
    yield "ffn_up", True, (c.hidden_dim, c.dim)  # w3
    yield "output_norm", False, (c.dim,)
    yield "", False, (2, c.seq_len, c.head_size // 2)  # cosines and sines of the rotary embedding
    if not tied:
        yield "output", False, (c.vocab_size, c.dim)


def _locate(config: Config, tied: bool, file_size: int) -> list[Tensor]:
    tensors: list[Tensor] = []
    offset = HEADER.size
    for name, per_layer, shape in _groups(config, tied):
        size = 4 * math.prod(shape)
        for layer in range(config.n_layers if per_layer else 1):
            if name:
                full_name = f"blk.{layer}.{name}.weight" if per_layer else f"{name}.weight"
                tensors.append(Tensor(full_name, "F32", shape, offset, size))
            offset += size
    if offset != file_size:
        raise ModelFileError(
            "size",
            f"the header asks for a file of {offset} bytes, but this one has {file_size}; either the download is "
            "incomplete or this is not a llama2.c version 0 model",
        )
    return tensors


def read_tokenizer(source: ByteSource, vocab_size: int) -> Tokenizer:
    """Read a tokenizer.bin; it does not say how many tokens it holds, so the model's header must.

    The file has no types: token 0 is taken as unknown, 1 and 2 as BOS and EOS, "<0x0A>" and the like as bytes.
    llama2.c ends a story at BOS alone.

    Raises
    ------
    ModelFileError
        `field` begins with "tokenizer".
    """
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
        return Tokenizer(
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
