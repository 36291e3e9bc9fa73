"""What is chosen for a text, what is said of it beforehand, and a run that ends when it only learns by heart."""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from fabella.modelfile import Config
from train import loop, plan
from train import train as training
from train.checkpoint import Checkpoint
from train.load import load_run
from train.plan import SIZES, choose_course, choose_model, choose_size, choose_vocabulary, count_parameters, duration
from train.text import Text
from train.tokenizer import load_tokenizer

torch.set_num_threads(1)
TINY = "--dim 32 --hidden-dim 32 --layers 1 --heads 2 --kv-heads 1 --context 64 --batch-tokens 256 --no-compile".split()


def text_of(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(content, encoding="utf-8")
    return path


def options(*arguments: str) -> argparse.Namespace:
    return training.parse_arguments(["text.txt", "--out", "out", *arguments])


def random_words(count: int, letters: str = "abcdefghijklmnopqrstuvwxyz", seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(count)]


# --- What is chosen ---


def test_the_sizes_are_what_they_are_called() -> None:
    for name, size in SIZES.items():
        c = Config(size.dim, size.hidden_dim, size.layers, size.heads, size.kv_heads, size.vocab_size, size.context)
        called = float(name[:-1]) * {"K": 1e3, "M": 1e6}[name[-1]]
        assert count_parameters(c) == pytest.approx(called, rel=0.15), name
        assert not size.dim % 32, "or Q8_0 cannot store it"
        assert not size.hidden_dim % 32


def fake_text(n_bytes: int, characters: int = 60) -> Text:
    text = Text.__new__(Text)
    text.n_bytes = text.n_characters = n_bytes
    text.characters = Counter({chr(0x4E00 + i): n_bytes // (i + 1) + 1 for i in range(characters)})
    return text


def test_the_vocabulary_grows_with_the_text_and_with_its_script() -> None:
    assert choose_vocabulary(fake_text(2_000), 4096) == 512
    assert choose_vocabulary(fake_text(310_000), 4096) == 1024
    assert choose_vocabulary(fake_text(33_000_000), 4096) == 4096
    assert choose_vocabulary(fake_text(33_000_000), 2048) == 2048
    assert choose_vocabulary(fake_text(300_000, characters=3000), 2048) > 2048


def test_the_size_grows_with_the_text() -> None:
    assert [choose_size(count, fast=False) for count in (10**4, 10**6, 10**7, 10**9)] == ["260K", "1M", "4M", "4M"]
    assert choose_size(10**9, fast=True) == "15M"


def test_what_is_given_is_not_chosen() -> None:
    given = options("--size", "15M", "--dim", "192", "--dropout", "0", "--tokens", "5000", "--vocab-size", "512")
    choose_model(given, fake_text(10**6), fast=False)
    choose_course(given, 100_000)
    assert (given.dim, given.layers, given.vocab_size, given.dropout, given.tokens) == (192, 6, 512, 0, 5000)
    open_ = options()
    choose_model(open_, fake_text(300_000), fast=False)
    choose_course(open_, 90_000)
    assert (open_.size, open_.dim, open_.vocab_size, open_.tokens, open_.dropout) == ("1M", 128, 1024, 720_000, 0.1)
    assert 1 <= plan.measure_every(open_, 90_000, 4_500) <= 25


def test_the_story_model_of_the_card_is_what_its_command_says() -> None:
    """web/models/README.md has the command; another default must not change what it gives."""
    card = (Path(__file__).resolve().parent.parent / "web/models/README.md").read_text()
    (command,) = re.findall(r"python -m train\.train train\.txt\.xz (.*\\\n.*)", card)
    given = training.parse_arguments(["train.txt.xz", *command.replace("\\\n", " ").split()])
    choose_model(given, fake_text(33_000_000), fast=False)
    choose_course(given, 8_500_000)
    chosen = (given.dim, given.hidden_dim, given.layers, given.heads, given.kv_heads, given.context, given.vocab_size)
    assert chosen == (256, 576, 4, 8, 4, 512, 4096)
    assert (given.batch_tokens, given.learning_rate, given.dropout, given.tokens) == (4096, 4e-3, 0, 14_500_000)


def test_times_are_told_as_exactly_as_they_are_known() -> None:
    assert [duration(s) for s in (0.2, 50, 600, 9000, 10**6)] == [
        "1 seconds",
        "50 seconds",
        "10 minutes",
        "2.5 hours",
        "11.6 days",
    ]


@pytest.mark.parametrize(
    ("measured", "ends"),
    [
        ([], False),
        ([(100 * n, 2 - 0.01 * n) for n in range(1, 50)], False),  # it gets better
        ([(100, 1.5), (200, 1.4), *((100 * n, 1.6) for n in range(3, 12))], True),
        ([(100, 1.5), (200, 1.4), *((100 * n, 1.405) for n in range(3, 12))], False),  # may be chance
        ([(100, 1.5), (1000, 1.4), *((1000 + n, 1.6) for n in range(1, 9))], False),  # not for long
    ],
)
def test_when_a_run_learns_by_heart(measured: list[tuple[int, float]], ends: bool) -> None:
    assert loop.learns_by_heart(measured, round_tokens=100) == ends


# --- Runs ---


def test_the_plan_is_said_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ""

    def fit(*_: object, **__: object) -> None:
        nonlocal said
        said = capsys.readouterr().out

    monkeypatch.setattr(training, "fit", fit)
    path = text_of(tmp_path, "\n<|endoftext|>\n".join(" ".join(random_words(60, seed=n)) for n in range(40)))
    training.train(training.parse_arguments([str(path), "--out", str(tmp_path / "run"), "--rounds", "200", *TINY]))
    for words in (r"39 documents, [\d,]+ characters to learn from; held out: [\d,]+", r"Vocabulary: +\d+ tokens"):
        assert re.search(words, said)
    for words in (r"Model: +[\d,]+ parameters", "its file will have 0.0 MB", "Time: .* tokens a second", "rounds"):
        assert re.search(words, said, re.S)
    assert re.search(r"learn the text by\s+heart; suggested: --rounds 8", said)


def test_a_run_that_only_learns_by_heart_ends_and_its_best_model_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = text_of(tmp_path, "\n<|endoftext|>\n".join(" ".join(random_words(12, seed=n)) for n in range(30)))
    more = "--rounds 10000 --dim 64 --hidden-dim 128 --eval-every 4 --learning-rate 0.01 --vocab-size 300".split()
    arguments = [str(path), "--out", str(tmp_path / "run"), *TINY, *more]
    run = training.train(training.parse_arguments(arguments))
    said = capsys.readouterr().out
    assert "the model only learns the text by heart any more" in said
    assert "python -m train.export" in said
    assert run.tokens < 200 * run.round_tokens
    best, _ = load_run(tmp_path / "run")
    assert best.tokens < run.tokens / 2
    assert best.bits_per_byte == min(value for _, value in run.measured)
    assert not best.optimizers
    training.train(training.parse_arguments([*arguments, "--resume"]))
    assert "learns the text by heart" in capsys.readouterr().out
    assert Checkpoint.load(tmp_path / "run").step == run.step


def test_minutes_are_turned_into_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "tokens_a_second", lambda *_: 1000.0)
    path = text_of(tmp_path, "\n<|endoftext|>\n".join(" ".join(random_words(30, seed=n)) for n in range(40)))
    arguments = [str(path), "--out", str(tmp_path / "run"), "--minutes", "0.05", *TINY]
    run = training.train(training.parse_arguments(arguments))
    assert 3000 <= run.tokens < 3300
    again = training.train(training.parse_arguments([*arguments, "--resume"]))  # as much again
    assert 6000 <= again.tokens < 6600


SCRIPTS = {
    "Chinese": "".join(chr(0x4E00 + i) for i in range(2500)),
    "Arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "Thai": "กขคงจฉชซญดตถทธนบปผฝพฟมยรลวสหอฮะาิีึืุูเแโใไ",
    "emoji": "🦊🐉👍🏽❤️🔥🌈🌍🐲☃🎈🎁🚂",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_any_script_trains_and_is_told(script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = "" if script == "Chinese" else " "
    documents = [space.join(random_words(20, SCRIPTS[script], seed=n)) for n in range(60)]
    path = text_of(tmp_path, "\n<|endoftext|>\n".join(documents))
    training.train(training.parse_arguments([str(path), "--out", str(tmp_path / "run"), "--rounds", "1", *TINY]))
    tokenizer = load_tokenizer(tmp_path / "run/tokenizer.model")
    for document in documents:
        assert tokenizer.decode(tokenizer.encode(document)) == document
    said = capsys.readouterr()
    assert "Done" in said.out
    assert re.search(rf"bits/byte: [{re.escape(SCRIPTS[script])}]", said.err)


@pytest.mark.parametrize("content", ["A tale.", "x" * 3000, "One. Two."])
def test_of_a_text_too_small_it_is_said_what_to_do(content: str, tmp_path: Path) -> None:
    path = text_of(tmp_path, content)
    with pytest.raises(ValueError, match=r"too few, or too uniform.*fine-tune|is too short to train on") as error:
        training.train(training.parse_arguments([str(path), "--out", str(tmp_path / "run"), "--no-compile"]))
    assert ".cc" not in str(error.value)
    assert not (tmp_path / "run").exists()
