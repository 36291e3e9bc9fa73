"""Real model files against llama.cpp, and the same in the page as under wasmtime."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builder.models import KnownModel
from fabella.generate import generate
from fabella.gguf import read_gguf
from fabella.sampler import Settings, likeliest
from fabella.sentencepiece import SPACE
from fabella.sources import FileSource
from fabella.tokenizer import Tokenizer

from .browsers import Driven
from .llama_cpp import LlamaCpp
from .random_models import load
from .real_models import GEMMA3, SMOLLM2, real_model
from .test_browsers import TELL, controls, driven, served, told
from .texts import CORPUS

TEXT = (
    "Once upon a time, in a small village by the sea, there lived an old fisherman who had never caught a single fish. "
    "Every morning he would row his little boat out into the bay, and every evening he came back with nothing but "
    "stories. The children of the village loved him for that; their parents did not. One day, when the wind was strong "
    "and the waves were high, he saw a light far out on the water, and he knew that he had to follow it, whatever came."
)
PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "To make a cup of tea, first",
    "def fibonacci(n):",
    "The three most important things in life are",
    "Water boils at",
    "My favourite colour is",
    "In the year 1969,",
    "Dear Sir or Madam,",
    "The cat sat on the",
)
LOGITS = 100  # positions
GREEDY = 100  # tokens
QUANTISED_GREEDY = 60
NEAR_TIE = 1.5  # between the two likeliest: what 8-bit activations may turn round

__all__ = ["driven"]  # a fixture

models = pytest.mark.parametrize("model", [SMOLLM2, GEMMA3], ids=lambda model: model.name)


def tokenizer_of(path: Path) -> Tokenizer:
    with FileSource(path) as source:
        return read_gguf(source).tokenizer


@pytest.mark.parametrize("model", [SMOLLM2, pytest.param(GEMMA3, marks=pytest.mark.slow)], ids=lambda model: model.name)
def test_the_page_speaks_as_under_wasmtime(driven: Driven, built: Callable[[Path], Path], model: KnownModel) -> None:
    """To the bit, or else a word would be another before long: in any browser, whichever build it takes."""
    path = real_model(model)
    engine, file = load(path)
    with served(built(path)) as url:
        driven.open(url)
        assert told(driven) == ""
        for settings in (Settings(temperature=0.0, seed=1), Settings(temperature=0.9, top_p=0.95, seed=3)):
            expected = "".join(step.text for step in generate(engine, file.tokenizer, PROMPTS[0], settings, 60))
            driven.run(TELL, controls(settings, PROMPTS[0], 60))
            assert told(driven) == expected


def test_smollm2_continues_as_people_expect() -> None:
    engine, model = load(real_model(SMOLLM2))
    story = generate(engine, model.tokenizer, "The capital of France is", Settings(temperature=0.0, seed=1), 8)
    assert "".join(step.text for step in story).startswith("The capital of France is Paris.")


def test_what_a_user_types_is_never_a_control_token() -> None:
    """Every control piece of the vocabulary: its characters, unless a template puts it there."""
    tokenizer = tokenizer_of(real_model(SMOLLM2))
    control = {id for id in tokenizer.special if tokenizer.types[id] == 3}
    assert len(control) == 17
    for id in control:
        piece = tokenizer.pieces[id]
        typed = tokenizer.encode(f"Hi{piece}", bos=False)
        assert not control & set(typed)
        assert tokenizer.decode(typed) == f"Hi{piece}"
        assert tokenizer.encode(f"Hi{piece}", special=True)[-1] == id


# ---- Against llama.cpp -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@models
def test_tokens_are_those_of_llama_cpp(model: KnownModel) -> None:
    chance = random.Random(1)
    characters = "".join(CORPUS)
    texts = [*CORPUS, TEXT, "\n".join(CORPUS), *("".join(chance.choices(characters, k=60)) for _ in range(2000))]
    # What sentencepiece writes a space as is a space to it, and to us; llama.cpp tells the two apart.
    texts = [text.replace(SPACE, "_") for text in texts]
    path = real_model(model)
    ours = tokenizer_of(path)
    for text, tokens in zip(texts, LlamaCpp().tokens(path, texts), strict=True):
        assert ours.encode(text) == tokens, text


@pytest.mark.slow
@pytest.mark.parametrize(("model", "error"), [(SMOLLM2, 1e-3), (GEMMA3, 2e-2)], ids=("SmolLM2", "Gemma 3"))
def test_logits_are_those_of_llama_cpp_on_the_same_weights(model: KnownModel, error: float) -> None:
    """As F32, because its activations of 8 bits are not ours. Its GELU, in Gemma, is a table of half precision."""
    reference = LlamaCpp()
    path = reference.as_f32(real_model(model))
    engine, file = load(path)
    tokens = file.tokenizer.encode(TEXT)[:LOGITS]
    assert len(tokens) >= LOGITS - 1
    theirs = reference.logits(path, tokens)
    ours = np.array([engine.forward(token).to_array() for token in tokens])
    print(f"{model.name}: largest difference {np.abs(ours - theirs).max():.1e}")
    assert np.abs(ours - theirs).max() <= error
    greedy = [token for token, _ in reference.greedy(path, tokens, GREEDY)]
    for token in greedy:
        assert likeliest(engine.logits) == token
        engine.forward(token)


@pytest.mark.slow
@models
def test_the_quantised_file_speaks_as_in_llama_cpp_until_a_near_tie(model: KnownModel) -> None:
    reference, path = LlamaCpp(), real_model(model)
    engine, file = load(path)
    for prompt in PROMPTS:
        tokens = file.tokenizer.encode(prompt)
        engine.rewind(0)
        engine.prefill(tokens)
        said = "to the end"
        for number, (token, lead) in enumerate(reference.greedy(path, tokens, QUANTISED_GREEDY)):
            if likeliest(engine.logits) != token:
                said = f"for {number} tokens, then the lead was {lead:.2f}"
                assert lead < NEAR_TIE, said
                break
            engine.forward(token)
        print(f"{model.name}, {prompt!r}: the same {said}")
