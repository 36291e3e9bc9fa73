"""What the page is told of a model file before it is loaded, and of files that cannot run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from fabella import page
from fabella.engine import Engine
from fabella.errors import FabellaError, ModelFileError
from fabella.gguf import copy_gguf, read_gguf
from fabella.hosts import WasmtimeHost
from fabella.llama2c import read_llama2c
from fabella.memory import cache_size, model_size, weights_size
from fabella.modelfile import Config, ModelFile, Tensor
from fabella.sources import BytesSource
from fabella.summary import summary

from .llama2c_files import later_bin, model_bin, tokenizer_bin
from .random_models import load, write_random_model
from .test_chat import TEMPLATE

CONFIG = Config(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=80)
WIDE = Config(dim=512, hidden_dim=768, n_layers=2, n_heads=8, n_kv_heads=2, vocab_size=301, seq_len=600)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG, type="Q8_0", template=TEMPLATE)


@pytest.fixture(autouse=True)
def outside_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's side of the driver under wasmtime; its files are bytes."""
    monkeypatch.setattr(page, "BrowserHost", lambda _exports: WasmtimeHost())
    monkeypatch.setattr(page, "BrowserFile", BytesSource)


def described(data: bytes, tokenizer: bytes | None = None) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(page.describe(data, tokenizer))
    return said


def test_a_model_is_described_by_its_header(model: Path) -> None:
    target = BytesIO()
    words = {"fabella.title": "Foxes", "fabella.beginnings": ["A fox"], "fabella.settings": '{"top_k": 5}'}
    copy_gguf(BytesSource(model.read_bytes()), target, words | {"general.license": "MIT"})
    said = described(target.getvalue())
    settings = said.pop("settings")
    assert (settings["top_k"], settings["temperature"], settings["length"]) == (5, 0.8, 0)
    memory = said.pop("memory")
    assert memory > said["bytes"]
    assert said == {
        "name": "random 0",
        "title": "Foxes",
        "about": None,
        "beginnings": ["A fox"],
        "language": None,
        "family": "Llama",
        "quantization": "Q8_0",
        "bytes": len(target.getvalue()),
        "parameters": 300 * 64 + 64 + 2 * (2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96),
        "context": 80,
        "vocab_size": 300,
        "layers": 2,
        "dim": 64,
        "license": "MIT",
        "chats": True,
        "memory_per_token": 2 * 2 * 4 * 32,
    }


def test_the_page_s_model_is_described_alike(model: Path) -> None:
    assert page.Page(None, model.read_bytes()).info() == page.describe(model.read_bytes())


def test_the_weights_are_not_read(model: Path) -> None:
    """They may be anything."""
    data = bytearray(model.read_bytes())
    for tensor in read_gguf(BytesSource(bytes(data))).tensors.values():
        data[tensor.offset : tensor.offset + tensor.size] = b"\xff" * tensor.size
    assert described(bytes(data)) == described(model.read_bytes())
    with pytest.raises(ModelFileError):
        page.Page(None, bytes(data))


@pytest.mark.parametrize(("type", "name"), [("F32", "F32"), ("blocks", "mixed"), ("Q4_1", "Q4_1")])
def test_the_number_format_of_most_weights_is_the_model_s(tmp_path: Path, type: str, name: str) -> None:
    assert described(write_random_model(tmp_path / "m.gguf", WIDE, type=type).read_bytes())["quantization"] == name


@pytest.mark.parametrize("data", [model_bin(), model_bin(tied=False), later_bin(1), later_bin(2)])
def test_llama2c_s_files_are_taken_with_their_tokenizer(data: bytes) -> None:
    said = described(data, tokenizer_bin())
    assert (said["name"], said["family"], said["vocab_size"], said["context"]) == ("", "Llama", 7, 5)
    opened = page.Page(None, data, tokenizer_bin())
    settings = {"temperature": 0, "top_p": 0.9, "top_k": 0, "seed": "1", "length": 4}
    opened.tell(json.dumps({"prompt": "b", "settings": settings}))
    while not (turn := json.loads(opened.advance(1000)))["end"]:
        pass
    assert turn["end"] in ("length", "end")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model: (b"", None), "a file of 0 bytes"),
        (lambda model: (b"<!doctype html><title>404</title>", None), "a web page"),
        (lambda model: (model[:5000], None), "incomplete"),
        (lambda model: (model_bin(), None), "a llama2.c model needs the second file as well: its tokenizer.bin"),
        (lambda model: (model_bin(), b"Once upon a time"), "tokenizer: "),
        (lambda model: (model, tokenizer_bin()), "a GGUF file has its own; leave the second file out"),
        (lambda model: (tokenizer_bin(), None), "tokenizer.bin"),
    ],
)
def test_a_file_that_cannot_run_says_why(
    model: Path, make: Callable[[bytes], tuple[bytes, bytes | None]], words: str
) -> None:
    with pytest.raises(FabellaError) as caught:
        page.describe(*make(model.read_bytes()))
    assert words in str(caught.value)


def test_a_model_too_large_for_webassembly_says_so(model: Path) -> None:
    read = read_gguf(BytesSource(model.read_bytes()))
    large = Tensor("token_embd.weight", "F32", (1 << 18, 1 << 12), 0, 1 << 32)
    with pytest.raises(ModelFileError, match=r"its weights take 4\.3 GB of memory, but there are 4\.3 GB at most"):
        summary(replace(read, tensors={**read.tensors, "token_embd.weight": large}), 1 << 32)


def engine_of(data: bytes) -> tuple[Engine, ModelFile]:
    """A llama2.c model's."""
    source = BytesSource(data)
    model = read_llama2c(source, BytesSource(tokenizer_bin()))
    return Engine(WasmtimeHost(), model, source), model


def test_the_memory_of_weights_is_what_the_engine_takes(tmp_path: Path) -> None:
    """To the byte, in every number format."""
    for type in ("blocks", "mixed", "F16"):
        for config in (WIDE, replace(WIDE, hidden_dim=1280, tied=False)):
            engine, model = load(write_random_model(tmp_path / "model.gguf", config, type=type))
            assert weights_size(model.tensors.values()) == engine.weights_size, type
    for data in (model_bin(), later_bin(2)):
        engine, model = engine_of(data)
        assert weights_size(model.tensors.values()) == engine.weights_size


def test_memory_is_about_what_the_engine_has_taken_in_the_end(tmp_path: Path) -> None:
    """WebAssembly's memory grows in steps, and is 16 MiB at the beginning."""
    config = replace(WIDE, n_layers=6, seq_len=2048)
    engine, model = load(write_random_model(tmp_path / "model.gguf", config))
    engine.prefill([1] * config.seq_len)
    host = engine.host
    assert isinstance(host, WasmtimeHost)
    expected = model_size(config, model.tensors)
    assert expected > 2 * 16 << 20
    assert expected < host.memory_size < 1.25 * expected
    assert engine.cache_size == cache_size(config)
