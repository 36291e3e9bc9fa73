"""Adapters beside a model: what their files may hold, what they compute, and how they are put on and taken off."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fabella
from fabella import page
from fabella.adapter import ALPHA, KIND, TYPE, Adapter, describe_adapter, read_adapter
from fabella.cli import main as command
from fabella.engine import Engine
from fabella.errors import EngineError, FabellaError, ModelFileError
from fabella.gguf import read_gguf, write_gguf
from fabella.hosts import WasmtimeHost
from fabella.modelfile import BytesSource, Config, FileSource
from train.quantize import read_weights

from . import families
from .llama_cpp import LlamaCpp
from .random_models import load, write_as_f32, write_random_adapter, write_random_model
from .test_finetune import TEMPLATE

CONFIG = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=128)
TOKENS = [1, *range(40, 70)]
FIRST = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_random_model(folder / "model.gguf", CONFIG, type="Q8_0", template=TEMPLATE)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(tmp_path_factory.mktemp("adapter") / "adapter.gguf", CONFIG, ranks=(8, 3))


def put(engine: Engine, path: Path) -> Adapter:
    """Give an engine an adapter."""
    with FileSource(path) as source:
        adapter = read_adapter(source)
        engine.adapt(adapter, source)
    return adapter


def merged(model: Path, adapter: Path, path: Path) -> Path:
    """Write a model with its adapter merged into it, as F32."""
    with FileSource(model) as source, FileSource(adapter) as other:
        read, beside = read_gguf(source), read_adapter(other)
        tensors = []
        for name, tensor in read.tensors.items():
            weights = read_weights(source, tensor)
            if pair := beside.pairs.get(name):
                a, b = read_weights(other, pair.a), read_weights(other, pair.b)
                weights = (weights + beside.scale(pair) * b.astype(np.float64) @ a).astype(np.float32)
            tensors.append((name, "F32", tensor.shape, weights.tobytes()))
        write_gguf(path, read.metadata, tensors)
    return path


# --- What it computes ---


@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_a_model_with_an_adapter_is_the_merged_one(stored: str, tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "model.gguf", CONFIG)
    adapter = write_random_adapter(tmp_path / "adapter.gguf", CONFIG, ranks=(8, 1, 30), type=stored)
    engine, _ = load(model)
    plain = np.array(engine.prefill(TOKENS).to_array())
    put(engine, adapter)
    reference, _ = load(merged(model, adapter, tmp_path / "merged.gguf"))
    logits = np.array(engine.prefill(TOKENS).to_array())
    assert np.abs(logits - plain).max() > 0.5, "it is heard"
    assert np.abs(logits - np.array(reference.prefill(TOKENS).to_array())).max() < 2e-5
    for _ in range(50):
        ((token, _),) = engine.logits.shortlist(1)
        assert [token] == [id for id, _ in reference.logits.shortlist(1)]
        engine.forward(token)
        reference.forward(token)


@pytest.mark.parametrize("name", ["llama odd", "llama with biases", "qwen3", "gemma3", "phi3 partial", "olmo3"])
def test_every_family_may_have_one(name: str, tmp_path: Path) -> None:
    """Also those whose rows lie in another order in the file."""
    model = families.write(families.make(name), tmp_path / "model.gguf")
    engine, file = load(model)
    adapter = write_random_adapter(tmp_path / "adapter.gguf", file.config, ranks=(4,))
    plain = np.array(engine.prefill(TOKENS).to_array())
    put(engine, adapter)
    reference, _ = load(merged(model, adapter, tmp_path / "merged.gguf"))
    logits = np.array(engine.prefill(TOKENS).to_array())
    assert np.abs(logits - plain).max() > 0.05
    assert np.abs(logits - np.array(reference.prefill(TOKENS).to_array())).max() < 1e-4


def test_it_is_put_on_and_taken_off_without_a_trace(model: Path, adapter: Path, tmp_path: Path) -> None:
    engine, _ = load(model)

    def bits() -> bytes:
        assert engine.position == 0, "what was computed before is not gone on with"
        with pytest.raises(EngineError, match="position"):
            engine.rewind(1)
        return engine.prefill(TOKENS).to_array().tobytes()

    plain = bits()
    put(engine, adapter)
    adapted = bits()
    assert adapted != plain
    engine.use_adapter(False)
    assert bits() == plain
    engine.use_adapter(True)
    assert bits() == adapted
    other = write_random_adapter(tmp_path / "other.gguf", CONFIG, seed=1)
    put(engine, other)
    assert bits() not in (plain, adapted)
    put(engine, adapter)
    assert bits() == adapted
    engine.drop_adapter()
    assert bits() == plain
    engine.use_adapter(True)
    assert bits() == plain, "there is none"
    assert engine.host.function("forward")(engine._model, engine._tokens, 1, 5) == 0
    engine.use_adapter(False)
    assert engine.host.function("forward")(engine._model, engine._tokens, 1, 5) == -7, "C has forgotten them, too"


def test_its_memory_is_given_back(model: Path, adapter: Path) -> None:
    engine, _ = load(model)
    sizes = []
    for _ in range(30):
        put(engine, adapter)
        sizes.append(engine.host.memory_size)  # type: ignore[attr-defined]
        engine.drop_adapter()
    assert sizes[-1] == sizes[2]
    put(engine, adapter)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.use_adapter(True)


def test_an_alpha_of_zero_means_a_scale_of_one(adapter: Path) -> None:
    with FileSource(adapter) as source:
        read = read_adapter(source)
    pair = read.pairs[FIRST]
    assert read.scale(pair) == 16 / 8
    assert replace(read, alpha=0.0).scale(pair) == 1


# --- Files ---

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def written(path: Path, metadata: dict[str, Any], tensors: Tensors) -> BytesSource:
    write_gguf(path, metadata, [(name, *rest) for name, rest in tensors.items()])
    return BytesSource(path.read_bytes())


def parts() -> tuple[dict[str, Any], Tensors]:
    """A small adapter that is one."""
    zeros = bytes(4 * 8 * 64)
    tensors: Tensors = {f"{FIRST}.lora_a": ("F32", (8, 64), zeros), f"{FIRST}.lora_b": ("F32", (64, 8), zeros)}
    return describe_adapter("llama", 16.0, {"general.name": "A name"}), tensors


def test_what_a_file_says(tmp_path: Path) -> None:
    metadata, tensors = parts()
    read = read_adapter(written(tmp_path / "a.gguf", {**metadata, "fabella.about": "Speaks\nso."}, tensors))
    assert (read.name, read.about, read.architecture, read.alpha) == ("A name", "Speaks so.", "llama", 16)
    assert {name: (pair.rank, read.scale(pair)) for name, pair in read.pairs.items()} == {FIRST: (8, 2.0)}
    assert read.size == 2 * 4 * 8 * 64
    read.check_fits(CONFIG)


def change(key: str, value: Any) -> Callable[[dict[str, Any], Tensors], None]:
    return lambda metadata, _: metadata.update({key: value})


def drop(key: str) -> Callable[[dict[str, Any], Tensors], None]:
    def change(metadata: dict[str, Any], tensors: Tensors) -> None:
        metadata.pop(key, None)
        tensors.pop(key, None)

    return change


def tensor(name: str, type: str, *shape: int) -> Callable[[dict[str, Any], Tensors], None]:
    sizes = {"F32": 4, "F16": 2, "Q8_0": 34 / 32}
    return lambda _, tensors: tensors.update({name: (type, shape, bytes(int(math.prod(shape) * sizes[type])))})


@pytest.mark.parametrize(
    ("field", "problem", "make"),
    [
        (TYPE, "this is no adapter", change(TYPE, "model")),
        (TYPE, "this is no adapter", drop(TYPE)),
        (KIND, "only lora", change(KIND, "vera")),
        (KIND, "missing", drop(KIND)),
        (ALPHA, "missing", drop(ALPHA)),
        (ALPHA, "must be from 0 to", change(ALPHA, -1.0)),
        (ALPHA, "must be from 0 to", change(ALPHA, math.nan)),
        (ALPHA, "must be of kind float", change(ALPHA, "16")),
        ("adapter.alora.invocation_tokens", "not supported", change("adapter.alora.invocation_tokens", [1, 2])),
        ("general.architecture", "missing", drop("general.architecture")),
        (f"{FIRST}.lora_b", "missing", drop(f"{FIRST}.lora_b")),
        (f"{FIRST}.lora_a", "missing", drop(f"{FIRST}.lora_a")),
        (f"{FIRST}.lora_a", "type Q8_0", tensor(f"{FIRST}.lora_a", "Q8_0", 8, 64)),
        (f"{FIRST}.lora_a", "must be a matrix", tensor(f"{FIRST}.lora_a", "F32", 64)),
        (f"{FIRST}.lora_b", "8 rows", tensor(f"{FIRST}.lora_b", "F32", 64, 4)),
        (f"{FIRST}.lora_a", "a rank of 1025", tensor(f"{FIRST}.lora_a", "F32", 1025, 64)),
        (f"{FIRST}.lora_c", "no part of a lora adapter", tensor(f"{FIRST}.lora_c", "F32", 8, 64)),
        ("output_norm.weight", "no part of a lora adapter", tensor("output_norm.weight", "F32", 64)),
    ],
)
def test_a_file_that_is_no_adapter_is_refused(
    field: str, problem: str, make: Callable[[dict[str, Any], Tensors], None], tmp_path: Path
) -> None:
    metadata, tensors = parts()
    make(metadata, tensors)
    if "1025" in problem:
        tensor(f"{FIRST}.lora_b", "F32", 64, 1025)(metadata, tensors)
    with pytest.raises(ModelFileError, match=problem) as error:
        read_adapter(written(tmp_path / "a.gguf", metadata, tensors))
    assert error.value.field == field


def test_an_empty_or_cut_file_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="the adapter is empty"):
        read_adapter(written(tmp_path / "a.gguf", parts()[0], {}))
    data = adapter.read_bytes()
    for size in (3, 100, 2000, len(data) - 1000):
        with pytest.raises(ModelFileError):
            read_adapter(BytesSource(data[:size]))
    with pytest.raises(ModelFileError, match="belong to nothing"):
        read_adapter(BytesSource(data + bytes(100)))


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("general.architecture", replace(CONFIG, family="qwen3")),
        ("blk.0.ffn_gate.weight", replace(CONFIG, hidden_dim=96)),
        (FIRST, replace(CONFIG, dim=128)),
        ("blk.1.attn_q.weight", replace(CONFIG, n_layers=1)),
    ],
)
def test_an_adapter_for_another_model_is_refused(field: str, config: Config, adapter: Path) -> None:
    with FileSource(adapter) as source:
        read = read_adapter(source)
    with pytest.raises(ModelFileError) as error:
        read.check_fits(config)
    assert error.value.field == field
    assert "another" in error.value.problem or "llama" in error.value.problem


def test_a_broken_number_is_named_and_the_model_stays_as_it_was(model: Path, tmp_path: Path) -> None:
    engine, _ = load(model)
    plain = engine.prefill(TOKENS).to_array().tobytes()
    metadata, tensors = parts()
    tensors[f"{FIRST}.lora_b"] = ("F32", (64, 8), struct.pack("<f", math.inf) + bytes(4 * 8 * 64 - 4))
    source = written(tmp_path / "a.gguf", metadata, tensors)
    with pytest.raises(ModelFileError, match="finite") as error:
        engine.adapt(read_adapter(source), source)
    assert error.value.field == f"{FIRST}.lora_b"
    assert engine.prefill(TOKENS).to_array().tobytes() == plain


def test_thousands_of_matrices_are_not_each_compared_with_all_others(tmp_path: Path) -> None:
    metadata, _ = parts()
    zeros: Tensors = {f"blk.{i}.x.lora_{part}": ("F16", (1, 1), bytes(2)) for i in range(20_000) for part in "ab"}
    assert len(read_adapter(written(tmp_path / "a.gguf", metadata, zeros)).pairs) == 20_000  # or it takes minutes


# --- The doors ---


def test_a_program_puts_one_on_and_off(model: Path, adapter: Path) -> None:
    def told(loaded: fabella.Model) -> str:
        return "".join(loaded.tell("w1 w2", temperature=0, length=30))

    with fabella.load(model) as plain, fabella.load(model, adapter=adapter) as adapted:
        without, with_it = told(plain), told(adapted)
        assert without != with_it
        adapted.use_adapter(False)
        assert told(adapted) == without
        adapted.use_adapter(True)
        assert told(adapted) == with_it
        story = plain.tell("w1 w2", temperature=0, length=30)
        next(story)
        plain.adapt(adapter.read_bytes())
        with pytest.raises(EngineError, match="this one cannot go on"):
            list(story)
        assert told(plain) == with_it


@pytest.mark.parametrize("broken", ["number", "memory"])
def test_the_page_keeps_the_adapter_that_it_has_on_or_off(
    model: Path, adapter: Path, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "BrowserHost", lambda _exports: WasmtimeHost())
    monkeypatch.setattr(page, "BrowserFile", BytesSource)
    opened = page.Page(None, model.read_bytes())

    def logits() -> bytes:
        return opened._engine.prefill(TOKENS).to_array().tobytes()

    load_part = Engine._load_part

    def no_room(engine: Engine, *part: Any) -> None:
        monkeypatch.setattr(Engine, "_load_part", load_part)
        raise EngineError("no room")

    metadata, tensors = parts()
    number = math.inf if broken == "number" else 0.0
    tensors[f"{FIRST}.lora_b"] = ("F32", (64, 8), struct.pack("<f", number) + bytes(4 * 8 * 64 - 4))
    worse = written(tmp_path / "worse.gguf", metadata, tensors)
    plain = logits()
    opened.adapt(adapter.read_bytes())
    adapted = logits()
    for on, expected in ((True, adapted), (False, plain)):
        opened.use_adapter(on)
        if broken == "memory":
            monkeypatch.setattr(Engine, "_load_part", no_room)
        with pytest.raises((ModelFileError, EngineError), match=r"finite|no room"):
            opened.adapt(worse.read(0, worse.size))
        assert logits() == expected
    opened.use_adapter(True)
    assert logits() == adapted


def test_a_conversation_goes_on_in_the_other_voice(model: Path, adapter: Path) -> None:
    how: dict[str, Any] = {"temperature": 0, "length": 12}
    with fabella.load(model) as one, fabella.load(model, adapter=adapter) as other:
        chat, reference = one.chat(), other.chat()
        list(chat.say("w1", **how))
        one.adapt(adapter)
        reference.messages = chat.messages
        assert "".join(chat.say("w2", **how)) == "".join(reference.say("w2", **how))


def test_a_file_that_does_not_fit_is_named(model: Path, adapter: Path, tmp_path: Path) -> None:
    small = write_random_model(tmp_path / "small.gguf", replace(CONFIG, hidden_dim=96))
    with pytest.raises(FabellaError, match=r"adapter\.gguf: blk\.0\.ffn_gate\.weight: .* another model"):
        fabella.load(small, adapter=adapter)
    with pytest.raises(FabellaError, match=r"model\.gguf: general\.type: .* no adapter"):
        fabella.load(model, adapter=model)
    with pytest.raises(FabellaError, match=r"adapter\.gguf: general\.type: this is an adapter"):
        fabella.load(adapter)


def test_the_command_line_takes_one(
    model: Path, adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story = [str(model), "-i", "w1 w2", "-t", "0", "-n", "30"]
    assert command([*story, "--adapter", str(adapter)]) == 0
    told = capsys.readouterr().out
    with fabella.load(model, adapter=adapter) as loaded:
        assert told == "".join(loaded.tell("w1 w2", temperature=0, length=30)) + "\n"
        answer = "".join(loaded.chat().say("w1", temperature=0, length=9))
    assert command([*story, "--adapter", str(model)]) == 1
    assert "this is no adapter" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", open_text("w1\n"))
    assert command(["chat", str(model), "--adapter", str(adapter), "-t", "0", "-n", "9"]) == 0
    assert capsys.readouterr().out == answer + "\n"


def open_text(text: str) -> Any:
    import io

    return io.TextIOWrapper(io.BytesIO(text.encode()))


# --- Against llama.cpp ---


def test_llama_cpp_computes_the_same_with_the_same_file(shipped_model: Path, tmp_path: Path) -> None:
    llama = LlamaCpp()
    model = write_as_f32(shipped_model, tmp_path / "stories-f32.gguf")
    engine, file = load(model)
    adapter = write_random_adapter(tmp_path / "adapter.gguf", file.config, ranks=(8, 2))
    plain = np.array(engine.prefill(TOKENS).to_array())
    put(engine, adapter)
    ours = np.array([engine.forward(token).to_array() for token in TOKENS])
    theirs = llama.logits(model, TOKENS, adapter)
    assert np.abs(theirs[-1] - plain).max() > 0.5
    assert np.abs(ours - theirs).max() < 1e-3
    engine.rewind(0)
    engine.prefill(TOKENS)
    for token, lead in llama.greedy(model, TOKENS, 40, adapter):
        if lead > 1e-3:
            assert engine.logits.shortlist(1)[0][0] == token
        engine.forward(token)
