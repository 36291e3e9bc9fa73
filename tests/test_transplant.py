"""A model with another one's vocabulary: rows of its own for what is spelled the same, means of parts for the rest."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fabella.modelfile import Config
from fabella.sentencepiece import SentencePiece
from fabella.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, Tokenizer
from train import transplant as command
from train.export import save_gguf
from train.load import load_model
from train.model import Llama
from train.transplant import match, spellings, transplant

from .random_models import tokenizer as made_up
from .test_bytelevel import ours as byte_level

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CONFIG = Config(dim=32, hidden_dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=300, seq_len=64)


def vocabulary(*words: str) -> SentencePiece:
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *words]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(words)]
    return SentencePiece(pieces, [-float(id) for id in range(len(pieces))], types)


def model_for(tokenizer: Tokenizer, **changes: object) -> Llama:
    torch.manual_seed(1)
    return Llama(replace(CONFIG, vocab_size=len(tokenizer), **changes)).eval()  # type: ignore[arg-type]


def test_a_token_spells_the_bytes_of_its_text() -> None:
    for tokenizer in (vocabulary("▁a", "é"), byte_level("smollm")):
        for id, spelling in enumerate(spellings(tokenizer)):
            if spelling is None:
                assert tokenizer.types[id] in (CONTROL, UNKNOWN)
            else:
                text = tokenizer.decode([tokenizer.encode("x", bos=False)[0], id])
                assert text.endswith(spelling.decode("utf-8", "replace"))


def test_equal_pieces_keep_their_row_and_others_are_the_mean_of_their_parts() -> None:
    old = vocabulary("▁", "o", "n", "ce", "▁on", "▁once", "é", "on")
    new = vocabulary("▁once", "on", "▁onceo", "oé", "ж", "<s>on")
    first = 3 + 256
    expected = {
        "▁once": [first + 5],
        "on": [first + 7],
        "▁onceo": [first + 5, first + 1],
        "oé": [first + 1, first + 6],
        "ж": [3 + byte for byte in "ж".encode()],
        "<s>on": [3 + ord("<"), 3 + ord("s"), 3 + ord(">"), first + 7],
        "<0x6F>": [3 + 0x6F],
        "<s>": [1],
        "</s>": [2],
        "<unk>": [0],
    }
    made_of = dict(zip(new.pieces, match(old, new), strict=True))
    assert {piece: made_of[piece] for piece in expected} == expected

    bytes_alone = byte_level("smollm")
    made_of = dict(zip(new.pieces, match(bytes_alone, new), strict=True))
    assert made_of["<0x6F>"] == [bytes_alone.pieces.index("o")]
    assert made_of["<unk>"] == list(range(len(bytes_alone)))


@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_are_moved_and_all_else_stays(tied: bool) -> None:
    old, new = vocabulary("▁", "o", "n", "on"), vocabulary("on", "no")
    model = model_for(old, tied=tied)
    changed = transplant(model, old, new)
    assert changed.config == replace(model.config, vocab_size=len(new))
    before, after = model.state_dict(), changed.state_dict()
    first = 3 + 256
    for name, weights in after.items():
        if name not in ("token_embd.weight", "output.weight"):
            assert torch.equal(weights, before[name])
            continue
        assert torch.equal(weights[first], before[name][first + 3])
        torch.testing.assert_close(weights[first + 1], before[name][[first + 2, first + 1]].mean(0))
        assert torch.equal(weights[1:3], before[name][1:3])


def test_a_model_keeps_what_it_knows_in_its_own_vocabulary() -> None:
    old = vocabulary(*"▁abcde", "▁ab", "cd")
    model = model_for(old)
    same = transplant(model, old, old)
    tokens = torch.tensor([old.encode("ab cd abcde ab")])
    torch.testing.assert_close(same(tokens), model(tokens))


def test_the_command_gives_a_byte_level_model_another_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, own = byte_level("smollm"), made_up(300)
    base, student, path = tmp_path / "base.gguf", tmp_path / "student.gguf", tmp_path / "teacher.gguf"
    save_gguf(model_for(theirs), theirs, base, "F32", {"general.name": "Base", "general.license": "MIT"})
    save_gguf(model_for(own), own, student, "F32", {})

    def run(*arguments: object, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["transplant", *map(str, arguments)])
        assert command.main() == status
        return "".join(capsys.readouterr())

    said = run(base, student, "-o", path, "--format", "F32")
    assert f"300 tokens in the place of {len(theirs):,}" in said
    model, tokenizer = load_model(path)
    assert tokenizer.pieces == own.pieces
    made_of = match(theirs, own)
    before = load_model(base)[0].state_dict()["token_embd.weight"]
    for id in (1, 2, 3 + ord("w"), 270):
        torch.testing.assert_close(model.token_embd.weight[id], before[made_of[id]].mean(0))
    assert "none.gguf" in run(tmp_path / "none.gguf", student, "-o", path, status=1)
    assert "there is no folder" in run(base, student, "-o", tmp_path / "none" / "x.gguf", status=1)
    for given in (base, student):
        content = given.read_bytes()
        assert "is what it is made of" in run(base, student, "-o", given, status=1)
        assert given.read_bytes() == content
    student.write_bytes(student.read_bytes()[:-1])
    assert "student.gguf: output_norm.weight: the file is 1 bytes too short" in run(base, student, "-o", path, status=1)
