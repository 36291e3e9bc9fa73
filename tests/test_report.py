"""The report: its measures by hand and by their properties, its page parsed and looked at, its command."""

from __future__ import annotations

import base64
import hashlib
import math
import random
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

import fabella
from fabella.errors import ModelFileError
from fabella.modelfile import Config
from fabella.models import open_model
from train import compare
from train import train as training
from train.beginnings import own_beginnings
from train.compare import (
    COPIED,
    MODES,
    PROMPTS,
    Candidate,
    Told,
    as_told,
    bits_of,
    candidates,
    read_prompts,
    store_as,
    stored,
    tell_stories,
)
from train.evaluate import bits_of_documents, bits_per_byte, hold_out
from train.evaluate import main as evaluate
from train.export import main as export
from train.load import load_model
from train.measures import distinct, found_in, interval, ngrams, repeated, shared, words
from train.report import plot_of, round_numbers, visible

from .random_models import write_random_model
from .texts import hostile_text

torch.set_num_threads(1)
CONFIG = Config(dim=64, hidden_dim=96, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=80)
DOCUMENTS = ["w1 w2 é w3 <b>w4</b>", "w5 " + "w6 w7 w8 w9 " * 60, "日本 w10 & w11 " * 9]
HOSTILE = "<img src=x onerror=alert(1)> \"'><script>alert(2)</script> {{ 7 * 7 }} </style> w1"


# ---- Measures ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She said, “It’s Tom's DOG!” -- 'yes' 3.5", "she said it’s tom's dog yes 3 5".split()),
        ("从前有一个girl。 ok", [*"从前有一个", "girl", "ok"]),
        ("ที่นี่", ["ที่", "นี่"]),  # a letter and the signs on it
        ("एक लड़की थी", ["एक", "लड़की", "थी"]),
        ("Straße ſ ''", ["strasse", "s"]),
        (" \n\t…!", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(hostile_text(), hostile_text())
def test_words_of_two_texts_are_those_of_both(one: str, other: str) -> None:
    assert words(f"{one}\n{other}") == words(one) + words(other)
    assert all(word and not re.search(r"\s", word) for word in words(one))


def test_measures_by_hand() -> None:
    texts = [words("a b a b a b"), words("a b c"), ["x"]]
    assert list(ngrams(texts[1], 2)) == [("a", "b"), ("b", "c")]
    # ab ba ab ba ab | ab bc: three different ones of seven; of the first four words ab ba ab: two of three.
    assert distinct(texts, 2, 100) == 3 / 7
    assert distinct(texts, 2, 4) == 2 / 3
    assert distinct(texts, 1, 9) == 3 / 9
    assert repeated(texts, 2) == 3 / 7  # of the first text ba once, ab twice
    assert shared(texts, 2, {("b", "c"), ("b", "a")}) == 3 / 7
    assert found_in("A, b! C x", 2, {("a", "b"), ("c", "d")}) == {("a", "b")}
    for nothing in (distinct([], 1, 5), distinct(texts, 1, 0), repeated([["x"]], 2), shared([], 8, set())):
        assert nothing is None


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=5), st.integers(1, 3))
def test_measures_are_shares(texts: list[list[str]], n: int) -> None:
    grams = {gram for text in texts for gram in ngrams(text, n)}
    values = [distinct(texts, n, 99), repeated(texts, n), shared(texts, n, grams), shared(texts, n, set())]
    assert (values == [None] * 4) == (not grams)
    if grams:
        assert all(value is not None and 0 <= value <= 1 for value in values)
        assert values[2:] == [1, 0]
    if len(texts) == 1 and grams:
        assert math.isclose((values[0] or 0) + (values[1] or 0), 1)


def test_an_interval_is_that_of_the_normal_distribution_where_that_holds() -> None:
    sums = np.random.default_rng(7).normal(5, 2, 400)
    found = interval(sums, np.ones(400))
    assert found
    assert found == interval(sums, np.ones(400)), "it is seeded"
    expected = [sums.mean() + sign * 1.96 * sums.std() / 20 for sign in (-1, 1)]
    assert found == pytest.approx(expected, abs=0.02)


def test_an_interval_of_numbers_that_do_not_vary_is_a_point() -> None:
    sizes = np.array([3.0, 0, 10, 7])
    assert interval(2 * sizes, sizes) == (2, 2)
    assert interval(np.array([4.0]), np.array([2.0])) is None
    assert interval(np.array([4.0, 0.0]), np.array([2.0, 0.0])) is None, "an empty document tells nothing"


# ---- Bits ----


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG)


def test_bits_of_documents_are_those_of_each_alone(model: Path) -> None:
    llama, tokenizer = load_model(model)
    text = hold_out([*DOCUMENTS, ""], tokenizer, CONFIG.seq_len, whole=True)
    assert text.n_bytes == sum(len(document.encode()) for document in DOCUMENTS)
    bits = bits_of_documents(llama, text)
    assert bits[-1] == 0
    for document, value in zip(DOCUMENTS, bits, strict=False):
        alone = hold_out([document], tokenizer, CONFIG.seq_len, whole=True)
        assert bits_of_documents(llama, alone) == pytest.approx([value], rel=1e-5)
    assert bits_per_byte(llama, text) == pytest.approx(bits.sum() / text.n_bytes)
    # Of a document that fits into the context, in one go: the sum over its tokens.
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(DOCUMENTS[0], bos=False)]])
    with torch.no_grad():
        logs = torch.log2(torch.softmax(llama(ids)[0].double(), dim=-1))
    assert bits[0] == pytest.approx(-logs[:-1].gather(1, ids[0, 1:, None]).sum().item(), rel=1e-5)


def test_the_engine_measures_the_same_where_pytorch_cannot(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [DOCUMENTS[0], "", "w3 w4 w5"]
    expected = bits_of(model, texts, "random")
    assert expected[1] == 0

    def refuse(path: Path) -> Any:
        raise ModelFileError("general.architecture", "no plain Llama")

    monkeypatch.setattr(compare, "load_model", refuse)
    assert bits_of(model, texts, "random") == pytest.approx(expected, rel=1e-4)


# ---- Models and stories ----


def test_models_have_names_of_their_own(model: Path, tmp_path: Path) -> None:
    (tmp_path / "random.gguf").write_bytes(model.read_bytes())
    names = [candidate.name for candidate in candidates([model, tmp_path / "random.gguf"], False)]
    assert names == [str(model), str(tmp_path / "random.gguf")]
    with pytest.raises(ValueError, match="given twice"):
        candidates([model, model], False)
    with pytest.raises(FileNotFoundError, match="no such model"):
        candidates([tmp_path / "none"], False)


def test_a_model_in_each_quantised_format(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = candidates([model], quantised=True)
    assert [candidate.name for candidate in found] == [
        f"random.gguf {format}" for format in ("F32", "Q8_0", "Q5_0", "Q4_0", "Q4_1", "Q6_K", "Q4_K")
    ]
    with stored(found[1]) as path, open_model(path) as (file, _):
        assert {tensor.type for tensor in file.tensors.values() if len(tensor.shape) == 2} == {"Q8_0"}
    assert not path.exists(), "it was for the comparison only"
    store_as(model, "Q8_0", tmp_path / "quantised.gguf")
    with pytest.raises(ValueError, match="quantised already"):
        candidates([tmp_path / "quantised.gguf"], quantised=True)
    odd = write_random_model(tmp_path / "odd.gguf", Config(**{**vars(CONFIG), "hidden_dim": 100}))
    assert [candidate.name for candidate in candidates([odd], quantised=True)] == ["odd.gguf F32"]
    assert "left out in Q4_0" in capsys.readouterr().err


def test_stories_are_those_of_the_engine(model: Path) -> None:
    prompts = ["w1 w2", "w3 " * 100, "w7"]
    _, settings, stories = tell_stories(model, prompts, "random")
    assert (settings.temperature, settings.top_p) == (0.8, 0.9), "the page's, as the model names none"
    assert set(stories) == set(MODES)
    with fabella.load(model) as told:
        for number in (0, 2):
            own = {"temperature": 0.8, "top_p": 0.9, "seed": number + 1, "loops": True}
            for mode, how in (("sampled", own), ("greedy", {"temperature": 0, "loops": True})):
                text = "".join(told.tell(prompts[number], **how))
                assert prompts[number] + stories[mode][number].text == text
    assert all(stories[mode][1] == Told(prompts[1], "", "unfit") for mode in MODES)


def test_prompts_are_read(tmp_path: Path) -> None:
    ours = read_prompts(PROMPTS)
    assert len(ours) == len(set(ours)) >= 20
    lines, listed, other = (tmp_path / name for name in ("p.txt", "p.yaml", "q.yaml"))
    lines.write_text("One day\n\n  Ä \nOne day\n", encoding="utf-8")
    assert read_prompts(lines) == ["One day", "Ä"]
    listed.write_text('---\n- |-\n  Two\n\n  lines "\n- Three\n')
    assert read_prompts(listed) == ['Two\n\nlines "', "Three"]
    for content, problem in (("a: 1", "list of texts"), ("- [", "not YAML"), ("- 7", "list of texts"), ("", "list")):
        other.write_text(content)
        with pytest.raises(ValueError, match=problem):
            read_prompts(other)
    lines.write_bytes(b"\n \n")
    with pytest.raises(ValueError, match="no prompt"):
        read_prompts(lines)
    lines.write_bytes(b"\xe9")
    with pytest.raises(ValueError, match="UTF-8"):
        read_prompts(lines)


def test_documents_stand_beside_stories() -> None:
    long = " ".join(f"w{number}" for number in range(1000))
    told = as_told(["too short", "one " * 16 + "two.", long, "語" * 90, "another"], 9)
    assert told[0] == Told(("one " * 16).strip(), " two.", "")
    assert told[1].prompt.split() == [f"w{number}" for number in range(16)]
    assert told[1].end == "length"
    assert len(told[1].prompt + told[1].text) == 1000
    assert (told[2].prompt, told[2].text) == ("語" * 80, "語" * 10)
    assert len(told) == 3
    assert as_told([long, long], 1) == told[1:2]


# ---- The page ----


class Parsed(HTMLParser):
    """What a browser would make of a page: its elements, balanced, and the text in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


Command = Callable[..., str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs train.evaluate; returns what it prints."""

    def run(*arguments: object, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        assert evaluate() == status
        return "".join(capsys.readouterr())

    return run


def files(folder: Path, model: Path) -> dict[str, Path]:
    """What a report is made from, with names and texts that would break into a page."""
    names = {"model": "<b>&'\".gguf", "text": "<i>.txt", "prompts": "prompts.yaml", "training": "</title>.txt"}
    paths = {key: folder / name for key, name in names.items() if "/" not in name} | {"training": folder / "<u>.txt"}
    paths["model"].write_bytes(model.read_bytes())
    paths["text"].write_text("\n<|endoftext|>\n".join([*DOCUMENTS, f"{HOSTILE} " * 20]), encoding="utf-8")
    quoted = HOSTILE.replace("'", "''")
    paths["prompts"].write_text(f"- 'w1 w2'\n- '{quoted}'\n", encoding="utf-8")
    paths["training"].write_text(DOCUMENTS[1], encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def page(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all that it can have."""
    folder = tmp_path_factory.mktemp("report")
    paths = files(folder, model)
    arguments = [paths["model"], paths["text"], "--report", folder / "report.html", "--prompts", paths["prompts"]]
    arguments += ["--training-text", paths["training"], "--judge", paths["model"], "--quantised"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        assert evaluate() == 0
    return folder / "report.html"


def test_nothing_in_a_report_can_run_or_load(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    parsed = Parsed(content)
    assert not parsed.tags & set("script img link iframe object embed form base a b i u".split())
    for tag, name, value in parsed.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("style", "src", "href", "srcset", "action"), (tag, name, value)
    (policy,) = [value for _, name, value in parsed.attributes if name == "content" and "default-src" in value]
    style = content.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in style
    assert "@import" not in style


def test_a_report_shows_what_was_measured(page: Path, model: Path) -> None:
    parsed = Parsed(page.read_text(encoding="utf-8"))
    shown = "\n".join(text.strip() for text in parsed.texts)
    for name in ("F32", "Q8_0", "Q5_0", "Q4_0", "Q4_1"):
        assert f"<b>&'\".gguf {name}" in parsed.texts
    assert HOSTILE in shown, "the prompt, letter for letter"
    assert "{{ 7 * 7 }}" in shown, "no template either"
    assert "<i>.txt itself" in parsed.texts
    _, _, stories = tell_stories(model, ["w1 w2", HOSTILE], "random")
    for mode in MODES:
        for told in stories[mode]:
            assert (visible(told.text).strip() or "–") in shown
    documents = [*DOCUMENTS, (f"{HOSTILE} " * 20).strip("\n")]
    value = bits_of(model, documents, "random").sum() / sum(len(document.encode()) for document in documents)
    assert f"{value:.3f}" in parsed.texts


def test_the_judge_counts_what_follows_the_prompt(model: Path) -> None:
    """The same stories, under the model that told them: the bits of both less those of the prompt alone."""
    comparison = compare.compare([Candidate("one", model)], ("text", DOCUMENTS), ["w1 w2", "w3"], judge=model)
    (measured,) = comparison.models
    for mode in MODES:
        for told, bits in zip(measured.stories[mode], measured.judged[mode], strict=True):
            whole, prompt = bits_of(model, [told.prompt + told.text, told.prompt], "one")
            assert bits == pytest.approx(whole - prompt, rel=1e-4)
    assert comparison.judge == "random.gguf"
    assert comparison.own_judged is not None
    assert len(comparison.own_judged) == len(comparison.own) == 2


def test_copies_are_found(model: Path, tmp_path: Path) -> None:
    training_text = tmp_path / "training.txt"
    training_text.write_text(DOCUMENTS[1], encoding="utf-8")
    comparison = compare.compare([Candidate("one", model)], ("text", DOCUMENTS), ["w1"], training_text=training_text)
    assert comparison.training_ngrams == set(ngrams(words("w6 w7 w8 w9 " * 6), COPIED))


def test_a_report_on_a_phone_and_in_the_dark(browser: Browser, page: Path) -> None:
    for scheme in ("light", "dark"):
        opened = browser.new_page(viewport={"width": 375, "height": 800})
        opened.emulate_media(color_scheme=scheme)
        complaints = complaints_of(opened)
        opened.goto(page.as_uri())
        opened.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert opened.evaluate("document.documentElement.scrollWidth") <= 375
        table = opened.get_by_role("region", name="Numbers")
        assert table.evaluate("(part) => part.scrollWidth > part.clientWidth"), "the table alone is scrolled"
        paper = opened.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert paper == {"light": "rgb(248, 242, 228)", "dark": "rgb(28, 23, 20)"}[scheme], "the style is allowed"
        assert complaints == []
        opened.close()


def complaints_of(page: Page) -> list[str]:
    """What a page will say to its console, or in a dialog."""
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    return complaints


@given(st.floats(-1e3, 1e3), st.floats(1e-4, 1e4))
def test_an_axis_has_a_few_round_numbers(low: float, width: float) -> None:
    values, digits = round_numbers(low, low + width)
    assert 2 <= len(values) <= 7
    assert all(low - 1e-6 * width <= value <= low + width * (1 + 1e-6) for value in values)
    assert len({f"{value:.{digits}f}" for value in values}) == len(values)


def test_a_plot_of_one_number_is_a_plot() -> None:
    plot = plot_of("Title", "", [("one", None)])
    assert plot.bars == []
    assert "\0" not in visible("a\0\x1b\nb\t\x7f")
    assert visible("\0\n\t") == "␀\n\t"


# ---- The command ----


def test_several_models_are_measured_in_a_line_each(command: Command, model: Path, tmp_path: Path) -> None:
    text, other = tmp_path / "text.txt", tmp_path / "other.gguf"
    text.write_text("w1 w2\n<|endoftext|>\nw3")
    other.write_bytes(model.read_bytes())
    line = command(model, text)
    assert re.fullmatch(r"\d+\.\d{4} bits per byte on 2 documents, 7 bytes\n", line)
    assert command(model, other, text) == f"{model}: {line}{other}: {line}"


def test_a_run_is_told_from_as_its_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    names, things = ("Lily", "Tom", "Ben", "Mia"), ("ball", "kite", "boat", "drum")
    tales = [f"One day, {rng.choice(names)} lost a {rng.choice(things)} in the park. Sad end." for _ in range(200)]
    text = tmp_path / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(tales))
    shape = "--vocab-size 300 --dim 32 --hidden-dim 32 --layers 1 --heads 2 --kv-heads 2 --context 64".split()
    run = [str(text), "--out", str(tmp_path / "run"), *shape, *"--batch-tokens 256 --no-compile --tokens 512".split()]
    training.train(training.parse_arguments(run))
    monkeypatch.setattr(
        sys, "argv", ["export", str(tmp_path / "run"), "-o", str(tmp_path / "f32.gguf"), "--format", "F32"]
    )
    assert export() == 0
    with open_model(tmp_path / "f32.gguf") as (file, _):
        assert list(file.card.beginnings) == own_beginnings(*load_model(tmp_path / "run"))
    found = compare.compare(candidates([tmp_path / "run", tmp_path / "f32.gguf"], False), ("t", ["A b."]), ["A tale"])
    one, other = found.models
    assert one.stories == other.stories
    assert (one.bits == other.bits).all()
    assert [candidate.name for candidate in candidates([tmp_path / "run"], True)][:2] == ["run F32", "run Q8_0"]


def test_what_is_wrong_with_the_command_is_said_first(command: Command, model: Path, tmp_path: Path) -> None:
    text, report = tmp_path / "text.txt", tmp_path / "report.html"
    text.write_text("w1 w2")
    assert "--judge is for a report" in command(model, text, "--judge", model, status=1)
    assert "--training-text is for a report" in command(model, text, "--training-text", text, status=1)
    assert "is a folder" in command(model, text, "--report", tmp_path, status=1)
    assert "is read for the report" in command(model, text, "--report", text, status=1)
    assert text.read_text() == "w1 w2"
    for more in (["--judge", tmp_path / "none"], ["--training-text", tmp_path / "none"], ["--prompts", tmp_path / "n"]):
        said = command(model, text, "--report", report, *more, status=1)
        assert str(more[1]) in said
        assert said.count("\n") == 1, "a line, no traceback"
    assert not report.exists()


def test_ctrl_c_leaves_the_old_report(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, report = tmp_path / "text.txt", tmp_path / "report.html"
    text.write_text("w1 w2")
    report.write_text("the old one")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w1")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("train.report.render", interrupted)
    command(model, text, "--report", report, "--prompts", prompts, status=130)
    assert report.read_text() == "the old one"
    assert sorted(tmp_path.iterdir()) == before
