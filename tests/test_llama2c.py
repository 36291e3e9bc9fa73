"""llama2.c's files: read as they are laid out, refused unless they fit to the byte."""

from __future__ import annotations

import contextlib
import math
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fabella.architectures import expected_shapes
from fabella.engine import Engine
from fabella.errors import ModelFileError
from fabella.gguf import read_gguf
from fabella.hosts import WasmtimeHost
from fabella.llama2c import convert_llama2c, read_llama2c, read_tokenizer
from fabella.modelfile import Config, ModelFile
from fabella.sentencepiece import SentencePiece
from fabella.sources import BytesSource, FileSource
from fabella.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN
from train.model import Llama

from .llama2c_files import GROUPS, LATER_GROUPS, MAGIC, PIECES, SIZES, later_bin, model_bin, tokenizer_bin
from .random_models import load

Array = NDArray[np.float32]
MODELS = Path(__file__).parents[1] / ".." / "shared" / "models"


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
    assert isinstance(tokenizer, SentencePiece)
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


# --- What the engine computes ---

BASE = Config(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=48, seq_len=40)


def weights_for(config: Config, tied: bool) -> dict[str, Array]:
    """Random weights by their names in GGUF."""
    random = np.random.default_rng(5)
    shapes = expected_shapes(replace(config, tied=tied))
    return {
        name: (random.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32) for name, shape in shapes.items()
    }


def write_bin(path: Path, version: int, config: Config, weights: dict[str, Array], group: int = 0) -> dict[str, Array]:
    """Writes a model as llama2.c's export.py would, and returns the weights that the file stands for."""
    tied = "output.weight" not in weights
    sizes = [config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads, config.vocab_size]
    if version == 0:
        groups = [*GROUPS, ("output", 1, ())]
        data = struct.pack("<7i", *sizes[:5], config.vocab_size * (1 if tied else -1), config.seq_len)
    else:
        groups = [*LATER_GROUPS, ("output", 1, ())]
        data = struct.pack("<Ii7iB", MAGIC, version, *sizes, config.seq_len, tied)
        data = (data + (struct.pack("<i", group) if version == 2 else b"")).ljust(256, b"\0")
    stored = dict(weights)
    for name, layers, _ in groups:
        if name == "rope":
            data += bytes(4 * config.seq_len * config.head_size)
            continue
        for layer in range(config.n_layers if layers > 1 else 1):
            full_name = f"blk.{layer}.{name}.weight" if layers > 1 else f"{name}.weight"
            weight = weights.get(full_name)
            if weight is None:
                continue
            if version == 2 and weight.ndim == 2:
                flat = weight.reshape(-1, group)
                scales = (np.abs(flat).max(1) / 127).astype("<f4")
                numbers = np.rint(flat / scales[:, None]).astype(np.int8)
                data += numbers.tobytes() + scales.tobytes()
                stored[full_name] = (numbers.astype(np.float32) * scales[:, None]).reshape(weight.shape)
            else:
                data += weight.astype("<f4").tobytes()
    path.write_bytes(data)
    return stored


def logits_of(model: Path, tokenizer: Path, config: Config) -> Array:
    """Those after each token of a text as long as the context."""
    if model.suffix == ".gguf":
        engine, _ = load(model)
    else:
        with FileSource(model) as source, FileSource(tokenizer) as vocabulary:
            engine = Engine(WasmtimeHost(), read_llama2c(source, vocabulary), source)
    tokens = [token % config.vocab_size for token in range(0, 7 * config.seq_len, 7)]
    return np.array([engine.forward(token).to_array() for token in tokens], np.float32)


def reference_logits(config: Config, weights: dict[str, Array]) -> Array:
    """The same, by torch."""
    model = Llama(replace(config, tied="output.weight" not in weights))
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    tokens = [token % config.vocab_size for token in range(0, 7 * config.seq_len, 7)]
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens]))[0].numpy()


def some_tokenizer(path: Path, size: int) -> Path:
    path.write_bytes(tokenizer_bin([b"<unk>", b"<s>", b"</s>", *(f"w{n}".encode() for n in range(size - 3))]))
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_float_versions_are_computed_as_torch_does(version: int, tied: bool, tmp_path: Path) -> None:
    weights = weights_for(BASE, tied)
    write_bin(tmp_path / "model.bin", version, BASE, weights)
    tokenizer = some_tokenizer(tmp_path / "tokenizer.bin", BASE.vocab_size)
    ours = logits_of(tmp_path / "model.bin", tokenizer, BASE)
    assert np.abs(ours - reference_logits(BASE, weights)).max() < 5e-5


# The group of 64 is that of stories42M, whose rows of 1376 are 21 groups and a half; 48 and 160 cross the rows' ends at
# other places; the engine has 8-bit layouts for groups that are multiples of 32, and takes the others as F32.
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("group", "sizes"),
    [
        (32, {}),
        (64, {}),
        (64, {"dim": 128, "hidden_dim": 1376, "n_heads": 2}),
        (96, {"dim": 96, "hidden_dim": 64}),
        (16, {}),
        (48, {"dim": 96, "hidden_dim": 64}),
        (1, {}),
        (10, {"dim": 20, "hidden_dim": 50, "n_heads": 2}),
        (160, {"dim": 160, "hidden_dim": 32}),
    ],
)
def test_int8_in_groups_of_any_size(group: int, sizes: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    config = replace(BASE, **sizes)
    stored = write_bin(tmp_path / "model.bin", 2, config, weights_for(config, tied), group)
    tokenizer = some_tokenizer(tmp_path / "tokenizer.bin", config.vocab_size)
    ours = logits_of(tmp_path / "model.bin", tokenizer, config)
    error = np.abs(ours - reference_logits(config, stored))
    if group % 32:
        assert error.max() < 5e-5  # the very weights
    else:
        assert error.mean() < 0.03  # activations are rounded to 8 bits, too
        assert error.max() < 0.3


def test_int8_in_groups_that_are_halved_is_the_same_model(tmp_path: Path) -> None:
    """Two groups of 32 with one scale are a group of 64: same layout, same bits."""
    tokenizer = some_tokenizer(tmp_path / "tokenizer.bin", BASE.vocab_size)
    config = replace(BASE, hidden_dim=96)
    write_bin(tmp_path / "64.bin", 2, config, weights_for(config, True), 64)
    data = (tmp_path / "64.bin").read_bytes()
    halved = data[:37] + struct.pack("<i", 32) + data[41:256]
    with FileSource(tmp_path / "64.bin") as source, FileSource(tokenizer) as vocabulary:
        tensors = read_llama2c(source, vocabulary).tensors.values()
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        halved += data[tensor.offset : tensor.offset + tensor.size]
        scales = np.frombuffer(data[tensor.scales : tensor.scales + tensor.scales_size], "<f4")
        halved += scales.repeat(2).tobytes()
    (tmp_path / "32.bin").write_bytes(halved)
    ours = [logits_of(tmp_path / name, tokenizer, config).tobytes() for name in ("32.bin", "64.bin")]
    assert ours[0] == ours[1]


@pytest.mark.parametrize(("version", "group"), [(0, 0), (1, 0), (2, 64), (2, 16)])
def test_as_gguf_it_is_the_same_model_to_the_bit(version: int, group: int, tmp_path: Path) -> None:
    write_bin(tmp_path / "small.bin", version, BASE, weights_for(BASE, False), group)
    tokenizer = some_tokenizer(tmp_path / "tokenizer.bin", BASE.vocab_size)
    convert_llama2c(tmp_path / "small.bin", tokenizer, tmp_path / "small.gguf")
    with FileSource(tmp_path / "small.gguf") as source:
        model = read_gguf(source)
    assert (model.name, model.config) == ("small", replace(BASE, norm_eps=float(np.float32(1e-5)), tied=False))
    assert model.tokenizer.encode("w1 w2")[0] == 1
    ours = [logits_of(tmp_path / name, tokenizer, BASE).tobytes() for name in ("small.bin", "small.gguf")]
    assert ours[0] == ours[1]


@pytest.mark.parametrize(
    ("group", "at", "data", "message"),
    [
        (64, 100, b"\x80", "-128"),
        *(
            (group, 64 * 48 + 4, b"\0\0" + upper, "not a finite number")  # the second scale: infinite, or NaN
            for group in (64, 16)
            for upper in (b"\x80\x7f", b"\xc0\x7f")
        ),
    ],
)
def test_a_damaged_weight_names_its_tensor(group: int, at: int, data: bytes, message: str, tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "model.bin", some_tokenizer(tmp_path / "tokenizer.bin", BASE.vocab_size)
    write_bin(path, 2, BASE, weights_for(BASE, True), group)
    with FileSource(path) as source, FileSource(tokenizer) as vocabulary:
        at += read_llama2c(source, vocabulary).tensors["token_embd.weight"].offset
    content = path.read_bytes()
    path.write_bytes(content[:at] + data + content[at + len(data) :])
    with pytest.raises(ModelFileError, match=message) as caught:
        logits_of(path, tokenizer, BASE)
    assert caught.value.field == "token_embd.weight"


# --- What is wrong ---


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
        ("format", "not a llama2.c model but a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\n"),
        ("format", "llama2.c's tokenizer.bin, which goes with a model", tokenizer_bin()),
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
        ("tokenizer", "not a tokenizer.bin but a file of 0 bytes", b""),
        ("tokenizer", "exactly the 7 tokens", tokenizer_bin([b"a"] * 6)),
        ("tokenizer", "exactly the 7 tokens", tokenizer_bin() + bytes(1 << 20)),
        ("tokenizer", "but a file that begins with zeros", bytes(1 << 20)),
        ("tokenizer", "but a tokenizer of SentencePiece's", b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2"),
        ("tokenizer", "but a JSON text", b'{"version": "1.0", "truncation": null}'),
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
