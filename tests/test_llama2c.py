"""llama2.c's files: read as they are laid out, refused unless they fit to the byte."""

from __future__ import annotations

import contextlib
import math
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabella.errors import ModelFileError
from fabella.llama2c import read_llama2c, read_tokenizer
from fabella.modelfile import BytesSource, FileSource, ModelFile
from fabella.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN

MODELS = Path(__file__).parents[1] / ".." / "shared" / "models"

PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", "<0x41>", " ", "b", " b"]
SIZES = {"dim": 8, "hidden_dim": 12, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 7, "seq_len": 5}

# The file's float32 groups in order, for these sizes: name, count per layer (or in all), shape.
GROUPS: list[tuple[str, int, tuple[int, ...]]] = [
    ("token_embd", 1, (7, 8)),
    ("attn_norm", 2, (8,)),
    ("attn_q", 2, (8, 8)),
    ("attn_k", 2, (4, 8)),
    ("attn_v", 2, (4, 8)),
    ("attn_output", 2, (8, 8)),
    ("ffn_norm", 2, (8,)),
    ("ffn_gate", 2, (12, 8)),
    ("ffn_down", 2, (8, 12)),
    ("ffn_up", 2, (12, 8)),
    ("output_norm", 1, (8,)),
    ("rope", 1, (2, 5, 2)),
]


def model_bin(tied: bool = True, **sizes: int) -> bytes:
    """A model file whose every float tells its position in the file; `sizes` change the header alone."""
    header = SIZES | ({} if tied else {"vocab_size": -7}) | sizes
    groups = GROUPS if tied else [*GROUPS, ("output", 1, (7, 8))]
    count = sum(layers * math.prod(shape) for _, layers, shape in groups)
    return struct.pack("<7i", *header.values()) + struct.pack(f"<{count}f", *range(count))


# Versions 1 and 2 have the norms first, and no tables of cosines and sines.
LATER_GROUPS = [group for group in GROUPS if len(group[2]) == 1] + [group for group in GROUPS if len(group[2]) == 2]
MAGIC = 0x616B3432


def later_bin(version: int, tied: bool = True, group: int = 8, flag: int | None = None, **sizes: int) -> bytes:
    """A model file of version 1 or 2, in which the tensor number n holds n alone, and in version 2 the scales n / 2.

    `sizes` and the `flag`, the shared classifier's, change the header alone.
    """
    header = struct.pack("<Ii7i", MAGIC, version, *(SIZES | sizes).values())
    header += struct.pack("<B", tied if flag is None else flag) + (struct.pack("<i", group) if version == 2 else b"")
    data = header + bytes(256 - len(header))
    number = 0
    for _, layers, shape in [*LATER_GROUPS, *([] if tied else [("output", 1, (7, 8))])]:
        for _ in range(layers):
            count = math.prod(shape)
            if version == 2 and len(shape) == 2:
                scales = count // group if group > 0 else 0
                data += bytes([number]) * count + struct.pack(f"<{scales}f", *[number / 2] * scales)
            else:
                data += struct.pack(f"<{count}f", *[number] * count)
            number += 1
    return data


def tokenizer_bin(pieces: list[bytes] | None = None, longest: int | None = None) -> bytes:
    pieces = [piece.encode() for piece in PIECES] if pieces is None else pieces
    data = struct.pack("<i", max(map(len, pieces)) if longest is None else longest)
    for rank, piece in enumerate(pieces):
        data += struct.pack("<fi", -float(rank), len(piece)) + piece
    return data


def read(model: bytes, tokenizer: bytes | None = None) -> ModelFile:
    return read_llama2c(BytesSource(model), BytesSource(tokenizer_bin() if tokenizer is None else tokenizer))


def refused(model: bytes, tokenizer: bytes | None = None) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        read(model, tokenizer)
    return caught.value


@pytest.mark.parametrize("tied", [True, False])
def test_layout(tied: bool) -> None:
    data = model_bin(tied)
    model = read(data)
    assert {name: getattr(model.config, name) for name in SIZES} == SIZES
    assert (model.config.rope_base, model.config.norm_eps) == (10000.0, 1e-5)
    assert ("output.weight" in model.tensors) == (not tied)
    position = 0
    seen = 0
    for name, layers, shape in GROUPS if tied else [*GROUPS, ("output", 1, (7, 8))]:
        for layer in range(layers):
            full_name = f"blk.{layer}.{name}.weight" if layers > 1 else f"{name}.weight"
            if name != "rope":
                tensor = model.tensors[full_name]
                assert (tensor.name, tensor.type, tensor.shape) == (full_name, "F32", shape)
                assert tensor.size == 4 * math.prod(shape)
                assert struct.unpack_from("<f", data, tensor.offset) == (position,)
                seen += 1
            position += math.prod(shape)
    assert seen == len(model.tensors)
    assert 28 + 4 * position == len(data)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("version", "group"), [(1, 0), (2, 1), (2, 4), (2, 8)])
def test_layout_of_later_versions(version: int, group: int, tied: bool) -> None:
    data = later_bin(version, tied, group)
    model = read(data)
    assert {name: getattr(model.config, name) for name in SIZES} == SIZES
    assert ("output.weight" in model.tensors) == (not tied)
    number, end = 0, 256
    for name, layers, shape in [*LATER_GROUPS, *([] if tied else [("output", 1, (7, 8))])]:
        for layer in range(layers):
            tensor = model.tensors[f"blk.{layer}.{name}.weight" if layers > 1 else f"{name}.weight"]
            content = data[tensor.offset : tensor.offset + tensor.size]
            assert (tensor.shape, tensor.offset) == (shape, end)
            if version == 2 and len(shape) == 2:
                assert (tensor.type, tensor.group) == ("I8", group)
                assert content == bytes([number]) * math.prod(shape)
                scales = data[tensor.scales : tensor.scales + tensor.scales_size]
                assert scales == struct.pack("<f", number / 2) * (math.prod(shape) // group)
                end = tensor.scales + tensor.scales_size
            else:
                assert (tensor.type, tensor.group) == ("F32", 0)
                assert content == struct.pack("<f", number) * math.prod(shape)
                end = tensor.offset + tensor.size
            number += 1
    assert number == len(model.tensors)
    assert end == len(data)


def test_tokenizer() -> None:
    tokenizer = read(model_bin()).tokenizer
    assert tokenizer.pieces == PIECES
    assert tokenizer.scores == [-float(rank) for rank in range(7)]
    assert tokenizer.types == [UNKNOWN, CONTROL, CONTROL, BYTE, NORMAL, NORMAL, NORMAL]
    assert (tokenizer.bos_id, tokenizer.eos_id, sorted(tokenizer.stop_ids)) == (1, 2, [1])
    assert tokenizer.encode("b b") == [1, 6, 6]
    assert tokenizer.decode([1, 6, 6, 3]) == "b bA"


def test_stories260k() -> None:
    if not (MODELS / "stories260K.bin").exists():
        pytest.skip("../shared/models is not there")
    with FileSource(MODELS / "stories260K.bin") as model, FileSource(MODELS / "tok512.bin") as tokenizer:
        read_model = read_llama2c(model, tokenizer)
    config = read_model.config
    assert (config.dim, config.hidden_dim, config.n_layers, config.n_heads) == (64, 172, 5, 8)
    assert (config.n_kv_heads, config.vocab_size, config.seq_len) == (4, 512, 512)
    assert "output.weight" not in read_model.tensors
    assert read_model.tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]


@pytest.mark.parametrize(
    ("field", "message", "data"),
    [
        ("header", "only 0 bytes", b""),
        ("header", "only 27 bytes", model_bin()[:27]),
        ("size", "but this one has 28", model_bin()[:28]),
        ("size", f"of {len(model_bin())} bytes, but this one has {len(model_bin()) - 1}", model_bin()[:-1]),
        ("size", f"of {len(model_bin())} bytes, but this one has {len(model_bin()) + 1}", model_bin() + b"\0"),
        ("size", "asks for", model_bin(tied=False)[:-4]),
        ("size", "asks for", model_bin(tied=False, vocab_size=7)),
        ("size", "asks for", model_bin(vocab_size=-7)),
        *(("version", f"version {v} is not supported", struct.pack("<Ii", MAGIC, v) + bytes(248)) for v in (-1, 0, 3)),
        ("header", "only 40 bytes; 256 are", later_bin(1)[:40]),
        ("header", "only 255 bytes; 256 are", later_bin(2)[:255]),
        ("shared_classifier", "is 2, but", later_bin(1, flag=2)),
        ("shared_classifier", "is 255, but", later_bin(2, flag=255)),
        ("group_size", "is 0, but", later_bin(2, group=0)),
        ("group_size", "is -8, but", later_bin(2, group=-8)),
        ("group_size", "3 does not divide the 56 weights of token_embd.weight", later_bin(2, group=3)),
        ("group_size", "7 does not divide the 64 weights of blk.0.attn_q.weight", later_bin(2, group=7)),
        ("group_size", "2147483647 does not divide", later_bin(2, group=(1 << 31) - 1)),
        ("size", f"but this one has {len(later_bin(1)) - 1}", later_bin(1)[:-1]),
        ("size", f"but this one has {len(later_bin(2)) - 4}", later_bin(2)[:-4]),
        *(("size", "version 1 model", later_bin(1) + extra) for extra in (b"x", bytes(224))),
        ("size", "asks for", later_bin(1, flag=0)),
        ("size", "asks for", later_bin(2, tied=False, flag=1)),
        ("size", "asks for", later_bin(2, hidden_dim=16)),
        ("vocab_size", "from 1", later_bin(1, vocab_size=-7)),
        ("dim", "from 1", later_bin(2, dim=0)),
        ("n_heads", "divide", later_bin(2, n_heads=3)),
        ("n_heads", "from 1", model_bin(n_heads=0)),
        ("n_heads", "divide", model_bin(n_heads=3)),
        ("n_heads", "even", model_bin(n_heads=8)),
        ("n_kv_heads", "divide", model_bin(n_heads=4, n_kv_heads=3)),
        ("n_kv_heads", "from 1", model_bin(n_kv_heads=-1)),
        ("dim", "from 1", model_bin(dim=0)),
        ("hidden_dim", "from 1", model_bin(hidden_dim=-12)),
        ("n_layers", "from 1", model_bin(n_layers=(1 << 31) - 1)),
        ("vocab_size", "from 1", model_bin(vocab_size=0)),
        ("vocab_size", "from 1", model_bin(vocab_size=-(1 << 31))),
        ("seq_len", "from 1", model_bin(seq_len=0)),
        ("size", "asks for", model_bin(seq_len=6)),
        ("size", "asks for", model_bin(hidden_dim=13)),
        ("size", "asks for", model_bin(n_layers=1000, seq_len=1 << 20)),
        ("dim", "from 1", b"GGUF" + bytes(100)),
    ],
)
def test_wrong_model(field: str, message: str, data: bytes) -> None:
    error = refused(data)
    assert error.field == field
    assert message in str(error)


def with_token(id: int, score: float = 0.0, length: int | None = None, piece: bytes = b"x") -> bytes:
    """A tokenizer file with one token replaced."""
    pieces = [piece.encode() for piece in PIECES]
    before, after = tokenizer_bin(pieces[:id], longest=9), tokenizer_bin(pieces[id + 1 :], longest=9)[4:]
    return before + struct.pack("<fi", score, len(piece) if length is None else length) + piece + after


@pytest.mark.parametrize(
    ("field", "message", "data"),
    [
        ("tokenizer", "exactly the 7 tokens", b""),
        ("tokenizer", "exactly the 7 tokens", tokenizer_bin([b"a"] * 6)),
        ("tokenizer", "exactly the 7 tokens", bytes(1 << 20)),
        ("tokenizer", "1 bytes are left", tokenizer_bin() + b"\0"),
        ("tokenizer", "9 bytes are left", tokenizer_bin([*(piece.encode() for piece in PIECES), b"c"])),
        ("tokenizer max_token_length", "is 0", tokenizer_bin(longest=0)),
        ("tokenizer max_token_length", "is -1", tokenizer_bin(longest=-1)),
        ("tokenizer max_token_length", "is 2000", tokenizer_bin(longest=2000)),
        ("tokenizer token 2", "longest is said to be 5", tokenizer_bin(longest=5)),
        ("tokenizer token 3", "length of -1", with_token(3, length=-1)),
        ("tokenizer token 3", "length of 2147483647", with_token(3, length=(1 << 31) - 1)),
        ("tokenizer token 6", "ends inside it", with_token(6, length=9)),
        ("tokenizer token 6", "ends before it", tokenizer_bin(longest=9)[:-3]),
        ("tokenizer token 5", "UTF-8", with_token(5, piece=b"\xe2\x96")),
        ("tokenizer scores", "finite", with_token(5, score=math.nan)),
        ("tokenizer scores", "finite", with_token(5, score=math.inf)),
        ("tokenizer pieces", "empty", with_token(5, piece=b"")),
        ("tokenizer pieces", "both", with_token(5, piece=b" ")),
        ("tokenizer pieces", "both", with_token(5, piece=b"<0x41>")),
    ],
)
def test_wrong_tokenizer(field: str, message: str, data: bytes) -> None:
    error = refused(model_bin(), data)
    assert message in str(error)
    assert error.field == field


ALL_VERSIONS = pytest.mark.parametrize("model", [model_bin(), later_bin(1), later_bin(2)], ids=["0", "1", "2"])


@ALL_VERSIONS
def test_cut_off_anywhere(model: bytes) -> None:
    tokenizer = tokenizer_bin()
    for length in range(len(model)):
        assert refused(model[:length]).field in ("header", "size")
    for length in range(len(tokenizer)):
        assert refused(model, tokenizer[:length]).field.startswith("tokenizer")


@ALL_VERSIONS
def test_any_byte_changed(model: bytes) -> None:
    """Read or refused; nothing else is raised."""
    changed, tokenizer = bytearray(model), bytearray(tokenizer_bin())
    for data, length in ((changed, 44), (tokenizer, len(tokenizer))):
        for position in range(length):
            right = data[position]
            for wrong in (0, 0xFF, right ^ 1, right ^ 0x80):
                data[position] = wrong
                with contextlib.suppress(ModelFileError):
                    read(bytes(changed), bytes(tokenizer))
            data[position] = right


@settings(deadline=None)
@given(garbage=st.binary(max_size=300))
def test_garbage(garbage: bytes) -> None:
    refused(garbage)
    refused(model_bin()[:28] + garbage)
    refused(later_bin(1)[:8] + garbage)
    refused(later_bin(2)[:8] + garbage)
    refused(model_bin(), tokenizer_bin(longest=9)[:4] + garbage)


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layers": 1024, "dim": 65536, "hidden_dim": 1 << 18, "n_heads": 512, "n_kv_heads": 512, "seq_len": 1 << 20},
        {"vocab_size": 1 << 20},
        {"vocab_size": -(1 << 20), "n_layers": 1024},
        {"vocab_size": 1 << 20, "n_layers": 1024, "version": 2},
    ],
)
def test_memory_is_bounded(sizes: dict[str, Any]) -> None:
    """However large the header says the model is; the descriptions of 1,024 layers take the most."""
    data = later_bin(**sizes) if "version" in sizes else model_bin(**sizes)
    tracemalloc.start()
    try:
        refused(data)
        with pytest.raises(ModelFileError):
            read_tokenizer(BytesSource(tokenizer_bin()), 1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
