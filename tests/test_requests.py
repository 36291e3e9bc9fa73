"""The page's side of the driver: what the worker asks of it, in text, and what it answers. No browser is needed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fabella import page
from fabella.errors import FabellaError, PromptError, SettingsError
from fabella.gguf import Typed, read_gguf, write_gguf
from fabella.hosts import WasmtimeHost
from fabella.modelfile import Config
from fabella.sources import BytesSource, FileSource

from .random_models import write_random_model

CONFIG = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, seq_len=80)
SETTINGS: dict[str, Any] = {"temperature": 0, "top_p": 0.9, "top_k": 0, "seed": "1", "length": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG)


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page with a model file, under wasmtime."""
    monkeypatch.setattr(page, "BrowserHost", lambda _exports: WasmtimeHost())
    monkeypatch.setattr(page, "BrowserFile", BytesSource)
    return lambda path: page.Page(None, path.read_bytes())


def ask(prompt: Any = "Hello", **settings: Any) -> str:
    return json.dumps({"prompt": prompt, "settings": SETTINGS | settings})


def told(opened: page.Page) -> str:
    text = ""
    while True:
        turn = json.loads(opened.advance(1000))
        text += "".join(step["text"] for step in turn["steps"])
        if turn["end"]:
            return text


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        *((name, {name: math.nan}) for name in SETTINGS),
        *((name, {name: None}) for name in SETTINGS),
        *((name, {name: []}) for name in SETTINGS),
        ("length", {"length": -1}),
        ("length", {"length": 1.5}),
        ("length", {"length": True}),
        ("seed", {"seed": ""}),
        ("seed", {"seed": "one"}),
        ("seed", {"seed": "-1"}),
        ("seed", {"seed": " 1"}),
        ("seed", {"seed": "1_0"}),
        ("seed", {"seed": "١"}),
        ("seed", {"seed": "9" * 20}),
        ("seed", {"seed": "9" * 10_000}),
        ("seed", {"seed": 1}),
        ("logit_bias", {"logit_bias": {}}),
        ("min_p", {"min_p": 2}),
        ("min_p", {"min_p": None}),
        ("penalty_window", {"penalty_window": 0}),
        ("stop", {"stop": "a"}),
        ("stop", {"stop": [""]}),
        ("stop", {"stop": [1]}),
        ("stop", {"stop": 1}),
    ],
)
def test_settings_that_are_none(open_page: Any, model: Path, field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        open_page(model).tell(ask(**settings))
    assert caught.value.field == field


@pytest.mark.parametrize("field", SETTINGS)
def test_settings_that_are_missing(open_page: Any, model: Path, field: str) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != field}
    with pytest.raises(SettingsError, match=f"{field}: is missing"):
        open_page(model).tell(json.dumps({"prompt": "", "settings": settings}))


def tokens(opened: page.Page, **request: Any) -> list[int]:
    """Those that the model tells, chosen or drawn."""
    opened.tell(json.dumps({"prompt": "w3", "settings": SETTINGS | {"temperature": 1}} | request))
    found: list[int] = []
    while True:
        turn = json.loads(opened.advance(1000))
        found += [step["token"] for step in turn["steps"] if not step["from_prompt"]]
        if turn["end"]:
            return found


def test_forced_tokens_are_taken_in_their_places(open_page: Any, model: Path) -> None:
    opened = open_page(model)
    drawn = tokens(opened)
    chosen = tokens(opened, forced=[None, None, 301, None, None, 302])
    assert chosen[:2] == drawn[:2]
    assert (chosen[2], chosen[5]) == (301, 302)
    assert tokens(opened, told=chosen[:4], forced=[None, 302])[-len(chosen) + 4 :] == chosen[4:]
    assert tokens(opened, forced=[None, None, drawn[2]]) == drawn, "what is drawn anyway changes nothing"
    assert tokens(opened, forced=[]) == tokens(opened, forced=[None]) == drawn


@pytest.mark.parametrize("forced", [["a"], [True], [1.5], [[1]], [-1], [400], [None, 400], [10**12]])
def test_forced_tokens_that_are_none(open_page: Any, model: Path, forced: Any) -> None:
    with pytest.raises(PromptError, match="must be tokens of the model's, from 0 to 399"):
        tokens(open_page(model), forced=forced)
    for nothing in (1, "ab", {"0": 3}):
        with pytest.raises(PromptError, match="what was forced must be a list of tokens"):
            tokens(open_page(model), forced=nothing)


def test_prompts(open_page: Any, model: Path) -> None:
    opened = open_page(model)
    for prompt in ("", " ", "\n", "\0", "\ufffd", "\ud800", "\u202e"):
        opened.tell(ask(prompt))
        assert told(opened).startswith(prompt.replace("\ud800", "\ufffd"))
    for nothing in (None, 1, ["a"]):
        with pytest.raises(PromptError, match="there is no prompt"):
            opened.tell(ask(nothing))
    with pytest.raises(PromptError, match="at least 204000 tokens long, but the length asked for is 20"):
        opened.tell(ask("once upon a time " * 60_000))


@pytest.mark.parametrize(
    ("about", "shown"),
    [
        ({}, ("random 0", None)),
        ({"general.name": "", "general.license": ""}, ("", None)),
        ({"general.license": "MIT"}, ("random 0", "MIT")),
        ({"general.license": Typed("f32", math.nan), "general.name": Typed("f64", math.inf)}, ("", None)),
        ({"general.license": ["a", "b"], "general.name": 7}, ("", None)),
        ({"general.license": "L" * (1 << 20), "general.name": "N" * 1000}, ("N" * 99 + "…", None)),
        ({"general.license": "\u202e\n</script>\0"}, ("random 0", "</script>")),
    ],
)
def test_what_is_said_of_a_model(
    open_page: Any, model: Path, tmp_path: Path, about: dict[str, Any], shown: tuple[str, str | None]
) -> None:
    with FileSource(model) as source:
        read = read_gguf(source)
        tensors = [(t.name, t.type, t.shape, source.read(t.offset, t.size)) for t in read.tensors.values()]
    write_gguf(tmp_path / "model.gguf", read.metadata | about, tensors)

    def no_json(constant: str) -> None:
        raise AssertionError(constant)

    info = json.loads(open_page(tmp_path / "model.gguf").info(), parse_constant=no_json)
    assert (info["name"], info["license"]) == shown
    assert (info["layers"], info["context"], info["vocab_size"]) == (2, 80, 400)


def test_no_model(open_page: Any, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("<!doctype html>")
    with pytest.raises(FabellaError, match="web page"):
        open_page(tmp_path / "model.gguf")
