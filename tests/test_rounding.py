"""Training for a format: a model computes with its weights as the file will have them, and is measured so."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

from fabella.modelfile import Config
from train import finetune, loop
from train import train as training
from train.base import load_base
from train.checkpoint import Checkpoint
from train.evaluate import bits_per_byte, hold_out
from train.export import main as export
from train.load import load_gguf
from train.loop import MeanLoss
from train.model import Llama
from train.quantize import BITS, dequantize, quantize
from train.rounding import rounded, stored_as
from train.text import Text
from train.tuned import FineTuning

from .test_train import tell

torch.set_num_threads(1)
CONFIG = Config(dim=32, hidden_dim=64, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=300, seq_len=64)


@given(st.sampled_from(sorted(BITS)), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-6, 0.02, 3.0]))
def test_rounding_is_what_the_file_does(type: str, seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    weights = (size * random.standard_normal((3, 64))).astype(np.float32)
    weights[0, :32] = random.choice([-1, 0, 1], 32)  # some are equally far from zero
    stored = dequantize(quantize(weights, type), type, weights.shape)
    assert np.array_equal(rounded(torch.from_numpy(weights), type).numpy(), stored)


def test_the_gradient_goes_straight_through() -> None:
    """What a step in `stored_as` gives is the gradient of the rounded weights, as if they were not rounded."""
    torch.manual_seed(1)
    model = Llama(CONFIG)
    inputs, targets = torch.randint(3, 300, (2, 2, 20))
    matrices = {name: weight for name, weight in model.named_parameters() if weight.dim() == 2}
    straight = {name: weight + (rounded(weight, "Q4_0") - weight).detach() for name, weight in matrices.items()}
    logits = functional_call(model, straight, (inputs,))
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = MeanLoss(model, False)
    with stored_as(model, "Q4_0"):
        value = loss(inputs, targets)
        value.backward()
    torch.testing.assert_close(value, expected)
    for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert weight.grad is not None, name
        torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-4)
    assert value.item() != loss(inputs, targets).item()


def test_a_model_is_as_it_was_whatever_happens_meanwhile() -> None:
    model = Llama(CONFIG)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    during: list[bool] = []

    def interrupted() -> None:
        with stored_as(model, "Q8_0"):
            during.append(torch.equal(model.token_embd.weight, before["token_embd.weight"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert during == [False]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    with stored_as(model, None):
        assert torch.equal(model.token_embd.weight, before["token_embd.weight"])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("".join(f"{story}\n<|endoftext|>\n" for story in tell(200)))
    return path


SHAPE = "--vocab-size 300 --dim 32 --hidden-dim 64 --layers 1 --heads 2 --kv-heads 1 --context 64".split()
COURSE = "--batch-tokens 512 --learning-rate 0.02 --no-compile --eval-every 10 --tokens 16000".split()


def run(text: Path, out: Path, *more: str) -> Checkpoint:
    return training.train(training.parse_arguments([str(text), "--out", str(out), *SHAPE, *COURSE, *more]))


def test_what_is_measured_is_what_the_file_holds(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    aware = run(text, tmp_path / "aware", "--quantize-aware", "Q4_0")
    assert "at last, and when measured, as Q4_0" in " ".join(capsys.readouterr().out.split())
    path = tmp_path / "aware.gguf"
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "aware"), "-o", str(path)])
    assert export() == 0
    model, file = load_gguf(path)
    assert {tensor.type for name, tensor in file.tensors.items() if "norm" not in name} == {"Q4_0"}
    _, held_out = Text(text).split()
    measured = bits_per_byte(model, hold_out(held_out, file.tokenizer, 64, whole=True))
    best = min(value for _, value in aware.measured)
    assert measured == pytest.approx(best, abs=0.02)  # in bf16, where there is

    plain = run(text, tmp_path / "plain")
    with stored_as(model := plain.build_model(), "Q4_0"):
        unaware = bits_per_byte(model, hold_out(held_out, file.tokenizer, 64, whole=True))
    assert measured < unaware
    assert plain.bits_per_byte is not None
    assert plain.bits_per_byte < unaware


def test_a_training_for_a_format_goes_on_as_if_it_had_not_stopped(text: Path, tmp_path: Path) -> None:
    whole = run(text, tmp_path / "whole", "--quantize-aware", "Q4_1")
    parts = tmp_path / "parts"
    options = [str(text), "--out", str(parts), *SHAPE, *COURSE]
    for step in (5, math.ceil(0.9 * whole.step), None):  # before the last part, and in it
        resume = ["--resume"] if parts.exists() else ["--quantize-aware", "Q4_1"]
        stop_at(step, partial(training.train, training.parse_arguments([*options, *resume])))
    resumed = Checkpoint.load(parts)
    assert all(torch.equal(weight, resumed.model[name]) for name, weight in whole.model.items())
    assert resumed.options["quantize_aware"] == "Q4_1"


def test_a_fine_tuning_may_be_for_a_format(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rounds in every step, and whenever it measures; and export writes what was measured."""
    run(text, tmp_path / "base")
    rounds: list[tuple[bool, str | None]] = []  # whenever the loss is computed: to learn or not, and rounded to what
    stored: list[str | None] = [None]

    @contextmanager
    def noting(model: Llama, type: str | None) -> Iterator[None]:
        stored.append(type)
        with stored_as(model, type):
            yield
        stored.pop()

    usual = finetune.answer_loss

    def loss(*batch: Any, **how: Any) -> torch.Tensor:
        rounds.append((torch.is_grad_enabled(), stored[-1]))
        return usual(*batch, **how)

    monkeypatch.setattr(loop, "stored_as", noting)
    monkeypatch.setattr(finetune, "stored_as", noting)
    monkeypatch.setattr(finetune, "answer_loss", loss)
    monkeypatch.setattr(finetune, "tokens_a_second", lambda *given: 1000.0)
    options = [str(tmp_path / "base"), str(text), "--out", str(tmp_path / "tuned"), "--full", "--rounds", "2"]
    tuned = finetune.finetune(finetune.parse_arguments([*options, "--quantize-aware", "Q4_1"]))
    assert {type for learning, type in rounds if not learning} == {"Q4_1"}
    steps = [type for learning, type in rounds if learning]
    assert steps == ["Q4_1"] * tuned.step

    path = tmp_path / "tuned.gguf"
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "tuned"), "-o", str(path)])
    assert export() == 0
    model, file = load_gguf(path)
    assert {tensor.type for name, tensor in file.tensors.items() if "norm" not in name} == {"Q4_1"}
    learned = load_base(tmp_path / "base").model
    FineTuning.load_best(tmp_path / "tuned").put(learned)
    with stored_as(learned, "Q4_1"):
        assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in learned.state_dict().items())


def test_a_fine_tuning_from_before_there_were_formats_is_gone_on_with_and_exported(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(text, tmp_path / "base")
    options = [str(tmp_path / "base"), str(text), "--out", str(tmp_path / "tuned"), "--full", "--rounds", "1"]
    finetune.finetune(finetune.parse_arguments(options))
    for load, save in ((FineTuning.load, FineTuning.save), (FineTuning.load_best, FineTuning.save_best)):
        state = load(tmp_path / "tuned")
        del state.options["quantize_aware"]
        save(state, tmp_path / "tuned")
    more = finetune.finetune(finetune.parse_arguments([*options[:-1], "2", "--resume"]))
    assert more.tokens >= 2 * more.round_tokens
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "tuned"), "-o", str(tmp_path / "tuned.gguf")])
    assert export() == 0


def test_an_adapter_cannot_learn_a_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        finetune.parse_arguments(["base.gguf", "a.txt", "--out", "out", "--quantize-aware", "Q4_0"])
    assert "--quantize-aware: the weights that an adapter leaves as they are" in capsys.readouterr().err


def stop_at(step: int | None, train: Callable[[], object]) -> None:
    """Train, and press Ctrl-C in a step."""
    usual = loop.learning_rate

    def interrupting(peak: float, now: int, *more: float) -> float:
        if now == step:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(peak, now, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "learning_rate", interrupting)
        train()


def test_a_shape_that_the_format_cannot_store_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--quantize-aware: dim: Q4_0 needs a multiple of 32"):
        run(text, tmp_path / "out", "--dim", "16", "--quantize-aware", "Q4_0")
