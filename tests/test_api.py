"""The door for programs: ``fabella.load()`` and what it gives, in CPython and in a Pyodide that is none of ours."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import jinja2
import numpy as np
import pytest
import torch

import fabella
from builder.tools import ROOT
from fabella.errors import (
    ConversationError,
    EngineError,
    FabellaError,
    PromptError,
    SettingsError,
    TemplateError,
)
from fabella.generate import generate
from fabella.model import Options
from fabella.modelfile import Config
from fabella.sampler import Settings
from train.data import read_documents
from train.evaluate import bits_per_byte, hold_out
from train.load import load_model

from .llama2c_files import model_bin, tokenizer_bin
from .random_models import load, write_random_model
from .test_build import make_wheel
from .test_chat import TEMPLATE

CONFIG = Config(dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, seq_len=128)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG, template=TEMPLATE)


@pytest.fixture(scope="module")
def model(path: Path) -> fabella.Model:
    return fabella.load(path)


# ---- Loading ----


@pytest.mark.parametrize(
    "form", [str, Path, Path.read_bytes, lambda path: bytearray(path.read_bytes()), lambda path: path.open("rb")]
)
def test_a_model_is_loaded_from_its_path_its_bytes_or_an_open_file(path: Path, form: Callable[[Path], Any]) -> None:
    with fabella.load(form(path)) as model:
        assert (model.name, model.context) == ("random 0", 128)
        assert "".join(model.tell("w1", seed=5, length=20)).startswith("w1")
    assert repr(model) == "<fabella.Model 'random 0', 400 tokens, context 128>"


def test_a_llama2c_model_is_loaded_with_its_tokenizer(tmp_path: Path) -> None:
    file, tokenizer = tmp_path / "model.bin", tmp_path / "tokenizer.bin"
    file.write_bytes(model_bin())
    tokenizer.write_bytes(tokenizer_bin())
    told = [
        "".join(fabella.load(*form).tell(seed=1, length=9))
        for form in ((file, tokenizer), (file.read_bytes(), io.BytesIO(tokenizer.read_bytes())))
    ]
    assert told[0] == told[1]
    with pytest.raises(FabellaError, match="needs the tokenizer as well"):
        fabella.load(file)


@pytest.mark.parametrize(
    ("file", "error", "said"),
    [
        ("nowhere.gguf", OSError, "No such file"),
        (b"", FabellaError, "the model: magic"),
        (b"GGUF", FabellaError, "the model: "),
        (io.StringIO("GGUF"), FabellaError, "in mode 'rb'"),
        (7, FabellaError, "a model is a path, bytes or an open file, not 7"),
        (None, FabellaError, "a model is a path"),
    ],
)
def test_what_is_no_model(file: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        fabella.load(file)


def test_models_do_not_know_of_each_other(path: Path) -> None:
    with fabella.load(path) as one, fabella.load(path) as other:
        expected = "".join(one.tell("w1", seed=3, length=30))
        stories = [one.tell("w1", seed=3, length=30), other.tell("w1", seed=3, length=30)]
        assert list(map("".join, zip(*stories, strict=True)))
        assert "".join(one.tell("w1", seed=3, length=30)) == expected


def test_a_closed_model(path: Path) -> None:
    with fabella.load(path) as model:
        story, chat = model.tell("w1", seed=1, length=50), model.chat()
        next(story)
    for use in (
        lambda: list(story),
        lambda: list(model.tell("w1")),
        lambda: list(chat.say("w1")),
        lambda: model.logits("w1"),
        lambda: model.perplexity("w1"),
    ):
        with pytest.raises(EngineError, match=r"closed|another story"):
            use()


# ---- Telling ----


def test_a_story_is_that_of_the_loop(model: fabella.Model, path: Path) -> None:
    engine, file = load(path)
    settings = Settings(temperature=0.8, top_p=0.95, top_k=40, seed=7, min_p=0.01, repetition_penalty=1.1)
    expected = "".join(step.text for step in generate(engine, file.tokenizer, "w1 w2", settings, 60))
    pieces = list(
        model.tell(
            "w1 w2", temperature=0.8, top_p=0.95, top_k=40, seed=7, min_p=0.01, repetition_penalty=1.1, length=60
        )
    )
    assert "".join(pieces) == expected
    assert all(pieces)
    assert expected.startswith("w1 w2")


def test_without_a_seed_each_story_is_another(model: fabella.Model) -> None:
    assert len({"".join(model.tell("w1", length=30)) for _ in range(3)}) == 3
    assert len({"".join(model.tell("w1", length=30, seed=0)) for _ in range(3)}) == 3


def test_the_options_are_the_samplers_settings() -> None:
    assert Options.__annotations__.keys() == {field.name for field in fields(Settings)} | {
        "length",
        "stop",
        "constraint",
        "loops",
    }


def test_stops_constraints_and_going_on_beyond_the_context(model: fabella.Model) -> None:
    text = "".join(model.tell("w1", seed=2, length=60))
    for stop in (text[20:22], [text[20:22], "never"]):
        assert "".join(model.tell("w1", seed=2, length=60, stop=stop)) == text[: text.index(text[20:22], 2)]
    digits = "".join(model.tell("w1", seed=2, length=60, constraint=lambda text, added: (added or "1").isdigit()))
    assert digits.removeprefix("w1").isdigit()
    ends = {1: -100.0, 2: -100.0}
    assert model.tokenize("".join(model.tell("w1", seed=2, shift=True, length=300, logit_bias=ends)))
    with pytest.raises(TypeError, match="temprature"):
        model.tell("w1", temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match="top_p"):
        model.tell("w1", top_p=2)
    with pytest.raises(PromptError, match="shorten it"):
        model.tell("w1 " * 200)
    with pytest.raises(SettingsError, match="stop"):
        model.tell("w1", stop=7)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="there is no token 400"):
        model.tell("w1", logit_bias={400: 1.0})
    for use in (model.tell, model.tokenize, model.logits, model.perplexity):
        with pytest.raises(PromptError, match="must be a text"):
            use(cast(Any, 7))


# ---- Chatting ----


def test_a_chat(model: fabella.Model) -> None:
    chat = model.chat(system="w7")
    options: Options = {"seed": 4, "length": 8, "logit_bias": {1: -100.0, 2: -100.0}}
    answer = "".join(chat.say("w1", **options))
    assert chat.turns[1].text == answer
    assert chat.turns[1].end == "length"
    assert "".join(chat.regenerate(**options)) == answer
    more = "".join(chat.go_on(**options))
    assert chat.turns[1].text == answer + more
    other = "".join(chat.edit(0, "w2", **options))
    assert chat.messages == [
        {"role": "system", "content": "w7"},
        {"role": "user", "content": "w2"},
        {"role": "assistant", "content": other},
    ]
    again = model.chat()
    again.messages = chat.messages
    assert "".join(again.say("w3", **options)) == "".join(chat.say("w3", **options))
    assert chat.undo() == "w3"
    assert chat.dropped == 0
    with pytest.raises(ConversationError):
        chat.messages = [{"role": "assistant", "content": "w1"}]
    steps = chat.say("w4", **options)
    next(steps)
    del steps
    assert len(chat.turns) == 4


def test_a_model_that_does_not_chat(tmp_path: Path) -> None:
    model = fabella.load(write_random_model(tmp_path / "model.gguf", CONFIG))
    with pytest.raises(TemplateError, match="no chat template"):
        model.chat()


# ---- Measuring ----


def test_tokens_and_logits(model: fabella.Model, path: Path) -> None:
    engine, file = load(path)
    tokens = model.tokenize("w1 w2")
    assert tokens == file.tokenizer.encode("w1 w2")
    assert model.detokenize(tokens) == "w1 w2"
    logits = model.logits("w1 w2")
    assert logits.tobytes() == engine.prefill(tokens).to_array().tobytes()
    assert np.asarray(logits).shape == (400,)
    assert len(model.logits("")) == 400
    with pytest.raises(PromptError, match="context is 128"):
        model.logits("w1 " * 100)


def test_the_perplexity_is_that_of_train_evaluate(path: Path, model: fabella.Model, tmp_path: Path) -> None:
    text = "w1 w20 é 日 w3\nw4 w100 w7."
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    torch_model, tokenizer = load_model(path)
    with torch.no_grad():
        expected = bits_per_byte(torch_model, hold_out(read_documents(tmp_path / "text.txt"), tokenizer, 128))
    assert model.perplexity(text) == pytest.approx(expected, rel=1e-5)


def test_the_perplexity_of_a_text_longer_than_the_context(model: fabella.Model) -> None:
    """Each token counts once, however often the context has to be emptied by half."""
    short, long = model.perplexity("w1 w2 w3 " * 5), model.perplexity("w1 w2 w3 " * 100)
    assert math.isfinite(long)
    assert long == pytest.approx(short, rel=0.5)
    with pytest.raises(PromptError, match="no text to measure"):
        model.perplexity("")


# ---- Types ----

PROGRAM = """
import fabella
from fabella.constraint import json_schema

with fabella.load("model.gguf") as model:
    pieces: list[str] = list(model.tell("Once upon a time", temperature=0.8, seed=1, length=200, stop=["The end"]))
    chat = model.chat(system="Be brief.")
    for piece in chat.say("Hi", temperature=0, length=100, constraint=json_schema({"type": "string"})):
        print(piece.upper())
    first: float = model.logits("text")[0]
    count: int = len(model.tokenize("text")) + chat.dropped + len(chat.turns[0].text)
    bits: float = model.perplexity("text")
"""


def test_a_program_that_uses_it_is_typed_strictly(tmp_path: Path) -> None:
    def check(program: str) -> str:
        (tmp_path / "program.py").write_text(program)
        command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "program.py"]
        environment = {**os.environ, "MYPYPATH": str(ROOT / "py")}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        ).stdout

    assert "no issues found" in check(PROGRAM)
    assert 'expected "float"' in check(PROGRAM.replace("temperature=0.8", 'temperature="0.8"'))
    assert "temprature" in check(PROGRAM.replace("temperature=0.8", "temprature=0.8"))


# ---- In a Pyodide that is none of ours ----

IN_PYODIDE = """
import json, sys

# The last micropip on PyPI is older than this Pyodide: what it looks for has other names now, or is for packages in C.
import pyodide.code, pyodide.ffi, pyodide_js
pyodide.ffi.IN_BROWSER = True
pyodide_js._api.loadDynlibsFromPackage = pyodide.code.run_js("async () => {}")
pyodide_js._api.repodata_packages = pyodide.ffi.to_js({})
pyodide_js._api.repodata_info = pyodide.ffi.to_js({"platform": "emscripten"})
import micropip

await micropip.install("emfs:WHEEL")
import fabella

assert sys.platform == "emscripten" and not fabella.__file__.startswith("/folder")
with open("/folder1/random.gguf", "rb") as file:
    forms = ["/folder1/random.gguf", file.read()]
told = ["".join(fabella.load(form).tell("w1 w2", seed=5, length=60)) for form in forms]
with fabella.load(forms[0]) as model:
    chat = model.chat(system="w7")
    answers = ["".join(chat.say(text, seed=4, length=8)) for text in ("w1", "w2")]
    print(json.dumps({"told": told, "answers": answers, "bits": model.perplexity("w1 w2")}))
"""


def test_a_bare_pyodide_installs_it_by_micropip_and_tells_the_same(
    path: Path, model: fabella.Model, tmp_path: Path
) -> None:
    """Pyodide itself brings micropip, Jinja and MarkupSafe from its own collection; here they come from a folder."""
    wheel = make_wheel(tmp_path)
    packages = Path(jinja2.__file__).parent.parent
    for name in ("micropip", "packaging", "jinja2", "markupsafe"):
        (found,) = (p for p in packages.iterdir() if p.name.lower() == name)
        shutil.copytree(found, tmp_path / "packages" / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for about in packages.glob(f"{name}-*.dist-info"):
            shutil.copytree(about, tmp_path / "packages" / about.name)
    program = tmp_path / "program.py"
    program.write_text(IN_PYODIDE.replace("WHEEL", f"/folder2/{wheel.name}"))
    command = ["node", "tests/in_pyodide.mjs", program, tmp_path / "packages", path.parent, wheel.parent]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    story = "".join(model.tell("w1 w2", seed=5, length=60))
    chat = model.chat(system="w7")
    answers = ["".join(chat.say(text, seed=4, length=8)) for text in ("w1", "w2")]
    assert found == {"told": [story, story], "answers": answers, "bits": model.perplexity("w1 w2")}
