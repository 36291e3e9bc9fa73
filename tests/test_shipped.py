"""The model in web/models, token for token: torch, the engine under wasmtime, and (test_page.py) the page."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fabella
from fabella.adapter import read_adapter
from fabella.config import Config
from fabella.gguf import read_gguf
from fabella.sources import BytesSource, FileSource
from train.load import load_gguf

from .random_models import load

MODEL = Path(__file__).resolve().parent.parent / "web/models/stories.gguf"
PROMPTS = ["Once upon a time, there was a little fox", "Lily and her mom went to", 'The dragon said, "I']
TOKENS = 220
WEIGHTS = "2bb077d271ecf21801b01f0c203057cb07a78a981cb5b195a4f49360625e9712"  # SHA-256


@pytest.mark.parametrize("prompt", PROMPTS)
def test_f32_tells_torch_s_story_token_for_token(shipped_model_f32: Path, prompt: str) -> None:
    """Greedy, past any end of the story. That torch would take the same token after each prefix takes one pass."""
    reference, _ = load_gguf(shipped_model_f32)
    engine, model = load(shipped_model_f32)
    story = model.tokenizer.encode(prompt)
    given = len(story)
    while len(story) < given + TOKENS:
        story.append(engine.prefill(story[engine.position :]).shortlist(1)[0][0])
    with torch.no_grad():
        torch_takes = reference.eval()(torch.tensor([story]))[0].argmax(-1).tolist()
    assert torch_takes[given - 1 : -1] == story[given:]


def test_q4_0_is_close_to_torch_on_the_dequantised_weights(shipped_model_f32: Path) -> None:
    """Both have the same weights; the engine rounds each matmul's input to 8 bits as well."""
    reference, _ = load_gguf(shipped_model_f32)
    engine, model = load(MODEL)
    text = "Once upon a time, there was a little girl named Lily. She had a red ball and a big, friendly dog. " * 5
    tokens = model.tokenizer.encode(text)
    with torch.no_grad():
        expected = reference.eval()(torch.tensor([tokens]))[0].double()
    ours = torch.tensor(np.array([engine.forward(token).to_array() for token in tokens])).double()
    difference = (ours - expected).abs()
    # How much of the reference's probability the engine puts elsewhere, position by position, in nats.
    divergence = torch.nn.functional.kl_div(
        ours.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    agree = (ours.argmax(-1) == expected.argmax(-1)).double().mean()
    print(
        f"Q4_0 against torch over {len(tokens)} positions: logits differ by {difference.mean():.4f} on average and "
        f"{difference.max():.3f} at most (their spread is {expected.std():.2f}); KL {divergence.mean():.6f} nats; "
        f"the same likeliest token at {agree:.1%}"
    )
    assert difference.mean() < 0.02 * expected.std()
    assert difference.max() < 0.2 * expected.std()
    assert divergence.mean() < 0.002
    assert agree > 0.97


def test_the_file_says_what_it_is() -> None:
    model = read_gguf(BytesSource(MODEL.read_bytes()))
    assert MODEL.stat().st_size <= 4_000_000
    assert model.metadata["general.license"] == "CDLA-Sharing-1.0"
    assert "TinyStories" in str(model.metadata)
    assert model.config.seq_len >= 512
    assert math.isclose(model.config.rope_base, 10000.0)
    card = model.card
    assert (card.title, card.language, len(card.beginnings)) == ("Fabella Stories", "en", 6)
    assert (card.settings["temperature"], card.settings["min_p"]) == (0.7, 0.1)
    assert card.settings["repetition_penalty"] == 1  # or names and what belongs to whom get lost (its README)


def test_it_tells_the_stories_of_its_card() -> None:
    """To the letter, with the settings that are in the file."""
    command = r'^`python -m fabella \S+ -i "(.+)" -s (\d+)`\n\n((?:>.*\n)+)'
    samples = re.findall(command, (MODEL.parent / "README.md").read_text(), re.MULTILINE)
    assert len(samples) == 10
    settings: dict[str, Any] = read_gguf(BytesSource(MODEL.read_bytes())).card.settings
    with fabella.load(MODEL) as model:
        for prompt, seed, quoted in samples:
            paragraphs = quoted.removeprefix("> ").removesuffix("\n").split("\n>\n> ")
            told = "".join(model.tell(prompt, **{**settings, "seed": int(seed)}))
            assert told.strip().split("\n") == paragraphs, seed


def test_its_card_and_the_readme_mean_this_very_file() -> None:
    data = MODEL.read_bytes()
    hash, card = hashlib.sha256(data).hexdigest(), (MODEL.parent / "README.md").read_text()
    assert hash in card
    assert f"{len(data):,} bytes" in card
    assert f"#v=1&m={hash[:12]}&" in (MODEL.parents[2] / "README.md").read_text()


def test_its_weights_are_those_that_were_measured() -> None:
    """Whatever the file says besides: they are the last of it."""
    data = MODEL.read_bytes()
    first = min(tensor.offset for tensor in read_gguf(BytesSource(data)).tensors.values())
    assert hashlib.sha256(data[first:]).hexdigest() == WEIGHTS


def test_the_storyteller_is_an_adapter_for_smollm2() -> None:
    smollm2 = Config(dim=576, hidden_dim=1536, n_layers=30, n_heads=9, n_kv_heads=3, vocab_size=49152, seq_len=8192)
    path = MODEL.with_name("storyteller.gguf")
    with FileSource(path) as source:
        adapter = read_adapter(source)
    adapter.check_fits(smollm2)
    assert len(adapter.pairs) == 7 * 30
    card = (MODEL.parent / "README.md").read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert path.stat().st_size <= 5_000_000
