"""What a model says of itself: written by train.export, read from the file, and what is refused."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from fabella.card import Card, metadata_of, read_card
from fabella.errors import ModelFileError
from fabella.gguf import Typed, copy_gguf, describe, read_gguf, write_gguf
from fabella.modelfile import Config
from fabella.sampler import Settings
from fabella.sources import BytesSource
from train.beginnings import own_beginnings
from train.export import main as export
from train.load import load_model

from .random_models import tokenizer, write_random_model

CONFIG = Config(dim=64, hidden_dim=96, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=80)
WORDS = {
    "fabella.title": "Tales of the fox",
    "fabella.about": "It tells tales of foxes. It is small.",
    "fabella.beginnings": ["Once upon a time", "A fox\nand a hen"],
    "fabella.language": "en-GB",
    "fabella.settings": '{"temperature": 0.7, "repetition_penalty": 1.1, "length": 60}',
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG)


def with_words(model: Path, words: dict[str, Any]) -> bytes:
    target = BytesIO()
    copy_gguf(BytesSource(model.read_bytes()), target, words)
    return target.getvalue()


def test_a_model_s_words_are_read_from_its_file(model: Path) -> None:
    card = read_gguf(BytesSource(with_words(model, WORDS))).card
    assert (card.title, card.about, card.language) == ("Tales of the fox", WORDS["fabella.about"], "en-GB")
    assert card.beginnings == ("Once upon a time", "A fox\nand a hen")
    assert card.settings["temperature"] == 0.7
    assert card.settings["length"] == 60
    assert card.settings["top_p"] == 0.9


def test_a_model_that_says_nothing_has_the_defaults(model: Path) -> None:
    card = read_gguf(BytesSource(model.read_bytes())).card
    assert card == Card()
    settings = card.settings
    assert settings.pop("length") == 0
    assert Settings(**settings) == Settings(temperature=0.8, top_p=0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("fabella.title", 7, "must be of kind str, not int"),
        ("fabella.title", "x" * 101, "a text of 101 bytes is longer than the 100"),
        ("fabella.about", "ü" * 501, "a text of 1002 bytes is longer than the 1000"),
        ("fabella.about", "x" * 900_000, "is longer than the 1000"),
        ("fabella.beginnings", "Once upon a time", "must be of kind list, not str"),
        ("fabella.beginnings", ["x"] * 13, "13 is more than the 12"),
        ("fabella.beginnings", ["x" * 1001], "is longer than the 1000"),
        ("fabella.beginnings", ["x", " "], "must be texts, none of them empty"),
        ("fabella.beginnings", [1, 2], "must be texts"),
        ("fabella.language", "English, please", "must be a language's tag, such as en or pt-BR, not 'English, please'"),
        ("fabella.language", 'en"><script>', "must be a language's tag"),
        ("fabella.settings", "[1]", "must be a JSON object"),
        ("fabella.settings", "{", "must be a JSON object"),
        ("fabella.settings", "[" * 1000, "must be a JSON object"),
        ("fabella.settings", '{"temperature": -1}', "temperature: is -1, but must be 0 or more"),
        ("fabella.settings", '{"temperature": NaN}', "must be a finite number"),
        ("fabella.settings", '{"temperature": 1%s}' % ("0" * 400), "must be a finite number, not 1000"),
        ("fabella.settings", '{"top_p": -1%s}' % ("0" * 400), "must be a finite number, not -1000"),
        ("fabella.settings", '{"top_k": 1.5}', "top_k: must be a whole number"),
        ("fabella.settings", '{"seed": 5}', "there is no setting 'seed'"),
        ("fabella.settings", '{"length": -1}', "length must be a whole number"),
        ("fabella.settings", 3.5, "must be of kind str"),
    ],
)
def test_words_that_cannot_be_are_refused_by_their_key(model: Path, key: str, value: Any, words: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        read_gguf(BytesSource(with_words(model, {key: value})))
    assert caught.value.field == key
    assert words in caught.value.problem
    with pytest.raises(ModelFileError):  # and by whoever writes them
        read_card({key: value})


def test_a_title_is_one_line_of_what_can_be_seen(model: Path) -> None:
    card = read_gguf(BytesSource(with_words(model, {"fabella.title": "a\n\u202eb\x07 c"}))).card
    assert card.title == "a b c"


def test_a_large_file_of_words_leaves_room_for_ours(model: Path) -> None:
    """What fills the room for other metadata does not push these out."""
    filling = {f"general.note.{number}": "x" * 200_000 for number in range(6)}
    assert read_gguf(BytesSource(with_words(model, filling | WORDS))).card.title == "Tales of the fox"


def test_a_copy_differs_in_what_is_changed_alone(tmp_path: Path, model: Path) -> None:
    """Every other pair keeps its type and place, tensors their bytes, whatever the alignment of their beginning."""
    metadata = describe(CONFIG, tokenizer(CONFIG.vocab_size), {"general.name": "one", "fabella.title": "old"})
    metadata |= {"some.u8": Typed("u8", 7), "some.f64": Typed("f64", [0.1, 0.2]), "some.text": "x" * 2_000_000}
    metadata["some.text"] = metadata["some.text"][: 1 << 20]
    with_all = tmp_path / "all.gguf"
    source = read_gguf(BytesSource(model.read_bytes()))
    weights = model.read_bytes()
    tensors = [(t.name, t.type, t.shape, weights[t.offset : t.offset + t.size]) for t in source.tensors.values()]
    write_gguf(with_all, metadata, tensors)
    expected = BytesIO()
    write_gguf(expected, {**metadata, "fabella.title": "new", "fabella.language": "de"}, tensors)
    assert with_words(with_all, {"fabella.title": "new", "fabella.language": "de"}) == expected.getvalue()
    assert with_words(with_all, {}) == with_all.read_bytes()
    del metadata["fabella.title"]
    without = BytesIO()
    write_gguf(without, metadata, tensors)
    assert with_words(with_all, {"fabella.title": None}) == without.getvalue()


def test_export_gives_a_file_other_words(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "new.gguf"

    def run(*arguments: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["export", str(model), "-o", str(output), *arguments])
        assert export() == status
        return capsys.readouterr().err

    settings = ["--settings", json.dumps({"min_p": 0.05})]
    run(
        "--title",
        "Foxes",
        "--about",
        "Of foxes.",
        "--beginning",
        "A",
        "--beginning",
        "B",
        "--language",
        "en",
        *settings,
    )
    assert output.read_bytes() == with_words(
        model, metadata_of("Foxes", "Of foxes.", ["A", "B"], "en", '{"min_p": 0.05}')
    )
    output.unlink()
    assert "fabella.title: a text of 200 bytes" in run("--title", "x" * 200, status=1)
    assert "leave --format out" in run("--format", "F16", status=1)
    assert not output.exists()


def test_a_run_s_model_names_beginnings_of_its_own(model: Path) -> None:
    llama, tokenizer = load_model(model)
    found = own_beginnings(llama, tokenizer)
    assert 1 <= len(found) == len(set(found)) <= 4
    assert found == own_beginnings(llama, tokenizer), "they are seeded"
    for beginning in found:
        assert beginning.isprintable()
        assert 1 <= len(beginning.split()) <= 8
    assert read_card(metadata_of(beginnings=found)).beginnings == tuple(found)
    for parameter in llama.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    assert own_beginnings(llama, tokenizer) == []
