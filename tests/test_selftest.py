"""The self-test's Python: what is noted, what is compared, and that a difference is found and told."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builder.tools import PYTHON, WEB
from fabella import selftest
from fabella.engine import Engine
from fabella.errors import EngineError, ModelFileError
from fabella.modelfile import Config, ModelFile
from fabella.selftest import AsF32, SelfTest, logits_of, q4_0_as_f32, weights_hash
from fabella.session import Session
from fabella.sources import BytesSource
from train.load import load_gguf
from train.quantize import dequantize, read_weights
from train.reference import PROMPTS, TOKENS

from .blocks import random_matrix
from .random_models import load, write_random_model

MODEL = WEB / "models/stories.gguf"
TORCH = json.loads(MODEL.with_suffix(".torch.json").read_text(encoding="utf-8"))
SMALL = Config(
    dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=24, norm_eps=1e-5, tied=True
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("small") / "small.gguf", SMALL, type="Q4_0")


def test_blocks_become_the_weights_that_numpy_makes_of_them() -> None:
    data = random_matrix(np.random.default_rng(3), "Q4_0", (40, 64))
    assert q4_0_as_f32(data).tobytes() == dequantize(data, "Q4_0", (40, 64)).tobytes()


def test_a_file_is_written_out_as_it_is(small: Path) -> None:
    source = BytesSource(small.read_bytes())
    _, model = load(small)
    written = AsF32(model, source)
    assert len(list(written.tensors())) == len(model.tensors)
    for name, tensor in written.model.tensors.items():
        assert (tensor.type, tensor.shape) == ("F32", model.tensors[name].shape)
        expected = read_weights(source, model.tensors[name]).astype("<f4").tobytes()
        assert written.data[tensor.offset : tensor.offset + tensor.size] == expected


def test_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "q8.gguf", SMALL, type="Q8_0")
    _, model = load(path)
    with pytest.raises(ModelFileError, match=r"token_embd\.weight.*has the type Q8_0"):
        AsF32(model, BytesSource(path.read_bytes()))


def torch_notes(path: Path) -> dict[str, Any]:
    """As train/reference.py, of a model whose vocabulary is not for English."""
    model, file = load_gguf(path)
    tokens = [file.tokenizer.bos_id, 270, 280]
    with torch.no_grad():
        while len(tokens) < SMALL.seq_len:
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return {"torch": "2", "stories": [{"prompt": "w", "given": 3, "tokens": tokens}]}


def run(engine: Engine, model: ModelFile, path: Path, reference: dict[str, Any]) -> SelfTest:
    test = SelfTest(engine, model, BytesSource(path.read_bytes()), reference)
    for _ in test.run():
        pass
    assert test.done == test.total
    json.dumps(test.result, allow_nan=False)
    return test


def test_every_bit_and_token_of_another_engine_is_the_same(small: Path) -> None:
    engine, model = load(small)
    reference = {"logits": logits_of(engine, [1, 270]), "torch": torch_notes(small)}
    assert len(reference["logits"]["hashes"]) == SMALL.seq_len, "no more than the context holds"
    again, _ = load(small)
    result = run(again, model, small, reference).result
    count = SMALL.seq_len
    assert result["logits"] == {"positions": count, "same": count, "bits": 32 * 300, "differences": []}
    (story,) = result["torch"]["stories"]
    assert story["f32"] == {"tokens": count - 3, "same": count - 3, "differences": []}
    assert story["shipped"]["tokens"] == count - 3


def test_a_difference_is_told_by_place_and_token(small: Path) -> None:
    engine, model = load(small)
    reference = {"logits": logits_of(engine, [1, 270]), "torch": torch_notes(small)}
    reference["logits"]["hashes"][4] = "0123456789abcdef"
    story = reference["torch"]["stories"][0]
    story["tokens"][-1] = wrong = (story["tokens"][-1] + 1) % 300
    result = run(engine, model, small, reference).result
    assert result["logits"]["same"] == SMALL.seq_len - 1
    (difference,) = result["logits"]["differences"]
    assert difference["place"] == 5
    assert difference["expected"].startswith("0123456789abcdef, then ")
    followed = result["torch"]["stories"][0]["f32"]
    assert (followed["same"], followed["tokens"]) == (SMALL.seq_len - 4, SMALL.seq_len - 3)
    assert followed["differences"][0]["expected"].startswith(f"{wrong} (")


def test_without_pytorch_s_tokens_the_logits_alone_are_compared(small: Path) -> None:
    engine, model = load(small)
    test = run(engine, model, small, {"logits": logits_of(engine, [1]), "torch": None})
    assert test.result.keys() == {"logits"}
    assert test.total == SMALL.seq_len


class FakePage:
    def __init__(self, session: Session, model: ModelFile) -> None:
        self.session, self.model = session, model

    def lend(self) -> tuple[Session, ModelFile]:
        return self.session, self.model


class Blocks:
    """As those of web/bytes.js."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)


@pytest.fixture
def browser_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Here(BytesSource):
        def __init__(self, blocks: Blocks) -> None:
            super().__init__(blocks.data)

    monkeypatch.setattr(selftest, "BrowserFile", Here)


def answers(page: Any, reference: dict[str, Any], data: bytes, id: str) -> Iterator[dict[str, Any]]:
    request: dict[str, Any] = {"reference": reference, "id": id}
    while True:
        said = json.loads(selftest.answer(page, json.dumps(request), Blocks(data) if request else None))
        yield said
        if said["done"] == said["total"]:
            return
        request = {}


@pytest.mark.usefixtures("browser_file")
def test_the_page_s_test_goes_on_step_by_step(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "FRAME", 0)
    engine, model = load(small)
    reference = {"logits": logits_of(engine, [1, 270]), "torch": torch_notes(small)}
    data = small.read_bytes()
    session = Session(engine)
    page = FakePage(session, model)
    said = list(answers(page, reference, data, hashlib.sha256(data).hexdigest()))
    assert [one["done"] for one in said] == list(range(1, said[-1]["total"] + 1))
    assert said[-1]["result"]["torch"]["stories"][0]["f32"]["differences"] == []
    assert session.tokens == []
    assert engine.position == 0


@pytest.mark.usefixtures("browser_file")
def test_another_file_and_another_story_are_noticed(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "FRAME", 0)
    engine, model = load(small)
    reference = {"logits": logits_of(engine, [1, 270]), "torch": torch_notes(small)}
    session = Session(engine)
    page: Any = FakePage(session, model)
    data = small.read_bytes()
    with pytest.raises(ModelFileError, match="is not the one that this page was built around"):
        next(answers(page, reference, data, "0" * 64))
    going_on = answers(page, reference, data, hashlib.sha256(data).hexdigest())
    next(going_on)
    session.repeat()  # as when the number of threads is chosen
    with pytest.raises(EngineError, match="another story was begun"):
        next(going_on)


# ---- The shipped model -----------------------------------------------------------------------------------------------


def test_pytorch_still_tells_what_was_noted() -> None:
    """That torch would take the same token after each beginning takes one pass."""
    reference, model = load_gguf(MODEL)
    assert [story["prompt"] for story in TORCH["stories"]] == list(PROMPTS)
    for story in TORCH["stories"]:
        tokens, given = story["tokens"], story["given"]
        assert tokens[:given] == model.tokenizer.encode(story["prompt"])
        assert len(tokens) == TOKENS
        with torch.no_grad():
            takes = reference(torch.tensor([tokens]))[0].argmax(-1).tolist()
        assert takes[given - 1 : -1] == tokens[given:]


def test_its_weights_are_the_shipped_ones() -> None:
    _, model = load(MODEL)
    assert TORCH["weights"] == weights_hash(BytesSource(MODEL.read_bytes()), model)


def test_the_shipped_model_equals_pytorch() -> None:
    printed = subprocess.run(
        [PYTHON, "-m", "fabella.selftest", MODEL], capture_output=True, text=True, check=True
    ).stdout
    engine, model = load(MODEL)
    result = run(engine, model, MODEL, {"logits": json.loads(printed), "torch": TORCH}).result
    assert result["logits"]["differences"] == []
    assert result["logits"]["same"] == selftest.POSITIONS
    for story in result["torch"]["stories"]:
        assert story["f32"]["differences"] == []
        assert story["f32"]["same"] == story["f32"]["tokens"] > 50
        assert story["shipped"]["same"] > 0.9 * story["shipped"]["tokens"]
