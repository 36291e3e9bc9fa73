"""What the engine shows of a token: attention and lens are torch's, and nothing is other after one has looked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fabella.adapter import read_adapter
from fabella.engine import Engine, Inside
from fabella.errors import EngineError
from fabella.generate import generate
from fabella.hosts import WasmtimeHost
from fabella.modelfile import Config
from fabella.sampler import Settings
from fabella.session import Session
from fabella.sources import FileSource
from train.load import load_model

from . import families
from .probe import load as load_with_adapter
from .random_models import load, write_random_adapter, write_random_model
from .test_builds import ThreadsHost, engines  # noqa: F401 (a fixture)
from .test_engine import bits

CONFIG = Config(dim=32, hidden_dim=64, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=128)
TOKENS = 41  # more than a tile of the key cache, and than a window
FAMILIES = (
    *("llama odd", "mistral", "smollm3", "qwen2", "qwen3 odd", "gemma2", "gemma3"),
    *("phi3 partial", "granite", "olmo2", "olmo3"),
)


def theirs(model: Any, tokens: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What transformers says: attention (layers, heads, positions, positions), logits of each layer (layers, vocab)."""
    streams: list[torch.Tensor] = []

    def note(_module: object, _inputs: object, output: Any) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(note) for layer in model.model.layers]
    with torch.no_grad():
        out = model(torch.tensor([tokens]), output_attentions=True)
        lens = []
        for stream in streams:
            logits = model.lm_head(model.model.norm(stream[0, -1]))
            logits = logits / getattr(model.config, "logits_scaling", 1.0)
            if cap := getattr(model.config, "final_logit_softcapping", None):
                logits = cap * torch.tanh(logits / cap)
            lens.append(logits.numpy())
    for hook in hooks:
        hook.remove()
    return torch.cat(out.attentions).numpy(), np.array(lens)


def assert_same(inside: Inside, attention: np.ndarray[Any, Any], lens: np.ndarray[Any, Any]) -> None:
    """To 1e-4: each head's attention, each layer's likeliest tokens with their logits and probabilities."""
    ours = np.asarray(inside.attention)
    assert ours.shape == attention.shape
    assert np.abs(ours - attention).max() < 1e-4
    assert len(inside.lens) == len(lens)
    for best, logits in zip(inside.lens, lens, strict=True):
        values = logits.astype(np.float64)
        probabilities = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
        for (token, logit, probability), expected in zip(best, np.sort(values)[::-1], strict=False):
            assert abs(logit - values[token]) < 1e-4
            assert abs(logit - expected) < 1e-4, "of equals, nearly, either may come first"
            assert abs(probability - probabilities[token]) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_and_lens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = families.make(name)
    engine, _ = load(families.write(model, tmp_path / "model.gguf"))
    tokens = np.random.default_rng(2).integers(3, families.VOCABULARY, TOKENS).tolist()
    engine.prefill(tokens)
    for position in (0, 17, TOKENS - 1):
        attention, lens = theirs(model, tokens[: position + 1])
        assert_same(engine.probe(tokens[position], position), attention[:, :, -1], lens)


def test_a_layer_that_is_run_twice_is_seen_twice(tmp_path: Path) -> None:
    model = families.make("llama")
    path = families.write(model, tmp_path / "model.gguf", **{"fabella.block_repeats": 2})
    engine, _ = load(path)
    engine.prefill([5, 6, 7])
    inside = engine.probe(7, 2)
    assert inside.attention.shape == (6, 4, 3)
    assert len(inside.lens) == 6
    assert inside.lens[-1] == engine.logits.candidates(3, 1)


def test_the_shipped_model_agrees_with_our_own_torch(shipped_model_f32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, file = load(shipped_model_f32)
    model, _ = load_model(shipped_model_f32)
    tokens = file.tokenizer.encode("Once upon a time there was a little fox who lived in the forest. " * 3)
    heads: list[torch.Tensor] = []
    streams: list[torch.Tensor] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool) -> torch.Tensor:
        """What PyTorch's function of that name does, but that the weights are kept."""
        assert is_causal
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        heads.append(torch.softmax(scores.masked_fill(unseen, -torch.inf), dim=-1))
        return heads[-1] @ v

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    for block in model.blk:
        block.register_forward_hook(lambda _module, _inputs, output: streams.append(output))
    with torch.no_grad():
        model(torch.tensor([tokens]))
        lens = np.array([model.logits(model.output_norm(stream[0, -1])).numpy() for stream in streams])
    engine.prefill(tokens)
    inside = engine.probe(tokens[-1], len(tokens) - 1)
    assert_same(inside, np.array([layer[0, :, -1].numpy() for layer in heads]), lens)


# ---- Nothing is other afterwards ----


@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("adapted", [False, True])
def test_looking_changes_no_bit(type: str, adapted: bool, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", CONFIG, type=type)
    engine, _ = load(path)
    if adapted:
        with FileSource(write_random_adapter(tmp_path / "adapter.gguf", CONFIG)) as source:
            engine.adapt(read_adapter(source), source)
    tokens = np.random.default_rng(3).integers(0, 300, 70).tolist()
    after = [bits(engine.forward(token)) for token in tokens]
    engine.rewind(0)
    engine.prefill(tokens[:50])
    for position in (0, 31, 49, 20):
        engine.probe(tokens[position], position)
        assert bits(engine.logits) == after[position], "the logits of the token that was looked into"
        assert bits(engine.revisit(tokens[position], position)) == after[position]
    for token, expected in zip(tokens[50:], after[50:], strict=True):
        assert bits(engine.forward(token)) == expected


def test_a_session_goes_on_as_if_nobody_had_looked(shipped_model: Path) -> None:
    engine, file = load(shipped_model)
    settings = Settings(temperature=0.8, top_p=0.9, seed=5)
    expected = list(generate(engine, file.tokenizer, "Once upon a time", settings, 40))
    session, steps = Session(engine), []
    for number, step in enumerate(generate(session, file.tokenizer, "Once upon a time", settings, 40)):
        steps.append(step)
        if number % 3 == 0 and session.tokens:
            position = number * 7 % len(session.tokens)
            session.inside(position) if number % 2 else session.visit(position)
    assert steps == expected
    for position in (12, 3):
        logits = session.visit(position)
        before = bits(logits)  # type: ignore[arg-type]
        session.inside(7)
        assert bits(session.visit(position)) == before  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["simd", "relaxed", "threads-simd", "threads-relaxed"])
def test_all_builds_show_the_same_bits(name: str, engines: dict[str, bytes], shipped_model: Path) -> None:  # noqa: F811
    shown = []
    for build in ("simd", name):
        threads = "threads" in build
        host = ThreadsHost(engines[build]) if threads else WasmtimeHost(engines[build])
        engine, file = load_with_adapter(host, shipped_model.read_bytes())
        tokens = file.tokenizer.encode("Once upon a time there was a little fox.")
        engine.prefill(tokens)
        if isinstance(host, ThreadsHost):
            with host.threads(3):
                inside = engine.probe(tokens[-1], len(tokens) - 1)
        else:
            inside = engine.probe(tokens[-1], len(tokens) - 1)
        shown.append((inside.attention.tobytes(), inside.lens, bits(engine.logits)))
    assert shown[0] == shown[1]


# ---- What cannot be looked into ----


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(write_random_model(tmp_path_factory.mktemp("models") / "model.gguf", CONFIG))[0]


@pytest.mark.parametrize(
    ("token", "position", "said"),
    [
        (5, 3, "position 3 cannot be looked into: 3 are computed"),
        (5, -1, "position -1 cannot"),
        (300, 1, "outside the vocabulary"),
        (-1, 1, "outside the vocabulary"),
    ],
)
def test_tokens_and_positions_that_are_none(engine: Engine, token: int, position: int, said: str) -> None:
    engine.rewind(0)
    engine.prefill([5, 6, 7])
    for look in (engine.probe, engine.revisit):
        with pytest.raises(EngineError, match=said):
            look(token, position)
    engine.rewind(2)
    with pytest.raises(EngineError, match="2 are computed"):
        engine.probe(7, 2)


def test_more_of_a_lens_than_there_are_tokens(engine: Engine) -> None:
    engine.rewind(0)
    engine.prefill([5])
    assert [len(best) for best in engine.probe(5, 0, top=1000).lens] == [300] * 3
    assert [len(best) for best in engine.probe(5, 0, top=0).lens] == [1] * 3


def test_a_session_says_what_it_cannot_show(engine: Engine) -> None:
    session = Session(engine)
    for look in (session.visit, session.inside):
        with pytest.raises(EngineError, match="position 0 cannot be looked into: 0 are computed"):
            look(0)
