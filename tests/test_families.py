"""Every family of architectures.py against transformers: the same logits, the same tokens, the same bits in any cut."""

from __future__ import annotations

import copy
import io
import math
import re
import struct
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fabella.architectures import FAMILIES, FUSED
from fabella.config import Config
from fabella.engine import Engine
from fabella.errors import FabellaError, ModelFileError
from fabella.gguf import read_gguf, write_gguf
from fabella.hosts import WasmtimeHost
from fabella.sampler import likeliest
from fabella.sources import BytesSource, FileSource
from train.load import load_gguf

from . import families
from .random_models import load, write_random_model
from .test_engine import bits

TOKENS = 48
GREEDY = 120


def logits_of(model: Any, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    with torch.no_grad():
        values: np.ndarray[Any, np.dtype[np.float32]] = model(torch.tensor([tokens])).logits[0].numpy()
    return values


def some_tokens() -> list[int]:
    return np.random.default_rng(2).integers(3, families.VOCABULARY, TOKENS).tolist()


def test_every_family_is_tried() -> None:
    assert {families.family_of(make()) for make in families.MODELS.values()} == set(FAMILIES)


def compare(model: Any, path: Path) -> None:
    tokens = some_tokens()
    expected = logits_of(model, tokens)
    engine, _ = load(path)
    one_by_one = []
    for position, token in enumerate(tokens):
        logits = engine.forward(token)
        one_by_one.append(bits(logits))
        assert np.abs(np.asarray(logits.to_array()) - expected[position]).max() < 1e-4
    for cut in (TOKENS, 33, 7):
        engine.rewind(0)
        for start, end in pairwise([*range(0, TOKENS, cut), TOKENS]):
            assert bits(engine.prefill(tokens[start:end])) == one_by_one[end - 1]

    for _ in range(GREEDY):
        tokens.append(likeliest(engine.logits))
        engine.forward(tokens[-1])
    theirs = logits_of(model, tokens)
    assert tokens[TOKENS:] == theirs.argmax(axis=1)[TOKENS - 1 : -1].tolist()


@pytest.mark.parametrize("name", families.MODELS)
def test_agrees_with_transformers_and_prefill_with_decode(name: str, tmp_path: Path) -> None:
    model = families.make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(model, families.write(model, tmp_path / "model.gguf"))


def test_layers_that_are_run_twice(tmp_path: Path) -> None:
    """As in MobileLLM-LS: transformers is given a model with each layer twice in a row."""
    model = families.make("llama")
    path = families.write(model, tmp_path / "model.gguf", **{"fabella.block_repeats": 2})
    twice = copy.deepcopy(model)
    twice.model.layers = torch.nn.ModuleList(copy.deepcopy(layer) for layer in model.model.layers for _ in range(2))
    for number, layer in enumerate(twice.model.layers):
        layer.self_attn.layer_idx = number
    twice.config.num_hidden_layers *= 2
    compare(twice, path)


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    names = ("llama with biases", "llama 3.1", "qwen2", "qwen3", "gemma3", "phi3", "phi3 long", "olmo2")
    return {name: families.write(families.make(name), folder / f"{name}.gguf") for name in names}


Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def changed(path: Path, metadata: dict[str, Any], change: Callable[[Tensors], object]) -> bytes:
    """A model file with other metadata (None: without the key) and other tensors."""
    file = path.read_bytes()
    with FileSource(path) as source:
        model = read_gguf(source)
    # The parts of a fused matrix are told apart already; they lie where the whole one lies.
    tensors: Tensors = {t.name: (t.type, t.shape, file[t.offset : t.offset + t.size]) for t in model.tensors.values()}
    change(tensors)
    pairs = {key: value for key, value in (model.metadata | metadata).items() if value is not None}
    out = io.BytesIO()
    write_gguf(out, pairs, [(name, *rest) for name, rest in tensors.items()])
    return out.getvalue()


def reshape(tensors: Tensors, name: str, shape: tuple[int, ...]) -> None:
    type, _, data = tensors[name]
    size = 4 * math.prod(shape)
    tensors[name] = (type, shape, (data * (size // len(data) + 1))[:size])


def nothing(tensors: Tensors) -> None:
    """Leave the tensors as they are."""


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("gemma3", "gemma3.attention.sliding_window", -8, "from 0"),
        ("gemma3", "gemma3.rope.freq_base_swa", -1.0, "must be from"),
        ("gemma3", "gemma3.rope.freq_base_swa", "10000", "kind float"),
        ("gemma3", "gemma3.attention.head_count_kv", [2] * 6 + [1], "not the same in all layers"),
        ("phi3", "phi3.rope.dimension_count", 3, "even"),
        ("qwen2", "qwen2.expert_count", 8, "mixture-of-experts"),
        ("qwen2", "general.architecture", "qwen2moe", "is 'qwen2moe'; only llama, smollm3"),
    ],
)
def test_metadata_that_does_not_fit_its_family(
    files: dict[str, Path], name: str, key: str, value: Any, message: str
) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        read_gguf(BytesSource(changed(files[name], {key: value}, nothing)))
    assert caught.value.field == key


def test_the_first_refusal_is_the_one_that_matters(files: dict[str, Path]) -> None:
    """Architecture and tokenizer before the numbers, and those before the tensors."""
    wrong = {"general.architecture": "mamba", "tokenizer.ggml.model": "t5", "qwen2.block_count": 0}
    for field in wrong:
        with pytest.raises(ModelFileError) as caught:
            read_gguf(BytesSource(changed(files["qwen2"], wrong, dict.clear)))
        assert caught.value.field == field
        wrong = {key: value for key, value in wrong.items() if key != field}


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("qwen2", "blk.1.attn_q.bias", "missing"),
        ("qwen3", "blk.0.attn_q_norm.weight", "missing"),
        ("gemma3", "blk.6.post_ffw_norm.weight", "missing"),
        ("olmo2", "blk.0.post_attention_norm.weight", "missing"),
        ("phi3 long", "rope_factors_long.weight", "missing"),
        ("qwen2", "blk.0.attn_k.bias", "has shape"),
        ("qwen3", "blk.0.attn_k_norm.weight", "has shape"),
        ("olmo2", "blk.0.attn_q_norm.weight", "has shape"),
        ("llama with biases", "blk.0.ffn_up.bias", "has shape"),
        ("llama 3.1", "rope_freqs.weight", r"F32 numbers of shape \(8,\)"),
    ],
)
def test_tensors_that_are_missing_or_misshapen(files: dict[str, Path], name: str, tensor: str, message: str) -> None:
    def change(tensors: Tensors) -> None:
        if message == "missing":
            del tensors[tensor]
        else:
            reshape(tensors, tensor, (7,))

    with pytest.raises(ModelFileError, match=message) as caught:
        read_gguf(BytesSource(changed(files[name], {}, change)))
    assert caught.value.field == tensor


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("qwen2", "blk.0.attn_norm.weight", "blk.0.attn_q_norm.weight", "not part of a qwen2 model"),
        ("olmo2", "blk.0.post_attention_norm.weight", "blk.0.attn_norm.weight", "not part of a olmo2 model"),
        ("llama with biases", "blk.0.ffn_up.bias", "blk.0.ffn_norm.bias", "norms that have a bias"),
    ],
)
def test_tensors_of_another_family(files: dict[str, Path], name: str, old: str, new: str, message: str) -> None:
    def change(tensors: Tensors) -> None:
        tensors[new] = tensors.pop(old)

    with pytest.raises(ModelFileError, match=message) as caught:
        read_gguf(BytesSource(changed(files[name], {}, change)))
    assert caught.value.field == new


def test_heads_of_another_size_than_the_matrices(files: dict[str, Path]) -> None:
    sizes = {"qwen3.attention.key_length": None, "qwen3.attention.value_length": None}
    with pytest.raises(ModelFileError, match="has shape") as caught:
        read_gguf(BytesSource(changed(files["qwen3"], sizes, nothing)))
    assert caught.value.field == "blk.0.attn_q.weight"


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [("attn_qkv", 129, "64 + 32 + 32"), ("ffn_up", 191, "96 + 96")],
)
def test_a_fused_matrix_with_other_rows_than_its_parts(
    files: dict[str, Path], name: str, rows: int, message: str
) -> None:
    def change(tensors: Tensors) -> None:
        for part in FUSED[name]:
            data = tensors.pop(f"blk.0.{part}.weight")
        tensors[f"blk.0.{name}.weight"] = data
        reshape(tensors, f"blk.0.{name}.weight", (rows, 64))

    with pytest.raises(ModelFileError, match=re.escape(message)) as caught:
        read_gguf(BytesSource(changed(files["phi3"], {}, change)))
    assert caught.value.field == f"blk.0.{name}.weight"


def test_a_part_beside_the_fused_matrix_that_holds_it(files: dict[str, Path]) -> None:
    def change(tensors: Tensors) -> None:
        reshape(tensors, "blk.0.attn_q.weight", (128, 64))
        tensors["blk.0.attn_qkv.weight"] = tensors.pop("blk.0.attn_q.weight")

    with pytest.raises(ModelFileError, match="twice, as a part of blk") as caught:
        read_gguf(BytesSource(changed(files["phi3"], {}, change)))
    assert caught.value.field == "blk.0.attn_k.weight"


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e-12])
def test_divisors_that_make_no_angles(files: dict[str, Path], value: float, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        type, shape, data = tensors["rope_freqs.weight"]
        tensors["rope_freqs.weight"] = (type, shape, struct.pack("<f", value) + data[4:])

    path = tmp_path / "model.gguf"
    path.write_bytes(changed(files["llama 3.1"], {}, change))
    with pytest.raises(ModelFileError, match=r"above zero|too large") as caught:
        load(path)
    assert caught.value.field == "rope_freqs.weight"


def test_whole_numbers_where_others_are_usual(files: dict[str, Path], tmp_path: Path) -> None:
    """Some converters write 10000 as a whole number."""
    path = files["llama 3.1"]
    numbers: dict[str, Any] = {
        "llama.rope.freq_base": 500000,
        "llama.rope.scaling.factor": 2,
        "llama.rope.scaling.type": "yarn",
    }
    engines = []
    for name in ("whole", "float"):
        values = {
            key: float(value) if isinstance(value, int) and name == "float" else value for key, value in numbers.items()
        }
        (tmp_path / name).write_bytes(changed(path, values, nothing))
        engines.append(load(tmp_path / name)[0])
    assert bits(engines[0].prefill([5, 6, 7])) == bits(engines[1].prefill([5, 6, 7]))


def test_yarn_without_anything_that_turns(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    yarn = {"llama.rope.freq_base": 1.0, "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}
    path.write_bytes(changed(files["llama 3.1"], yarn, nothing))
    with pytest.raises(ModelFileError, match="YaRN needs one above 1") as caught:
        load(path)
    assert caught.value.field == "llama.rope.freq_base"


def test_a_whole_number_as_magnitude(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(changed(files["phi3 long"], {"phi3.rope.scaling.attn_factor": 1}, nothing))
    load(path)


def test_what_is_no_block_is_no_fused_matrix(files: dict[str, Path]) -> None:
    def change(tensors: Tensors) -> None:
        tensors["x.blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"]

    with pytest.raises(ModelFileError, match="not part of a phi3 model") as caught:
        read_gguf(BytesSource(changed(files["phi3"], {}, change)))
    assert caught.value.field == "x.blk.0.ffn_up.weight"


def test_gemma_2_has_its_window_whatever_the_file_says(tmp_path: Path) -> None:
    path = families.write(families.make("gemma2"), tmp_path / "model.gguf")
    data = changed(path, {"gemma2.attention.sliding_window": None}, nothing)
    assert read_gguf(BytesSource(data)).config.windows == (4096, 0, 4096, 0)


@settings(max_examples=300)
@given(data=st.data())
def test_any_bytes_changed_are_refused_in_words_or_harmless(files: dict[str, Path], data: st.DataObject) -> None:
    """In the header of any family's file: no other error than ours, and what is accepted computes a token."""
    file = bytearray(files[data.draw(st.sampled_from(sorted(files)))].read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 12_000))
        file[at] = data.draw(st.integers(0, 255))
    source = BytesSource(bytes(file))
    try:
        model = read_gguf(source)
        if model.config.seq_len <= 1024:
            likeliest(Engine(WasmtimeHost(), model, source).forward(5))
    except FabellaError:
        pass


@pytest.mark.parametrize("name", ["llama with biases", "llama 3.1", "qwen2", "gemma3"])
def test_torch_knows_the_plain_llama_alone(files: dict[str, Path], name: str) -> None:
    with pytest.raises(FabellaError, match=r"\.gguf: general\.architecture: .* no plain Llama"):
        load_gguf(files[name])


def test_torch_reads_the_formats_that_it_writes(tmp_path: Path) -> None:
    config = Config(dim=256, hidden_dim=256, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=40, seq_len=64)
    with pytest.raises(FabellaError, match=r"is of type \w+: only F32, .* weights can be read in torch"):
        load_gguf(write_random_model(tmp_path / "model.gguf", config, type="blocks"))
