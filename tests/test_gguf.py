"""GGUF: what is written can be read, and what is wrong is refused by name, quickly and without much memory."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabella.architectures import expected_shapes
from fabella.errors import FabellaError, ModelFileError
from fabella.formats import FORMATS
from fabella.gguf import ALIGNMENT, WINDOW, Typed, read_gguf, write_gguf
from fabella.modelfile import Config, ModelFile
from fabella.sentencepiece import SentencePiece
from fabella.sources import BytesSource, FileSource

WORDS = ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "é"]
CONFIG = Config(dim=32, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=len(WORDS), seq_len=16)

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "small",
    "llama.embedding_length": CONFIG.dim,
    "llama.feed_forward_length": CONFIG.hidden_dim,
    "llama.block_count": CONFIG.n_layers,
    "llama.attention.head_count": CONFIG.n_heads,
    "llama.attention.head_count_kv": CONFIG.n_kv_heads,
    "llama.context_length": CONFIG.seq_len,
    "llama.rope.freq_base": 500.0,
    "llama.attention.layer_norm_rms_epsilon": 0.125,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": WORDS,
    "tokenizer.ggml.scores": [-float(rank) for rank in range(len(WORDS))],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}

T = "tokenizer.ggml."

Tensors = list[tuple[str, str, tuple[int, ...], bytes]]
BYTES_OF_32 = {"F32": 128, "F16": 64, "BF16": 64, "Q8_0": 34, "Q5_0": 22, "Q4_0": 18, "Q4_1": 20}


def all_tensors(tied: bool = True, type: str = "F32", config: Config = CONFIG) -> Tensors:
    """Every tensor of the model, each filled with a byte of its own; norms are F32 if they cannot be of the type."""
    tensors: Tensors = []
    for number, (name, shape) in enumerate(expected_shapes(replace(config, tied=tied)).items()):
        this_type = type if len(shape) == 2 or type in ("F16", "BF16") else "F32"
        size = math.prod(shape) // 32 * BYTES_OF_32[this_type]
        tensors.append((name, this_type, shape, bytes([number]) * size))
    return tensors


def gguf(changes: dict[str, Any] | None = None, tensors: Tensors | None = None) -> bytes:
    """The bytes of a valid file, with keys replaced, added, or (None) left out."""
    metadata = {key: value for key, value in (METADATA | (changes or {})).items() if value is not None}
    file = io.BytesIO()
    write_gguf(file, metadata, all_tensors() if tensors is None else tensors)
    return file.getvalue()


def read(data: bytes) -> ModelFile:
    return read_gguf(BytesSource(data))


def refused(data: bytes) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        read(data)
    return caught.value


# --- What is valid ---


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("type", BYTES_OF_32)
def test_write_and_read(tied: bool, type: str) -> None:
    tensors = all_tensors(tied, type)
    data = gguf(tensors=tensors)
    model = read(data)
    assert model.name == "small"
    assert model.config == replace(CONFIG, rope_base=500.0, norm_eps=0.125, tied=tied)
    assert model.metadata == METADATA
    assert list(model.tensors) == [name for name, *_ in tensors]
    for name, this_type, shape, content in tensors:
        tensor = model.tensors[name]
        assert (tensor.name, tensor.type, tensor.shape, tensor.size) == (name, this_type, shape, len(content))
        assert tensor.offset % ALIGNMENT == 0
        assert data[tensor.offset : tensor.offset + tensor.size] == content
        assert (tensor.group, tensor.scales_size) == (0, 0)
    tokenizer = model.tokenizer
    assert (tokenizer.pieces, tokenizer.types) == (WORDS, [2, 3, 3, 1, 1, 1, 1])
    assert (tokenizer.bos_id, tokenizer.eos_id, sorted(tokenizer.stop_ids)) == (1, 2, [1, 2])
    assert tokenizer.encode("a é") == [1, 5, 3, 6]


def test_bytes_as_the_format_says() -> None:
    """A small file laid out by hand."""
    file = io.BytesIO()
    content = struct.pack("<6f", *range(6))
    metadata = {
        "n": 7,
        "s": "é",
        "b": True,
        "f": 0.5,
        "big": 1 << 40,
        "l": ["x", ""],
        "i": [1, -2],
        "u": Typed("u8", [9]),
    }
    write_gguf(file, metadata, [("m", "F32", (2, 3), content), ("v", "F32", (6,), content)])

    def text(s: str) -> bytes:
        return struct.pack("<Q", len(s.encode())) + s.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, 2, 8)
    header += text("n") + struct.pack("<II", 4, 7)
    header += text("s") + struct.pack("<I", 8) + text("é")
    header += text("b") + struct.pack("<IB", 7, 1)
    header += text("f") + struct.pack("<If", 6, 0.5)
    header += text("big") + struct.pack("<IQ", 10, 1 << 40)
    header += text("l") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("")
    header += text("i") + struct.pack("<IIQii", 9, 5, 2, 1, -2)
    header += text("u") + struct.pack("<IIQB", 9, 0, 1, 9)
    header += text("m") + struct.pack("<IQQIQ", 2, 3, 2, 0, 0)
    header += text("v") + struct.pack("<IQIQ", 1, 6, 0, 32)
    header += bytes(-len(header) % 32)
    assert file.getvalue() == header + content + bytes(8) + content + bytes(8)


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write_gguf(path, METADATA, iter(all_tensors()))
    assert path.read_bytes() == gguf() == gguf()
    with FileSource(path) as source:
        assert source.size == len(gguf())
        assert read_gguf(source).tensors == read(gguf()).tensors


def test_version_2() -> None:
    data = gguf()
    assert read(data[:4] + struct.pack("<I", 2) + data[8:]).tensors == read(data).tensors


def test_defaults() -> None:
    optional = (
        "general.name",
        "llama.attention.head_count_kv",
        "llama.rope.freq_base",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
    )
    config = Config(**(vars(CONFIG) | {"n_kv_heads": 4}))
    model = read(gguf(dict.fromkeys(optional), all_tensors(config=config)))
    assert model.name == ""
    assert (model.config.n_kv_heads, model.config.rope_base) == (4, 10000.0)
    assert (model.tokenizer.bos_id, model.tokenizer.eos_id, model.tokenizer.add_bos) == (1, 2, True)


def test_what_says_nothing_new_is_accepted() -> None:
    read(
        gguf(
            {
                "llama.rope.dimension_count": 8,
                "llama.attention.key_length": 8,
                "llama.vocab_size": len(WORDS),
                "llama.rope.scaling.type": "none",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scale_linear": 1.0,
                "llama.expert_count": 0,
                "tokenizer.chat_template": "x" * 10_000,
                "some.number": Typed("f64", 1e300),
            }
        )
    )
    tokenizer = read(gguf({"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_space_prefix": False})).tokenizer
    assert tokenizer.encode("a") == [4]


def test_numbers_of_any_width_and_one_for_each_layer() -> None:
    model = read(
        gguf(
            {
                "llama.embedding_length": Typed("u64", 32),
                "llama.block_count": Typed("u8", 2),
                "llama.context_length": Typed("i16", 16),
                "llama.feed_forward_length": [64, 64],
                "llama.attention.head_count": Typed("u32", [4, 4]),
                "llama.attention.head_count_kv": Typed("u64", [2, 2]),
                "llama.rope.freq_base": Typed("f64", 500.0),
                T + "eos_token_id": Typed("i64", 2),
            }
        )
    )
    assert model.config == replace(CONFIG, rope_base=500.0, norm_eps=0.125)


def test_what_a_converter_may_leave_out_of_the_vocabulary() -> None:
    """As llama.cpp takes it then: no scores are equal scores, and no types are normal pieces."""
    tokenizer = read(gguf({T + "scores": None, T + "token_type": None})).tokenizer
    assert isinstance(tokenizer, SentencePiece)
    assert (tokenizer.scores, tokenizer.types) == ([0.0] * 7, [1] * 7)
    assert tokenizer.encode("a") == [1, 5]


def test_padding_of_a_vocabulary() -> None:
    """Unused pieces may be there twice, pieces may be empty; a normal piece stays what it is beside an unused one."""
    tokens = [*WORDS[:4], "a", "a", "a", "b", "b", "[PAD]", "[PAD]", "", "", ""]
    types = [2, 3, 3, 1, 5, 1, 5, 4, 1, 5, 5, 1, 4, 3]
    config = Config(**(vars(CONFIG) | {"vocab_size": len(tokens)}))
    changes = {T + "tokens": tokens, T + "scores": [0.0] * len(tokens), T + "token_type": types}
    tokenizer = read(gguf(changes, all_tensors(config=config))).tokenizer
    assert tokenizer.encode("ab", bos=False) == [3, 5, 7]
    assert tokenizer.decode([3, 5, 7, 11, 12, 13]) == "ab"


def test_spaces_in_user_defined_pieces_are_written_as_such() -> None:
    tokens = [*WORDS[:4], "a", "  ", "a b"]
    tokenizer = read(gguf({T + "tokens": tokens, T + "token_type": [2, 3, 3, 1, 1, 4, 4]})).tokenizer
    assert tokenizer.encode("  a ba", bos=False) == [5, 3, 6, 4]
    assert tokenizer.decode([3, 6, 5, 4]) == "a b  a"


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({T + "eot_token_id": 4}, {1, 2, 4}),
        ({T + "eom_token_id": Typed("i64", 5), T + "eot_token_id": Typed("u8", 4)}, {1, 2, 4, 5}),
        ({T + "eot_token_id": (1 << 32) - 1, T + "eom_token_id": -1}, {1, 2}),
        ({T + "tokens": [*WORDS[:4], "<|im_end|>", "<|eot_id|>", "<end_of_turn>"]}, {1, 2, 4, 5}),
        ({T + "tokens": [*WORDS[:4], "<|im_start|>", "<|endoftext|> ", "</s>"]}, {1, 2}),
    ],
)
def test_other_ends_than_eos(changes: dict[str, Any], stops: set[int]) -> None:
    """By their ids, or by their texts if the token is a control token (4) or a user-defined one (5)."""
    assert read(gguf({T + "token_type": [2, 3, 3, 1, 3, 4, 1]} | changes)).tokenizer.stop_ids == stops


@pytest.mark.parametrize("key", ["general.name", "general.license"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        ("", ""),
        (Typed("f32", math.nan), ""),
        (7, ""),
        (["a", "b"], ""),
        ("N" * (1 << 20), ""),
        ("x" * 101, "x" * 99 + "…"),
        ("y " * 200, ("y " * 50)[:99].rstrip() + "…"),
        ("  a\n\tb\r\n", "a b"),
        ("a\0b\x1b[31mc\x7f", "ab[31mc"),
        ("left\u202eright\u2066\u200b", "leftright"),
        ("\u2028 Füchsin 狐 🦊", "Füchsin 狐 🦊"),
    ],
)
def test_what_a_file_says_of_itself_is_short_text(key: str, value: Any, shown: str) -> None:
    model = read(gguf({key: value}))
    assert (model.name if key == "general.name" else model.license) == shown
    assert isinstance(model.metadata.get(key, ""), str)


def test_what_a_file_holds_is_short_in_messages_too() -> None:
    error = refused(gguf({"a\x1b[2J" + "b" * 1000: Typed("i16", [1]), "general.architecture": "c\n" * 1000}))
    assert str(error).isprintable()
    assert len(str(error)) < 200
    assert len(str(refused(raw(pairs=pair("k\x1b" * 5000, 13, b"\0"), n_more_pairs=1)))) < 200


def test_other_alignment_and_padding() -> None:
    """Data aligned to 128 bytes, and with or without padding behind the last tensor."""
    data = raw(alignment=128)
    tensors = read(data).tensors
    assert all(tensor.offset % 128 == 0 for tensor in tensors.values())
    assert len(data) == max(tensor.offset + tensor.size for tensor in tensors.values())
    assert read(data + bytes(-len(data) % 128)).tensors == tensors


plain_values = (
    st.booleans()
    | st.text(max_size=20)
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(width=32, allow_nan=False)
    | st.lists(st.text(max_size=5), min_size=1, max_size=5)
    | st.lists(st.booleans(), min_size=1, max_size=5)
    | st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=5)
    | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5)
)


@given(extra=st.dictionaries(st.text(min_size=1, max_size=10).map("x.{}".format), plain_values, max_size=5))
def test_metadata_round_trip(extra: dict[str, Any]) -> None:
    assert read(gguf(extra)).metadata == METADATA | extra


@pytest.mark.parametrize(
    ("type", "value"),
    [
        *((f"u{bits}", (1 << bits) - 1) for bits in (8, 16, 32, 64)),
        *((f"i{bits}", -(1 << bits - 1)) for bits in (8, 16, 32, 64)),
        ("f32", 0.5),
        ("f64", 0.1),
        ("bool", True),
        ("string", "é"),
    ],
)
def test_typed_round_trip(type: str, value: object) -> None:
    metadata = read(
        gguf({"one": Typed(type, value), "two": Typed(type, [value, value]), "no": Typed(type, [])})
    ).metadata
    assert (metadata["one"], metadata["two"], metadata["no"]) == (value, [value, value], [])


class CountingSource(BytesSource):
    """Remembers what was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= self.size
        self.reads.append((offset, size))
        return super().read(offset, size)


def test_reads_are_few_and_large_and_leave_the_weights_alone() -> None:
    extra = {"words": ["word " * 20] * 10_000}
    config = Config(**(vars(CONFIG) | {"hidden_dim": 1 << 16}))
    data = gguf(extra | {"llama.feed_forward_length": 1 << 16}, all_tensors(config=config))
    source = CountingSource(data)
    first = min(tensor.offset for tensor in read_gguf(source).tensors.values())
    assert len(data) > 10 * first
    assert len(source.reads) <= first // WINDOW + 2
    assert sum(size for _, size in source.reads) < first + 2 * WINDOW


# --- What is wrong ---


def raw(
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
    pairs: bytes = b"",
    n_more_pairs: int = 0,
    change: Callable[[dict[str, Any]], None] | None = None,
    alignment: int = ALIGNMENT,
) -> bytes:
    """A file put together here and not by the writer, so that it can be wrong in any way.

    `pairs` are the bytes of `n_more_pairs` pairs put in front; `change` may edit each tensor's info, a dictionary
    of name, dims, type and offset, before it is written.
    """
    content = gguf()
    model = read(content)
    first = min(tensor.offset for tensor in model.tensors.values())
    if alignment != ALIGNMENT:
        pairs += pair("general.alignment", 4, struct.pack("<I", alignment))
        n_more_pairs += 1
    infos, data = b"", b""
    for tensor in model.tensors.values():
        data += bytes(-len(data) % alignment)
        info: dict[str, Any] = {"name": tensor.name, "dims": tensor.shape[::-1], "type": 0, "offset": len(data)}
        data += b"\xff" * tensor.size
        if change:
            change(info)
        dims = info["dims"]
        infos += text(info["name"]) + struct.pack(f"<I{len(dims)}Q", info.get("n_dims", len(dims)), *dims)
        infos += struct.pack("<IQ", info["type"], info["offset"])
    end_of_pairs = content.index(text("token_embd.weight"))
    assert end_of_pairs < first
    header = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(model.tensors) if n_tensors is None else n_tensors,
        len(METADATA) + n_more_pairs if n_pairs is None else n_pairs,
    )
    header += pairs + content[24:end_of_pairs] + infos
    return header + bytes(-len(header) % alignment) + data


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, type: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", type) + value


def test_raw_is_the_writers_file() -> None:
    assert read(raw()).tensors == read(gguf()).tensors


@pytest.mark.parametrize(
    ("field", "message", "data"),
    [
        ("magic", "of 0 bytes: the download may be incomplete", b""),
        ("magic", "of 3 bytes: the download may be incomplete", b"GGU"),
        ("magic", "starts with b'GGUF', this one with b'GGUf'", b"GGUf" + gguf()[4:]),
        ("magic", "not a GGUF model but a file of ggml's", b"ggml" + gguf()[4:]),
        ("version", "version 1 is not", raw(version=1)),
        ("version", "version 4 is not", raw(version=4)),
        ("version", "version 0 is not", raw(version=0)),
        ("version", "big-endian", b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + gguf()[24:]),
        ("version", "big-endian", b"GGUF" + struct.pack(">IQQ", 2, 1, 1) + gguf()[24:]),
        ("tensor count", "more than", raw(n_tensors=(1 << 64) - 1)),
        ("tensor count", "cannot fit", raw(n_tensors=60_000)),
        ("key/value count", "more than", raw(n_pairs=1 << 63)),
        ("key/value count", "cannot fit", raw(n_pairs=60_000)),
        ("key of pair 0", "longer than", raw(pairs=struct.pack("<Q", 1 << 62), n_more_pairs=1)),
        ("key of pair 0", "too early", raw(pairs=struct.pack("<Q", 65_000), n_more_pairs=1)[:9000]),
        ("key of pair 0", "UTF-8", raw(pairs=pair(b"\xff", 0, b"\0"), n_more_pairs=1)),
        ("key of pair 0", "empty", raw(pairs=pair("", 0, b"\0"), n_more_pairs=1)),
        ("general.name", "twice", raw(pairs=pair("general.name", 8, text("x")), n_more_pairs=1)),
        ("x", "value type 13", raw(pairs=pair("x", 13, b"\0"), n_more_pairs=1)),
        ("x", "UTF-8", raw(pairs=pair("x", 8, text(b"\xc3")), n_more_pairs=1)),
        ("x", "longer than", raw(pairs=pair("x", 8, struct.pack("<Q", 1 << 40)), n_more_pairs=1)),
        ("x", "value type 99", raw(pairs=pair("x", 9, struct.pack("<IQ", 99, 1)), n_more_pairs=1)),
        ("x", "arrays of arrays", raw(pairs=pair("x", 9, struct.pack("<IQ", 9, 1)), n_more_pairs=1)),
        ("x", "more than", raw(pairs=pair("x", 9, struct.pack("<IQ", 0, 1 << 61)), n_more_pairs=1)),
        ("x", "cannot fit", raw(pairs=pair("x", 9, struct.pack("<IQ", 0, 1_000_000)), n_more_pairs=1)),
        ("x", "cannot fit", raw(pairs=pair("x", 9, struct.pack("<IQ", 8, 1_000_000)), n_more_pairs=1)),
        ("x", "too early", raw(pairs=pair("x", 9, struct.pack("<IQ", 12, 60_000)), n_more_pairs=1)),
    ],
)
def test_wrong_header(field: str, message: str, data: bytes) -> None:
    error = refused(data)
    assert error.field == field
    assert message in str(error)


def broken(tensor: str, /, **values: Any) -> bytes:
    """A file with one tensor's info changed."""

    def change(info: dict[str, Any]) -> None:
        if info["name"] == tensor:
            info.update(values)

    return raw(change=change)


def test_bytes_that_belong_to_nothing() -> None:
    """Between tensors, in front of the first, behind the last; but for the padding of each to the alignment."""
    data = gguf()
    padded = data + bytes(-len(data) % ALIGNMENT)
    assert read(padded).tensors == read(data).tensors
    for extra in (b"\0", bytes(1000), b"GGUF"):
        error = refused(padded + extra)
        assert (error.field, f"{len(extra)} bytes at the end" in str(error)) == ("size", True)

    def moved(first: int) -> Callable[[dict[str, Any]], None]:
        numbers = iter(range(100))

        def change(info: dict[str, Any]) -> None:
            if next(numbers) >= first:
                info["offset"] += 64

        return change

    assert refused(raw(change=moved(0)) + bytes(64)).field == "token_embd.weight"
    error = refused(raw(change=moved(3)) + bytes(64))
    assert (error.field, "64 bytes in front of it" in str(error)) == ("blk.0.attn_k.weight", True)


def test_a_tensor_that_the_header_does_not_count() -> None:
    """Without its last tensor, the classifier, the file would be another model's: a tied one's."""
    tensors = all_tensors(tied=False)
    assert tensors[-1][0] == "output.weight"
    data = gguf(tensors=tensors)
    assert refused(data[:8] + struct.pack("<Q", len(tensors) - 1) + data[16:]).field == "size"


def test_a_part_of_a_split_file_is_named_first() -> None:
    """The later parts hold nothing but this and tensors."""
    file = io.BytesIO()
    write_gguf(file, {"split.no": Typed("u16", 1), "split.count": Typed("u16", 2)}, all_tensors()[10:])
    assert "part 2 of 2 of a split file" in str(refused(file.getvalue()))
    read(gguf({"split.no": Typed("u16", 0), "split.count": Typed("u16", 1)}))


@pytest.mark.parametrize(
    ("field", "message", "data"),
    [
        ("name of tensor 0", "longer than", broken("token_embd.weight", name="x" * 65)),
        ("name of tensor 0", "empty", broken("token_embd.weight", name="")),
        ("name of tensor 1", "UTF-8", broken("blk.0.attn_norm.weight", name=b"\xff")),
        ("blk.0.attn_q.weight", "twice", broken("blk.1.attn_q.weight", name="blk.0.attn_q.weight")),
        ("output_norm.weight", "0 dimensions", broken("output_norm.weight", dims=())),
        ("output_norm.weight", "5 dimensions", broken("output_norm.weight", dims=(1, 1, 1, 1, 32))),
        ("output_norm.weight", "4294967295 dimensions", broken("output_norm.weight", n_dims=(1 << 32) - 1)),
        ("token_embd.weight", "empty dimension", broken("token_embd.weight", dims=(32, 0))),
        ("token_embd.weight", "too short", broken("token_embd.weight", dims=((1 << 64) - 1, (1 << 64) - 1))),
        ("blk.0.attn_norm.weight", "overlaps tensor token_embd", broken("blk.0.attn_norm.weight", offset=0)),
        ("token_embd.weight", "shape (7, 16)", broken("token_embd.weight", dims=(16, 7))),
        ("token_embd.weight", "shape (7, 4, 8)", broken("token_embd.weight", dims=(8, 4, 7))),
        ("output_norm.weight", "shape (1, 32)", broken("output_norm.weight", dims=(32, 1))),
        ("blk.0.attn_q.weight", "multiple of the alignment", broken("blk.0.attn_q.weight", offset=4)),
        ("output_norm.weight", "too short", broken("output_norm.weight", offset=(1 << 64) - 32)),
        ("token_embd.weight", "type Q2_K is not", broken("token_embd.weight", type=10)),
        ("token_embd.weight", "type IQ2_XXS is not", broken("token_embd.weight", type=16)),
        ("token_embd.weight", "type number 4 is not", broken("token_embd.weight", type=4)),
        ("output_norm.weight", "must be one of F32, F16, BF16", broken("output_norm.weight", type=8)),
        *(
            ("token_embd.weight", "multiple of 32", broken("token_embd.weight", type=t, dims=(48, 1)))
            for t in (2, 3, 8)
        ),
        *(("output_norm.weight", "F32, F16, BF16", broken("output_norm.weight", type=type)) for type in (2, 3, 8)),
        ("token_embd.weight", "scales (token_embd.scales) are missing", broken("token_embd.weight", type=24)),
        ("token_embd.weight", "missing", broken("token_embd.weight", name="output.weight")),
        ("blk.0.attn_q.weight", "missing", broken("blk.0.attn_q.weight", name="blk.0.attn_q.bias")),
        (
            "rope_freqs.weight",
            "must be F32 numbers of shape (4,)",
            broken("blk.0.attn_q.weight", name="rope_freqs.weight"),
        ),
        ("blk.0.ffn_gate_exps.weight", "experts", broken("blk.0.ffn_up.weight", name="blk.0.ffn_gate_exps.weight")),
        ("blk.2.ffn_up.weight", "not part of", broken("blk.1.ffn_up.weight", name="blk.2.ffn_up.weight")),
        ("general.alignment", "power of two", raw(alignment=48)),
        ("general.alignment", "power of two", raw(alignment=1 << 20)),
        ("general.alignment", "power of two", raw(alignment=4)),
        ("general.alignment", "int", raw(pairs=pair("general.alignment", 8, text("32")), n_more_pairs=1)),
        ("general.alignment", "power of two", raw(pairs=pair("general.alignment", 4, bytes(4)), n_more_pairs=1)),
    ],
)
def test_wrong_tensors(field: str, message: str, data: bytes) -> None:
    error = refused(data)
    assert error.field == field
    assert message in str(error)


BYTE_PIECE = ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "<0x0>"]


@pytest.mark.parametrize(
    ("field", "message", "changes"),
    [
        ("general.architecture", "missing", {"general.architecture": None}),
        ("general.architecture", "'gpt2'", {"general.architecture": "gpt2"}),
        ("general.architecture", "kind str", {"general.architecture": 1}),
        *((key, "missing", {key: None}) for key in METADATA if key.startswith("llama.") and key.endswith("_length")),
        ("llama.block_count", "missing", {"llama.block_count": None}),
        ("llama.attention.layer_norm_rms_epsilon", "missing", {"llama.attention.layer_norm_rms_epsilon": None}),
        ("llama.attention.layer_norm_rms_epsilon", "finite", {"llama.attention.layer_norm_rms_epsilon": math.nan}),
        ("llama.attention.layer_norm_rms_epsilon", "from 0", {"llama.attention.layer_norm_rms_epsilon": -1.0}),
        ("llama.rope.freq_base", "finite", {"llama.rope.freq_base": math.inf}),
        ("llama.rope.freq_base", "from 1", {"llama.rope.freq_base": 0.0}),
        ("llama.embedding_length", "from 1", {"llama.embedding_length": 0}),
        ("llama.embedding_length", "from 1", {"llama.embedding_length": -32}),
        ("llama.embedding_length", "from 1", {"llama.embedding_length": 1 << 60}),
        ("llama.embedding_length", "kind int", {"llama.embedding_length": 32.0}),
        ("llama.attention.head_count", "from 1", {"llama.attention.head_count": 0}),
        ("llama.attention.head_count", "divide", {"llama.attention.head_count": 5}),
        ("llama.attention.head_count", "even", {"llama.attention.head_count": 32}),
        ("llama.attention.head_count", "same in all layers", {"llama.attention.head_count": [4, 2]}),
        ("llama.attention.head_count", "same in all layers", {"llama.attention.head_count": [4.0, 4.0]}),
        ("llama.attention.head_count", "kind int", {"llama.attention.head_count": [4, 4, 4]}),
        ("llama.attention.head_count", "kind int", {"llama.attention.head_count": True}),
        ("llama.attention.head_count_kv", "same in all layers", {"llama.attention.head_count_kv": [2, 1]}),
        ("llama.feed_forward_length", "same in all layers", {"llama.feed_forward_length": [64, 32]}),
        ("llama.attention.head_count_kv", "divide", {"llama.attention.head_count_kv": 3}),
        ("llama.attention.head_count_kv", "from 1", {"llama.attention.head_count_kv": 0}),
        ("llama.block_count", "from 1", {"llama.block_count": 1 << 31}),
        ("llama.context_length", "from 1", {"llama.context_length": 0}),
        ("blk.2.attn_norm.weight", "missing", {"llama.block_count": 3}),
        ("blk.1.attn_norm.weight", "not part", {"llama.block_count": 1}),
        ("blk.0.ffn_gate.weight", "shape", {"llama.feed_forward_length": 96}),
        ("blk.0.attn_k.weight", "shape", {"llama.attention.head_count_kv": 4}),
        ("llama.rope.dimension_count", "must be even", {"llama.rope.dimension_count": 5}),
        ("llama.rope.dimension_count", "within the head's size", {"llama.rope.dimension_count": 10}),
        ("llama.rope.dimension_count", "from 0", {"llama.rope.dimension_count": -2}),
        ("llama.attention.key_length", "from 0 to", {"llama.attention.key_length": 1 << 17}),
        (
            "llama.attention.key_length",
            "too wide",
            {"llama.attention.key_length": 1 << 16, "llama.attention.head_count": 8},
        ),
        ("llama.attention.value_length", "only the size of the keys, 8", {"llama.attention.value_length": 16}),
        ("llama.rope.scaling.type", "'dynamic' is not supported", {"llama.rope.scaling.type": "dynamic"}),
        ("llama.rope.scaling.factor", "from 0.001", {"llama.rope.scaling.factor": -2.0}),
        ("llama.rope.scaling.factor", "from 0.001", {"llama.rope.scaling.factor": math.nan}),
        ("llama.rope.scaling.attn_factor", "from 0.001", {"llama.rope.scaling.attn_factor": 0.0}),
        ("llama.rope.scaling.original_context_length", "above 0", {"llama.rope.scaling.original_context_length": 0}),
        (
            "llama.rope.scaling.yarn_beta_fast",
            "no range",
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_beta_fast": 0.5},
        ),
        (
            "llama.rope.scaling.yarn_beta_fast",
            "no range",
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_beta_slow": Typed("f64", 1e-320)},
        ),
        ("rope_factors_short.weight", "missing", {"llama.rope.scaling.type": "longrope"}),
        ("llama.attention.sliding_window", "from 0", {"llama.attention.sliding_window": -1}),
        ("llama.attention.sliding_window_pattern", "from 0 on", {"llama.attention.sliding_window_pattern": -1}),
        (
            "llama.attention.sliding_window_pattern",
            "of the 2 layers",
            {"llama.attention.sliding_window_pattern": [True]},
        ),
        ("llama.attention.scale", "must be from", {"llama.attention.scale": -0.5}),
        ("llama.embedding_scale", "must be from", {"llama.embedding_scale": 0.0}),
        ("llama.residual_scale", "finite", {"llama.residual_scale": math.inf}),
        ("llama.logit_scale", "must be from", {"llama.logit_scale": 0.0}),
        ("llama.attn_logit_softcapping", "must be from", {"llama.attn_logit_softcapping": -50.0}),
        ("llama.final_logit_softcapping", "must be of kind float", {"llama.final_logit_softcapping": "30"}),
        ("fabella.block_repeats", "from 1 to 16", {"fabella.block_repeats": 0}),
        ("llama.expert_count", "not supported", {"llama.expert_count": 8}),
        ("llama.vocab_size", "tokenizer has 7", {"llama.vocab_size": 8}),
        (T + "model", "'bert'; only 'llama'", {T + "model": "bert"}),
        (T + "pre", "missing", {T + "model": "gpt2"}),
        (T + "merges", "missing", {T + "model": "gpt2", T + "pre": "gpt-2"}),
        (T + "merges", "array of text", {T + "model": "gpt2", T + "pre": "gpt-2", T + "merges": [1, 2]}),
        (
            T + "merges",
            "merge 0, '<s> </s>', does not make",
            {T + "model": "gpt2", T + "pre": "gpt-2", T + "merges": ["<s> </s>"]},
        ),
        (T + "pre", "'tekken'; only", {T + "model": "gpt2", T + "pre": "tekken"}),
        (T + "pre", "must be of kind str", {T + "model": "gpt2", T + "pre": 1}),
        (T + "model", "missing", {T + "model": None}),
        (T + "tokens", "missing", {T + "tokens": None}),
        (T + "tokens", "kind list", {T + "tokens": "abc"}),
        (T + "tokens", "the vocabulary is empty", {T + "tokens": Typed("string", [])}),
        (T + "tokens", "array of text", {T + "tokens": list(range(7))}),
        (T + "scores", "array of fractions", {T + "scores": [1] * 7}),
        (T + "scores", "array of fractions", {T + "scores": ["1"] * 7}),
        (T + "token_type", "array of whole numbers", {T + "token_type": [1.0] * 7}),
        (T + "token_type", "array of whole numbers", {T + "token_type": [True] * 7}),
        (T + "tokens", "both '▁'", {T + "tokens": [*WORDS[:6], "▁"]}),
        (T + "tokens", "byte token", {T + "tokens": BYTE_PIECE, T + "token_type": [2, 3, 3, 1, 1, 1, 6]}),
        (T + "scores", "there are 8", {T + "scores": [0.0] * 8}),
        (T + "scores", "finite", {T + "scores": [math.nan] * 7}),
        (T + "token_type", "there are 1", {T + "token_type": [1]}),
        (T + "token_type", "there are 6", {T + "token_type": [1, 1, 1, 1, 4, 4], T + "scores": [0.0] * 6}),
        (T + "token_type", "type 9", {T + "token_type": [9] * 7}),
        (T + "bos_token_id", "0 to 6", {T + "bos_token_id": 7}),
        (T + "eos_token_id", "0 to 6", {T + "eos_token_id": (1 << 32) - 1}),
        (T + "unknown_token_id", "0 to 6", {T + "unknown_token_id": 7}),
        (T + "unknown_token_id", "0 to 6", {T + "unknown_token_id": -1}),
        *((T + f"{end}_token_id", "0 to 6", {T + f"{end}_token_id": 7}) for end in ("eot", "eom")),
        *((T + f"{end}_token_id", "kind int", {T + f"{end}_token_id": "</s>"}) for end in ("eos", "eot", "eom")),
        (T + "add_bos_token", "kind bool", {T + "add_bos_token": 1}),
        ("split.count", "part 1 of 3 of a split file", {"split.count": Typed("u16", 3), "split.no": Typed("u16", 0)}),
        ("split.count", "kind int", {"split.count": "3"}),
    ],
)
def test_wrong_metadata(field: str, message: str, changes: dict[str, Any]) -> None:
    error = refused(gguf(changes))
    assert error.field == field
    assert message in str(error)


# --- I8, whose scales are a tensor of their own ---


def with_int8(scales: tuple[str, str, tuple[int, ...]] | None, before: bool = False) -> bytes:
    """A file whose blk.1.ffn_down.weight, (32, 64), is I8; with such a tensor of scales behind it or before it."""
    tensors: Tensors = []
    for tensor in all_tensors():
        if tensor[0] == "blk.1.ffn_down.weight":
            pair: Tensors = [(tensor[0], "I8", tensor[2], bytes(2048))]
            if scales:
                name, type, shape = scales
                size = FORMATS[type].block_size * math.prod(shape) // FORMATS[type].block
                pair.insert(0 if before else 1, (name, type, shape, bytes(range(256)) * (size // 256)))
            tensors += pair
        else:
            tensors.append(tensor)
    return gguf(tensors=tensors)


@pytest.mark.parametrize("group", [1, 4, 8, 32])
def test_int8_and_its_scales(group: int) -> None:
    count = 2048 // group
    data = with_int8(("blk.1.ffn_down.scales", "F32", (count,)))
    tensors = read(data).tensors
    assert tensors.keys() == expected_shapes(CONFIG).keys()
    tensor = tensors["blk.1.ffn_down.weight"]
    assert (tensor.type, tensor.size, tensor.group, tensor.scales_size) == ("I8", 2048, group, 4 * count)
    assert data[tensor.scales : tensor.scales + tensor.scales_size] == bytes(range(256)) * (count // 64)


@pytest.mark.parametrize(
    ("field", "message", "data"),
    [
        ("blk.1.ffn_down.weight", "scales (blk.1.ffn_down.scales) are missing", with_int8(None)),
        ("blk.1.ffn_down.weight", "are missing", with_int8(("blk.0.ffn_down.scales", "F32", (64,)))),
        ("blk.1.ffn_down.scales", "F32 scales for 2048", with_int8(("blk.1.ffn_down.scales", "F16", (128,)))),
        ("blk.1.ffn_down.scales", "F32 scales for 2048", with_int8(("blk.1.ffn_down.scales", "F32", (32, 2)))),
        ("blk.1.ffn_down.scales", "equally many", with_int8(("blk.1.ffn_down.scales", "F32", (192,)))),
        ("blk.1.ffn_down.scales", "equally many", with_int8(("blk.1.ffn_down.scales", "F32", (4096,)))),
        ("blk.1.ffn_down.scales", "behind", with_int8(("blk.1.ffn_down.scales", "F32", (64,)), before=True)),
        (
            "token_embd.scales",
            "not part of",
            gguf(tensors=[*all_tensors(), ("token_embd.scales", "F32", (7,), bytes(28))]),
        ),
    ],
)
def test_wrong_scales(field: str, message: str, data: bytes) -> None:
    error = refused(data)
    assert error.field == field
    assert message in str(error)


def test_vocabulary_of_another_size() -> None:
    changes = {
        "tokenizer.ggml.tokens": [*WORDS, "more"],
        "tokenizer.ggml.scores": [0.0] * 8,
        "tokenizer.ggml.token_type": [1] * 8,
    }
    assert refused(gguf(changes)).field == "token_embd.weight"


def test_cut_off_anywhere() -> None:
    """At every byte; the message says how many bytes are missing once the header is whole."""
    data = gguf()
    model = read(data)
    first = min(tensor.offset for tensor in model.tensors.values())
    end = max(tensor.offset + tensor.size for tensor in model.tensors.values())
    for length in range(first):
        assert "incomplete" in str(refused(data[:length]))
    for length in range(first, end, 61):
        assert f"{end - length} bytes too short" in str(refused(data[:length]))
    read(data[:end])


def test_any_byte_changed() -> None:
    """Whatever byte of the header is wrong, the file is read or refused; nothing else is raised."""
    data = bytearray(gguf())
    first = min(tensor.offset for tensor in read(bytes(data)).tensors.values())
    for position in range(first):
        right = data[position]
        for wrong in (0, 0xFF, right ^ 1, right ^ 0x80):
            data[position] = wrong
            with contextlib.suppress(ModelFileError):
                read(bytes(data))
        data[position] = right


@settings(max_examples=300)
@given(garbage=st.binary(max_size=300), start=st.sampled_from([b"", b"GGUF\3\0\0\0", gguf()[:24], gguf()[:600]]))
def test_garbage(garbage: bytes, start: bytes) -> None:
    assert isinstance(refused(start + garbage), FabellaError)


LARGE = bytes(4 << 20)


def peak_of(read_it: Callable[[], object]) -> int:
    """The most memory, in bytes, that something takes while it runs."""
    tracemalloc.start()
    try:
        read_it()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "pairs",
    [
        pair("x", 9, struct.pack("<IQ", 0, 1 << 20)),
        pair("x", 9, struct.pack("<IQ", 8, 1 << 20)),
        pair("x", 9, struct.pack("<IQ", 7, 1 << 20)),
        pair("x", 8, struct.pack("<Q", 1 << 20)),
        pair("x", 9, struct.pack("<IQ", 0, (1 << 63) - 1)),
        pair("x", 9, struct.pack("<IQ", 12, (1 << 20))),
        pair("x", 8, struct.pack("<Q", (1 << 64) - 1)),
        struct.pack("<Q", (1 << 64) - 1),
    ],
)
@pytest.mark.parametrize("more", [b"", LARGE])
def test_a_small_file_cannot_ask_for_much_memory(pairs: bytes, more: bytes) -> None:
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pairs + more
    assert peak_of(lambda: refused(data)) < len(data) + 200_000


@pytest.mark.parametrize(
    "value",
    [
        Typed("u8", [7] * (1 << 20)),
        Typed("i16", [1000] * (1 << 20)),
        Typed("f64", [0.5] * (1 << 18)),
        ["ab"] * (1 << 18),
        ["a" * 1000] * 2000,
        ["", *["é🦊"] * 20_000],
        "x" * (1 << 20),
        "🦊" * (1 << 18),
    ],
    ids=["bytes", "numbers", "fractions", "short texts", "longer texts", "few texts", "a text", "a wide text"],
)
def test_what_nobody_reads_takes_no_memory(value: Any) -> None:
    """The array or text is not in `metadata` then, while what comes behind it is."""
    data = gguf({"a": value, "b": value, "c": [1, 2, 3], "general.license": "MIT"})
    assert peak_of(lambda: read(data)) < 1.3 * len(data)
    model = read(data)
    assert model.metadata.keys() == METADATA.keys() | {"c", "general.license"}
    assert (model.metadata["c"], model.license) == ([1, 2, 3], "MIT")


def test_there_is_room_for_a_little_that_nobody_reads() -> None:
    """Only what fits is kept; it makes no difference how many arrays it is."""
    extra: dict[str, Any] = {"template": "x" * 10_000, "list": ["tales", "more tales"]}
    model = read(gguf(extra | {f"x.{number}": Typed("i16", [1000] * 1000) for number in range(300)}))
    kept = sum(key.startswith("x.") for key in model.metadata)
    assert 20 < kept < 30
    assert {key: model.metadata[key] for key in extra} == extra


@pytest.mark.parametrize("type", [1, 3, 4, 5])
def test_a_large_vocabulary_takes_a_small_multiple_of_its_file(type: int) -> None:
    """Whatever the type of its tokens."""
    count = 20_000
    config = Config(**(vars(CONFIG) | {"vocab_size": count, "dim": 2, "n_heads": 1, "n_kv_heads": 1}))
    changes: dict[str, Any] = {
        "llama.embedding_length": 2,
        "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1,
        T + "tokens": [f"{number:06d}"[::-1] for number in range(count)],
        T + "scores": [-float(number) for number in range(count)],
        T + "token_type": [type] * count,
    }
    tensors = [(name, "F32", shape, bytes(4 * math.prod(shape))) for name, shape in expected_shapes(config).items()]
    data = gguf(changes, tensors)
    assert peak_of(lambda: read(data)) < 9 * len(data)
    tokenizer = read(data).tokenizer
    text = "000001 " * 1000
    assert peak_of(lambda: tokenizer.encode(text)) < 1000 * len(text)


def test_header_has_a_limit() -> None:
    """A gigabyte of metadata is no model that a page could run; it is refused before it is read."""
    item = pair("x", 8, text("y" * (1 << 20)))

    class Endless:
        size = 1 << 30

        def read(self, offset: int, size: int) -> bytes:
            count = -(-size // len(item)) + 1
            keys = offset // len(item)
            data = b"".join(item.replace(b"x", bytes([32 + (keys + i) % 90]), 1) for i in range(count))
            return data[offset % len(item) :][:size]

    class Source(Endless):
        def read(self, offset: int, size: int) -> bytes:
            header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1000)
            if offset < len(header):
                return header + super().read(0, size - len(header))
            return super().read(offset - len(header), size)

    with pytest.raises(ModelFileError, match="header is longer than 64 MiB"):
        read_gguf(Source())


@pytest.mark.parametrize(
    ("field", "metadata", "tensors"),
    [
        ("t", {}, [("t", "F32", (2,), bytes(4))]),
        ("t", {}, [("t", "Q2_K", (256,), bytes(84))]),
        *(("t", {}, [("t", type, (32,), bytes(size - 1))]) for type, size in BYTES_OF_32.items()),
        *(("t", {}, [("t", type, (2, 16), bytes(BYTES_OF_32[type]))]) for type in ("Q8_0", "Q4_0", "Q4_1")),
        ("t", {}, [("t", "F32", (1,), bytes(4)), ("t", "F32", (1,), bytes(4))]),
        ("k", {"k": None}, []),
        ("k", {"k": []}, []),
        ("k", {"k": [1, "a"]}, []),
        ("k", {"k": 1 << 64}, []),
        ("k", {"k": -(1 << 63) - 1}, []),
        ("k", {"k": 1e39}, []),
        ("k", {"k": Typed("u8", 256)}, []),
        ("k", {"k": Typed("u7", 1)}, []),
        ("k", {"k": Typed("string", 1)}, []),
        ("general.alignment", {"general.alignment": 64}, []),
    ],
)
def test_what_cannot_be_written(field: str, metadata: dict[str, Any], tensors: Tensors) -> None:
    with pytest.raises(ModelFileError) as caught:
        write_gguf(io.BytesIO(), metadata, tensors)
    assert caught.value.field == field
