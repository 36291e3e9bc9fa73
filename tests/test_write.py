"""Distillation by text: what a teacher writes, many texts at once, and what of that is worth learning from."""

from __future__ import annotations

import lzma
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fabella.modelfile import Config
from train import filters, write
from train import train as training
from train.evaluate import Window, nats_of_windows
from train.filters import (
    COMMON,
    COPIED,
    LANGUAGE,
    LENGTH,
    OVERLAP,
    REPETITIVE,
    TWICE,
    Filters,
    grams,
    marks,
    repetition,
)
from train.filters import word_hashes as words
from train.load import load_model
from train.model import Llama
from train.sources import read_documents
from train.teller import ROOM, Teller, choose, tell
from train.text import Text
from train.write import State, parse_arguments

from .test_train import tell as made_up
from .texts import CORPUS

torch.set_num_threads(1)
CONFIG = Config(dim=32, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=160)


def sure_model(**changes: object) -> Llama:
    """A random model whose logits differ by more than rounding does."""
    torch.manual_seed(1)
    model = Llama(Config(**{**vars(CONFIG), **changes})).eval()
    with torch.no_grad():
        model.output_norm.weight.mul_(20)
        for block in model.blk:
            for parameter in block.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(5)
    return model


# --- Telling ---


@pytest.fixture
def exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """In F32, where the hardware has bf16, too."""
    for module in ("teller", "write"):
        monkeypatch.setattr(f"train.{module}.choose_precision", lambda device: nullcontext())


@pytest.mark.usefixtures("exactly")
@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 4}, {"n_kv_heads": 1, "tied": False}])
def test_a_teller_gives_the_logits_of_the_whole_text(changes: dict[str, object]) -> None:
    model = sure_model(**changes)
    texts = torch.randint(3, 300, (5, ROOM + 9))
    with torch.no_grad():
        expected = model(texts)
    teller = Teller(model, 5)
    going = torch.arange(5)
    for at in range(texts.shape[1]):
        if at == 40:  # two have ended
            going = torch.tensor([4, 0, 2])
            teller.keep(going)
        said = teller.read(texts[going, at])
        torch.testing.assert_close(said, expected[going, at], atol=1e-4, rtol=1e-4)
    assert teller.cache[0].shape[1:4:2] == (3, 2 * ROOM)


def greedy(model: Llama, beginning: list[int], stops: set[int], length: int) -> list[int]:
    """A story as the reference tells it."""
    text = list(beginning)
    while len(text) < length:
        with torch.no_grad():
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
        if text[-1] in stops:
            break
    return text


@pytest.mark.usefixtures("exactly")
def test_texts_that_are_told_together_are_those_that_are_told_alone() -> None:
    model = sure_model()
    beginnings = [[1], [1, 50], [1, 60, 70, 80, 90], list(range(1, 100)), [1, 17, 250], [1, 33]]
    free = [greedy(model, beginning, set(), 150) for beginning in beginnings]
    stops = {free[1][20], free[4][90]}
    expected = [greedy(model, beginning, stops, 150) for beginning in beginnings]
    told = tell(model, beginnings, stops, 150, temperature=0)
    assert told == expected
    assert {len(text) for text in told} != {150}
    with pytest.raises(ValueError, match="161 tokens, but the context holds 160"):
        tell(model, beginnings, stops, 161)


def test_tokens_are_picked_as_often_as_they_are_likely() -> None:
    torch.manual_seed(1)
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0, -9.0])
    picked = choose(logits.expand(40_000, 5), 0.7, 1.0).bincount(minlength=5) / 40_000
    torch.testing.assert_close(picked, (logits / 0.7).softmax(-1), atol=0.01, rtol=0)
    few = choose(logits.expand(40_000, 5), 1.0, 0.7).bincount(minlength=5) / 40_000  # 1 and 3 have 0.62 and 0.23
    expected = torch.where(torch.tensor([False, True, False, True, False]), logits.exp(), 0)
    torch.testing.assert_close(few, expected / expected.sum(), atol=0.01, rtol=0)
    least = choose(logits.expand(40_000, 5), 1.0, 1.0, 0.3).bincount(minlength=5) / 40_000  # 3 has 0.37 of 1's
    torch.testing.assert_close(least, expected / expected.sum(), atol=0.01, rtol=0)
    assert choose(logits[None], 0, 1.0).tolist() == [1]


def test_how_unlikely_a_text_is_behind_its_beginning_does_not_depend_on_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train.evaluate.BATCH_LOGITS", 7 * 60 * CONFIG.vocab_size)  # several batches
    model = sure_model()
    texts = [torch.randint(3, 300, (8 + 7 * number % 60,)).tolist() for number in range(40)]
    windows = [Window(text, len(text) - 1 - at % 7, at) for at, text in enumerate(texts)]
    found: dict[int, float] = {}
    for batch, nats in nats_of_windows(model, windows):
        assert len(batch) < 40
        found |= zip((window.document for window in batch), nats.tolist(), strict=True)
    for number, text in enumerate(texts):
        with torch.no_grad():
            logs = model(torch.tensor([text[:-1]]))[0].log_softmax(-1)
        expected = -sum(float(logs[at, text[at + 1]]) for at in range(number % 7, len(text) - 1))
        assert found.pop(number) == pytest.approx(expected, abs=1e-2, rel=1e-5)
    assert not found


# --- Filters ---


@given(st.lists(st.sampled_from("abcdefg"), max_size=40), st.integers(1, 13))
def test_n_grams_are_those_of_the_words(letters: list[str], n: int) -> None:
    different = {tuple(letters[at : at + n]) for at in range(len(letters) - n + 1)}
    assert len(grams(words(", ".join(letters)), n)) == len(different)


def test_words_are_the_same_whatever_is_between_them_and_in_any_script() -> None:
    assert words("One day, LILY went").tolist() == words("one day lily... went!").tolist()
    assert len(words("从前有一个小女孩。")) == 8
    assert len(words("Tokyo東京タワー２０２６年")) == 1 + 2 + 3 + 1 + 1
    assert all(len(words(line)) > 3 for line in CORPUS)
    assert grams(words("a b"), 3).size == 0
    assert marks(words("")).size == 0
    assert marks(words("a b")).size == 1


def test_repetition_is_the_share_of_what_was_there_before() -> None:
    assert repetition(words("a b c d e f g")) == 0
    assert repetition(words("a b c " * 10)) == pytest.approx(1 - 3 / 28)
    assert repetition(words("")) == repetition(words("a b")) == 0


def sentence(number: int, count: int = 60) -> str:
    """Different words for each number, of one length."""
    return " ".join(f"{chr(97 + place % 26)}{'xyz'[place % 3]}{number:04}{place:02}" for place in range(count))


@pytest.fixture
def examined(tmp_path: Path) -> Filters:
    path = tmp_path / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(sentence(number) for number in range(50)))
    return Filters(Text(path).all(), [sentence(1000), sentence(1001, 19)])


def test_what_is_worth_learning_from(examined: Filters) -> None:
    good = sentence(100)
    assert examined.refuse(good) is None
    assert examined.refuse(good[:100]) == LENGTH
    assert examined.refuse(good + good) == LENGTH
    assert examined.refuse("ж" * 20 + good[20:]) == LANGUAGE
    assert examined.refuse("é" + good[1:]) is None  # one may be
    assert examined.refuse(" ".join([sentence(101, 10)] * 6)) == REPETITIVE
    part, rest = sentence(1000).split(), good.split()
    assert examined.refuse(" ".join(part[:19] + rest[19:])) is None  # 7 n-grams of 13
    assert examined.refuse(" ".join(part[:20] + rest[20:])) == OVERLAP
    assert examined.refuse(sentence(7).replace(" ", "\n").upper().lower()) == COPIED
    assert examined.refuse(" ".join(sentence(7).split()[:50] + rest[50:])) == COPIED
    assert examined.refuse(" ".join(sentence(7).split()[:15] + rest[15:])) is None
    examined.keep(good)
    assert examined.refuse(good) == TWICE
    assert examined.refuse(" ".join(rest[:52] + sentence(102).split()[52:])) == TWICE
    assert examined.refuse(sentence(102)) is None


def test_balanced_texts_are_not_all_about_the_same(tmp_path: Path) -> None:
    """A word that one document in twenty has may be in one text of ten, and in the first few."""
    path = tmp_path / "text.txt"
    documents = [sentence(number) + (" ball" if number % 20 == 0 else " said") for number in range(200)]
    path.write_text("\n<|endoftext|>\n".join(documents))
    free = Filters(Text(path).all(), [sentence(1000)])
    balanced = Filters(Text(path).all(), [sentence(1000)], balanced=True)

    def kept(filters: Filters, word: str, first: int, count: int) -> int:
        texts = [f"{sentence(number)} {word}" for number in range(first, first + count)]
        refused = 0
        for text in texts:
            if reason := filters.refuse(text):
                assert reason == COMMON
                refused += 1
            else:
                filters.keep(text)
        return count - refused

    assert kept(free, "ball", 2000, 40) == 40
    assert kept(balanced, "ball", 2000, 40) == 5  # 4, and a tenth of those
    assert kept(balanced, "said", 3000, 95) == 95  # nearly all documents have this word
    assert kept(balanced, "ball", 4000, 100) == 10  # 4, and a tenth of 110, are the 15 that there are now


# --- The command ---


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("".join(f"{story}\n<|endoftext|>\n" for story in made_up(300)))
    return path


@pytest.fixture(scope="module")
def teacher(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has begun to learn the stories: it mixes them up, and makes mistakes."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    shape = "--vocab-size 300 --dim 32 --hidden-dim 64 --layers 1 --heads 4 --kv-heads 2 --context 64".split()
    course = "--batch-tokens 512 --learning-rate 0.02 --no-compile --eval-every 1000 --tokens 25000".split()
    training.train(training.parse_arguments([str(text), "--out", str(out), *shape, *course]))
    return out


def written(teacher: Path, text: Path, path: Path, *more: str) -> State:
    return write.write(parse_arguments([str(teacher), str(text), "-o", str(path), *more]))


def test_a_teacher_writes_and_goes_on_where_it_was_stopped(
    teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(teacher, text, tmp_path / "whole.txt", "--stories", "60")
    assert whole.kept >= 60
    assert whole.written == whole.batches * write.AT_ONCE["cpu"]
    stories = read_documents(tmp_path / "whole.txt")
    assert len(stories) == len(set(stories)) == whole.kept
    assert not set(stories) & set(read_documents(text))

    with monkeypatch.context() as torn:  # killed when a batch is on the disk, but not yet counted
        calls: list[State] = []

        def save(state: State, path: Path) -> None:
            calls.append(state)
            if len(calls) == 2:
                raise KeyboardInterrupt
            kept(state, path)

        kept = State.save
        torn.setattr(State, "save", save)
        with pytest.raises(KeyboardInterrupt):
            written(teacher, text, tmp_path / "parts.txt", "--stories", "60")
    resumed = written(teacher, text, tmp_path / "parts.txt", "--stories", "60", "--resume")
    assert resumed == whole
    assert (tmp_path / "parts.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()

    more = written(teacher, text, tmp_path / "parts.txt", "--stories", str(whole.kept + 1), "--resume")
    assert more.kept > whole.kept
    assert read_documents(tmp_path / "parts.txt")[: whole.kept] == stories


def test_texts_begin_as_they_are_asked_to_and_are_packed(teacher: Path, text: Path, tmp_path: Path) -> None:
    beginnings, path = tmp_path / "beginnings.txt", tmp_path / "written.txt.xz"
    beginnings.write_text("One day, Mia\nOne day, Ben took a kite\n")
    state = written(teacher, text, path, "--stories", "10", "--beginnings", str(beginnings), "-t", "1.2", "-p", "0.95")
    stories = read_documents(path)
    assert len(stories) == state.kept >= 10
    assert all(story.startswith(("One day, Mia", "One day, Ben took a kite")) for story in stories)
    assert lzma.decompress(path.read_bytes()).decode().count("<|endoftext|>\n") == state.kept


@pytest.mark.usefixtures("exactly")
def test_of_several_texts_the_likeliest_is_kept(
    teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "ALWAYS", 10**6)  # all these stories are about the same
    path, beginnings = tmp_path / "best.txt", tmp_path / "beginnings.txt"
    beginnings.write_text("".join(f"One day, {name}\n" for name in ("Mia", "Ben", "Sue")))
    more = ["--best-of", "10", "--beginnings", str(beginnings), "--stories", "20", "-t", "0.8"]
    state, count = written(teacher, text, path, *more), write.AT_ONCE["cpu"]
    assert state.kept + sum(state.reasons.values()) == state.written == count * state.batches
    assert state.kept <= count // 10 * state.batches
    assert state.reasons[filters.UNLIKELY] > state.kept

    model, tokenizer = load_model(teacher)
    options = parse_arguments([str(teacher), str(text), "-o", str(path), *more])
    given = write.read_beginnings(beginnings, tokenizer, 64)
    told: list[list[int]] = []

    def telling(*how: Any) -> list[list[int]]:
        told.extend(tell(*how))
        return told

    monkeypatch.setattr(write, "tell", telling)
    texts = write.write_batch(model, tokenizer, given, options, 64, count, 1)

    def likely(number: int) -> float:
        ids = told[number]
        known = len(given[(count + number) % 3])
        with torch.no_grad():
            logs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        nats = sum(float(logs[at, ids[at + 1]]) for at in range(known - 1, len(ids) - 1))
        return nats / (len(ids) - known) ** 0.5

    ended = [number for number in range(count) if told[number][-1] == 2]
    best = sorted(ended, key=likely, reverse=True)
    assert 0 < len(best) < count
    assert texts == [tokenizer.decode(told[at][:-1]) for at in best] + [None] * (count - len(best))

    told.clear()
    assert write.write_batch(model, tokenizer, [[1, 5, 6]], options, 3, 8, 1) == [None] * 8  # none could end


def test_the_best_of_several_begins_as_a_document_does(
    teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[int]] = []

    def telling(model: Llama, beginnings: list[list[int]], *how: Any) -> list[list[int]]:
        begun.extend(beginnings)
        return tell(model, beginnings, *how)

    monkeypatch.setattr(write, "tell", telling)
    monkeypatch.setattr(filters, "ALWAYS", 10**6)
    path, (_, tokenizer) = tmp_path / "best.txt", load_model(teacher)
    more = ["--best-of", "4", "--min-p", "0.1", "-t", "0.8"]
    state = written(teacher, text, path, *more, "--stories", "10")
    learned, _ = Text(text).split()
    starts = [[1, *tokenizer.encode(story, bos=False)[: write.FIRST_TOKENS]] for story in learned]
    assert begun == [starts[number % len(starts)] for number in range(state.written)]
    assert write.beginnings_of(["", "A", made_up(1)[0]], tokenizer) == write.beginnings_of(made_up(1), tokenizer)

    # stopped and gone on with, it keeps what it would have kept
    parts = tmp_path / "parts.txt"
    written(teacher, text, parts, *more, "--stories", "1")
    assert written(teacher, text, parts, *more, "--stories", "10", "--resume") == state
    assert parts.read_bytes() == path.read_bytes()


def test_what_cannot_be_written_is_said(
    teacher: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "written.txt"

    def refused(*more: str, status: int = 1) -> str:
        monkeypatch.setattr(sys, "argv", ["write", str(teacher), str(text), "-o", str(path), *more])
        assert write.main() == status
        return "".join(capsys.readouterr())

    assert "no writing to go on with" in refused("--resume")
    refused("--stories", "1", status=0)
    assert "is there already" in refused()
    assert "another teacher, text, option" in refused("--resume", "-s", "2")
    assert "-n 65: the teacher's context holds 64" in refused("-n", "65")
    content, state = path.read_bytes(), tmp_path / "written.txt.state"
    path.write_bytes(content[:-1])
    assert "is shorter than it was" in refused("--resume")
    for told in ("{}", "[1]", "[" * 100_000, state.read_text().replace('"size": ', '"size": -')):
        state.write_text(told)
        assert "does not say how far" in refused("--resume")
    beginnings = tmp_path / "beginnings.txt"
    beginnings.write_text("word " * 100)
    assert "begins a text with" in refused("--beginnings", str(beginnings))
    path = tmp_path / "best.txt"
    assert "-n 13: is too short for texts that begin with 12 tokens" in refused("--best-of", "2", "-n", "13")
    monkeypatch.setattr(write, "FIRST_TOKENS", 1000)
    assert "no document has 1000 tokens to go on from; give --beginnings" in refused("--best-of", "2")
    path = tmp_path / "none" / "written.txt"
    assert "there is no folder" in refused()


def test_a_teacher_that_writes_nothing_of_use_is_stopped(
    teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "HOPELESS", 2)
    monkeypatch.setattr(filters.Filters, "refuse", lambda self, story: LANGUAGE)
    with pytest.raises(ValueError, match=r"hardly a text .* is worth keeping\. Of 128 written not kept: \d+ in other"):
        written(teacher, text, tmp_path / "written.txt", "--stories", "5")


def test_two_that_write_to_one_file_notice(teacher: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "written.txt"
    writing = write.Writing(path, "key", resume=False)
    writing.add(["A story."], Counter())
    path.write_text("Something else.")
    with pytest.raises(OSError, match="was changed by somebody else"):
        writing.add(["Another story."], Counter())


def test_a_student_learns_from_what_was_written_beside_the_text(teacher: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    (folder / "text.txt").write_bytes(text.read_bytes())
    written(teacher, text, folder / "written.txt.xz", "--stories", "20")
    assert len(read_documents(folder)) >= 320
