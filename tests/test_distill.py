"""Distillation on labels: what a teacher expects is computed once, and a student learns it beside the text."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fabella.modelfile import Config
from fabella.sentencepiece import SentencePiece
from train import distill, labels, loop
from train import train as training
from train.checkpoint import Checkpoint
from train.data import PADDING, Tokens, batches
from train.distill import Distillation, SoftLoss, parse_arguments, place_batch, soft_loss
from train.export import save_gguf
from train.labels import Labelling, Labels, cut_shards, make_labels
from train.load import hash_model, load_gguf, load_model
from train.loop import MeanLoss
from train.model import Llama
from train.sentencepiece_file import sentencepiece_file
from train.tokenizer import as_tokenizer, load_tokenizer, train_tokenizer

from .test_bytelevel import ours as byte_level
from .test_train import tell
from .texts import CORPUS, hostile_text

torch.set_num_threads(1)
CONTEXT = 64
TEACHER = Config(dim=32, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=CONTEXT)
SHAPE = "--dim 32 --hidden-dim 32 --layers 1 --heads 2 --kv-heads 1 --context 64 --batch-tokens 512".split()
SHAPE += "--learning-rate 0.02 --no-compile --eval-every 20 --tokens 12000".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("".join(f"{story}\n<|endoftext|>\n" for story in tell(200)))
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> SentencePiece:
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    train_tokenizer(tell(200), 300, path)
    return as_tokenizer(load_tokenizer(path))


@pytest.fixture(scope="module")
def teacher(vocabulary: SentencePiece, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file, of a model that knows nothing but is sure of it."""
    torch.manual_seed(1)
    model = Llama(TEACHER)
    with torch.no_grad():
        model.output_norm.weight.mul_(20)
    path = tmp_path_factory.mktemp("teacher") / "teacher.gguf"
    save_gguf(model, vocabulary, path, "F32", {})
    return path


def random_tokens(*lengths: int) -> Tokens:
    random = np.random.default_rng(1)
    starts = np.cumsum([0, *lengths])
    return Tokens(random.integers(3, TEACHER.vocab_size, starts[-1]).astype(np.uint16), starts)


# --- The loss ---


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("soft", [0.0, 0.6, 1.0])
def test_the_gradient_is_that_of_the_divergence_and_the_value_that_of_the_text(soft: float, temperature: float) -> None:
    torch.manual_seed(1)
    logits = torch.randn(12, 40, requires_grad=True)
    expected = (3 * torch.randn(12, 40) / temperature).softmax(-1)
    targets = torch.randint(0, 40, (12,))
    targets[[3, 11]] = PADDING
    probabilities, tokens = expected.topk(40)  # nothing is left out
    loss = soft_loss(logits, targets, tokens, probabilities, soft, temperature)
    (gradient,) = torch.autograd.grad(loss, logits)

    counted = targets != PADDING
    hard = F.cross_entropy(logits, targets, ignore_index=PADDING)
    students = (logits / temperature).log_softmax(-1)
    divergence = F.kl_div(students[counted], expected[counted], reduction="batchmean")
    (by_definition,) = torch.autograd.grad(soft * temperature**2 * divergence + (1 - soft) * hard, logits)
    torch.testing.assert_close(gradient, by_definition, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(loss, hard)


def test_what_the_labels_leave_out_is_the_texts() -> None:
    torch.manual_seed(1)
    logits = torch.randn(5, 40, requires_grad=True)
    expected = torch.randn(5, 40).softmax(-1)
    targets = torch.randint(0, 40, (5,))
    probabilities, tokens = expected.topk(4)
    (gradient,) = torch.autograd.grad(soft_loss(logits, targets, tokens, probabilities, 1.0, 1.0), logits)

    mixed = torch.zeros(5, 40).scatter(1, tokens, probabilities)
    mixed[range(5), targets] += 1 - probabilities.sum(-1)
    (by_definition,) = torch.autograd.grad(F.cross_entropy(logits, mixed), logits)
    torch.testing.assert_close(gradient, by_definition, atol=1e-6, rtol=1e-4)


def test_a_batch_of_places_is_the_batch_of_tokens() -> None:
    tokens = random_tokens(30, 150, 64, 65, 66, 3)
    lesson = object.__new__(Distillation)
    places = lesson.batches(tokens, CONTEXT, 256, seed=2, step=1)
    for (inputs, targets), (same, where) in islice(
        zip(batches(tokens, CONTEXT, 256, seed=2, step=1), places, strict=True), 6
    ):
        assert torch.equal(inputs, same)
        assert torch.equal(targets == PADDING, where == PADDING)
        assert np.array_equal(targets[targets != PADDING], tokens.ids[where[where != PADDING]])


def test_without_a_teachers_part_the_loss_is_the_plain_one() -> None:
    torch.manual_seed(1)
    tokens, model = random_tokens(30, 150, 64), Llama(TEACHER)
    how = Labelling("", 2, 1.0, CONTEXT)
    rows = np.array([[0, 30], [30, 95], [94, 159], [180, 244]])
    inputs, places = place_batch(tokens, rows)
    zeros = Labels([np.zeros(len(tokens.ids), how.record)], np.array([0]))
    targets = torch.from_numpy(np.where(places == PADDING, PADDING, tokens.ids[places].astype(np.int64)))
    plain = MeanLoss(model, False)(inputs, targets)
    soft = SoftLoss(model, False, tokens, zeros, 0.0, 1.0)(inputs, places)
    torch.testing.assert_close(soft, plain)
    for ours, theirs in zip(
        *(torch.autograd.grad(loss, list(model.parameters())) for loss in (soft, plain)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


# --- The labels ---


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "SHARD", 100)


@pytest.mark.usefixtures("small_shards")
def test_labels_are_what_the_teacher_says(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "choose_precision", lambda device: nullcontext())  # F32, where there is bf16, too
    model, _ = load_gguf(teacher)
    tokens = random_tokens(2, 40, 150, 65, 66, 3)
    assert cut_shards(tokens.starts) == [(0, 3), (3, 5), (5, 6)]
    how = Labelling("a text and a teacher", 5, 2.0, CONTEXT)
    made = make_labels(tmp_path / "labels", tokens, how, model)
    assert len(made.shards) == 3
    ids, probabilities = made.at(np.arange(len(tokens.ids)))
    for start, end in zip(tokens.starts[:-1].tolist(), tokens.starts[1:].tolist(), strict=True):
        assert not probabilities[start].any()
        for place in range(start + 1, end):
            begin = start + (place - 1 - start) // CONTEXT * CONTEXT  # of the row that has it as a target ...
            if place > start + CONTEXT and begin + CONTEXT + 1 > end:
                begin = max(start, end - CONTEXT - 1)  # ... the last of which reaches back
            known = torch.from_numpy(tokens.ids[begin:place].astype(np.int64))[None]
            with torch.no_grad():
                expected = (model(known)[0, -1] / 2.0).softmax(-1).topk(5)
            np.testing.assert_allclose(probabilities[place], expected.values, atol=5e-4)  # stored in F16
            if (expected.values.diff().abs() > 0.01).all():
                assert ids[place].tolist() == expected.indices.tolist()
    several = np.array([[1, 200], [260, 5]])
    assert np.array_equal(made.at(several)[0], ids[several])


class Counting(Llama):
    """A teacher that counts how often it is asked, and may be interrupted."""

    asked = 0
    interrupt_at = -1

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        if self.asked == self.interrupt_at:
            raise KeyboardInterrupt
        return super().forward(tokens)


@pytest.mark.usefixtures("small_shards")
def test_labels_are_computed_once_and_go_on_after_an_interruption(tmp_path: Path) -> None:
    tokens, how = random_tokens(80, 90, 100, 120), Labelling("text", 4, 1.0, CONTEXT)
    model = Counting(TEACHER)
    whole = make_labels(tmp_path / "whole", tokens, how, model)
    n_shards = len(whole.shards)
    assert model.asked == n_shards == 3

    stopped = Counting(TEACHER)
    stopped.load_state_dict(model.state_dict())
    stopped.interrupt_at = 3
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        make_labels(folder, tokens, how, stopped)
    assert len(list(folder.iterdir())) == 2  # and no half one
    parts = make_labels(folder, tokens, how, stopped)
    assert stopped.asked == 4
    assert all(np.array_equal(one, other) for one, other in zip(whole.shards, parts.shards, strict=True))

    make_labels(folder, tokens, how, None)  # all are there
    damaged = sorted(folder.iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(FileNotFoundError, match="no such labels"):
        make_labels(folder, tokens, how, None)
    make_labels(folder, tokens, how, stopped)
    assert stopped.asked == 5
    make_labels(folder, tokens, Labelling("text", 4, 1.5, CONTEXT), stopped)  # beside the others
    make_labels(folder, tokens, how, None)
    assert len(list(folder.iterdir())) == 2 * n_shards


def test_labels_need_room_and_a_teacher_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, how, model = random_tokens(80), Labelling("text", 4, 1.0, CONTEXT), Llama(TEACHER)
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match=r"no space left for the teacher's labels: they take 1 MB.*--labels.*--top"):
            make_labels(tmp_path, tokens, how, model)
    torch.nn.init.constant_(model.output_norm.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="no finite numbers"):
        make_labels(tmp_path, tokens, how, model)
    assert not list(tmp_path.iterdir())


# --- Vocabularies ---


def test_a_vocabulary_as_a_file_gives_the_same_tokens(vocabulary: SentencePiece, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_file(vocabulary))
    trained = load_tokenizer(path)
    same = as_tokenizer(trained)
    for name in ("pieces", "scores", "types", "bos_id", "eos_id", "unknown_id"):
        assert getattr(same, name) == getattr(vocabulary, name), name

    @given(st.one_of(st.sampled_from(CORPUS), hostile_text()))
    def check(text: str) -> None:
        assert trained.encode(text) == vocabulary.encode(text, bos=False)

    check()


# --- The command ---


def student(teacher: Path, text: Path, out: Path, *more: str) -> Checkpoint:
    options = parse_arguments([str(teacher), str(text), "--out", str(out), *SHAPE, *more])
    return training.train(options, Distillation(options))


def test_a_student_learns_what_its_teacher_knows(text: Path, teacher: Path, tmp_path: Path) -> None:
    """The teacher's language is not the text's: whoever has learned it can only have it from the teacher."""
    result = student(teacher, text, tmp_path / "student", "--soft", "1", "--top", "256", "--dropout", "0")
    assert result.config.vocab_size == 300
    untaught = student(teacher, text, tmp_path / "untaught", "--soft", "0", "--dropout", "0")
    guide, vocabulary = load_model(teacher)

    def distance(run: Checkpoint) -> float:
        ids = torch.tensor([vocabulary.encode(tell(1)[0])[:CONTEXT]])
        with torch.no_grad():
            expected, said = guide(ids).softmax(-1), run.build_model()(ids).log_softmax(-1)
        return F.kl_div(said[0], expected[0], reduction="batchmean").item()

    assert distance(result) < 0.6 * distance(untaught)
    assert untaught.bits_per_byte is not None
    assert result.bits_per_byte is not None
    assert untaught.bits_per_byte < 2 < result.bits_per_byte


def test_ctrl_c_and_resume_give_the_same_student_bit_for_bit(
    text: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = ["--labels", str(tmp_path / "labels"), "--temperature", "2"]
    whole = student(teacher, text, tmp_path / "whole", *shared)
    made = sorted((tmp_path / "labels").iterdir())
    before = [path.stat().st_mtime_ns for path in made]
    rate, steps = loop.learning_rate, iter(range(1, 1000))

    def interrupting(*where: Any) -> float:
        if next(steps) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return rate(*where)

    monkeypatch.setattr(loop, "learning_rate", interrupting)
    assert student(teacher, text, tmp_path / "parts", *shared).step == 7
    resumed = student(teacher, text, tmp_path / "parts", "--resume")  # the rest is known
    assert resumed.step == whole.step
    assert all(torch.equal(weight, resumed.model[name]) for name, weight in whole.model.items())
    assert [path.stat().st_mtime_ns for path in made] == before  # nobody has made them anew


def test_ctrl_c_while_the_teacher_labels_keeps_what_it_has_said(
    text: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(labels, "SHARD", 4000)
    label, asked = labels.label_documents, iter(range(1, 100))

    def interrupted(*arguments: Any) -> Any:
        if next(asked) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return label(*arguments)

    monkeypatch.setattr(labels, "label_documents", interrupted)
    command = ["distill", str(teacher), str(text), "--out", str(tmp_path / "student"), *SHAPE, "--tokens", "1000"]
    monkeypatch.setattr(sys, "argv", command)
    assert distill.main() == 130
    assert "what the teacher has labelled is kept" in capsys.readouterr().err
    assert len(list((tmp_path / "student" / "labels").iterdir())) == 1
    assert distill.main() == 0
    made = len(list((tmp_path / "student" / "labels").iterdir()))
    assert next(asked) == made + 2  # one more than there are, as one was interrupted


def refusals(text: Path, teacher: Path, tmp_path: Path, vocabulary: SentencePiece) -> Iterator[tuple[list[str], str]]:
    out, other = tmp_path / "student", tmp_path / "other.gguf"
    torch.manual_seed(2)
    save_gguf(Llama(TEACHER), vocabulary, other, "F32", {})
    given = [str(text), "--out", str(out), *SHAPE]
    yield [str(other), *given, "--resume"], "is another teacher than the one this run has"
    yield [str(teacher), *given, "--resume", "--soft", "0.9"], "--soft: the run in .* has 0.6, not 0.9"
    yield [str(teacher), *given, "--resume", "--top", "9"], "--top: the run in .* has 8, not 9"
    new = [str(text), "--out", str(tmp_path / "new"), *SHAPE]
    yield [str(teacher), *new, "--vocab-size", "400"], "--vocab-size: is the teacher's, 300, not 400"
    bytes_file, theirs = tmp_path / "bytes.gguf", byte_level("smollm")
    save_gguf(Llama(replace(TEACHER, vocab_size=len(theirs))), theirs, bytes_file, "F32", {})
    yield [str(bytes_file), *new], r"its vocabulary is byte-level.*train\.transplant.*train\.write"
    swapped = SentencePiece(vocabulary.pieces, vocabulary.scores, vocabulary.types, bos_id=2, eos_id=1)
    save_gguf(Llama(TEACHER), swapped, other, "F32", {})
    yield [str(other), *new], "BOS is token 1"
    yield [str(tmp_path / "none.gguf"), *new], "none.gguf"
    yield [str(teacher), *new, "--top", "256", "--soft", "0.5", "--field", "x", "--valid", "none.txt"], "none.txt"


def test_what_cannot_be_taught_is_said(
    text: Path,
    teacher: Path,
    vocabulary: SentencePiece,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student(teacher, text, tmp_path / "student")
    for arguments, problem in refusals(text, teacher, tmp_path, vocabulary):
        monkeypatch.setattr(sys, "argv", ["distill", *arguments])
        assert distill.main() == 1
        said = "".join(capsys.readouterr()).splitlines()[-1]
        assert said.startswith("distill: ")
        assert re.search(problem, said), said
    with pytest.raises(ValueError, match=r"this run has a teacher; go on with train\.distill"):
        training.train(training.parse_arguments([str(text), "--out", str(tmp_path / "student"), "--resume"]))
    assert not (tmp_path / "new").exists()


def test_a_teacher_is_known_by_its_numbers(teacher: Path) -> None:
    model, _ = load_gguf(teacher)
    before = hash_model(model)
    assert before == hash_model(load_gguf(teacher)[0])
    with torch.no_grad():
        model.output_norm.weight[3] += 1e-6
    assert hash_model(model) != before
