"""The model in web/models, token for token: torch, the engine under wasmtime, and (test_page.py) the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fabella.gguf import read_gguf, write_gguf
from fabella.modelfile import BytesSource
from train.export import dequantize_q8_0, load_gguf

from .random_models import load

MODEL = Path(__file__).resolve().parent.parent / "web/models/stories.gguf"
PROMPTS = ["Once upon a time, there was a little fox", "Lily and her mom went to", 'The dragon said, "I']
TOKENS = 220


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with its Q8_0 weights written out as F32."""
    data = MODEL.read_bytes()
    model = read_gguf(BytesSource(data))
    path = tmp_path_factory.mktemp("models") / "stories-f32.gguf"
    tensors = []
    for tensor in model.tensors.values():
        stored = data[tensor.offset : tensor.offset + tensor.size]
        if tensor.type == "Q8_0":
            stored = dequantize_q8_0(stored, tensor.shape).astype(np.float32).tobytes()
        tensors.append((tensor.name, "F32", tensor.shape, stored))
    write_gguf(path, model.metadata, tensors)
    return path


def greedy(next_token: Callable[[list[int]], int], prompt: list[int]) -> list[int]:
    """The TOKENS likeliest tokens after the prompt, one after the other, past any end of the story."""
    tokens = list(prompt)
    for _ in range(TOKENS):
        tokens.append(next_token(tokens))
    return tokens


@pytest.mark.parametrize("prompt", PROMPTS)
def test_f32_tells_torch_s_story_token_for_token(f32: Path, prompt: str) -> None:
    reference, _ = load_gguf(f32)
    engine, model = load(f32)
    tokens = model.tokenizer.encode(prompt)

    def torch_next(tokens: list[int]) -> int:
        with torch.no_grad():
            return int(reference.eval()(torch.tensor([tokens]))[0, -1].argmax())

    def engine_next(tokens: list[int]) -> int:
        return engine.prefill(tokens[engine.position :]).shortlist(1)[0][0]

    assert greedy(engine_next, tokens) == greedy(torch_next, tokens)


def test_q8_0_is_close_to_torch_on_the_dequantised_weights(f32: Path) -> None:
    """Both have the same weights; the engine rounds each matmul's input to 8 bits as well."""
    reference, _ = load_gguf(f32)
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
        f"Q8_0 against torch over {len(tokens)} positions: logits differ by {difference.mean():.4f} on average and "
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
    assert model.metadata["general.license"] == "cdla-sharing-1.0"
    assert "TinyStories" in str(model.metadata)
    assert model.config.seq_len >= 512
    assert math.isclose(model.config.rope_base, 10000.0)
