"""Training: the reference model, the data, runs that stop and go on, export and back, bits per byte."""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fabella.tokenizer import Tokenizer
from train import train as training
from train.checkpoint import Checkpoint
from train.data import (
    PADDING,
    Tokens,
    batches,
    cut_rows,
    encode_documents,
    plan_epoch,
    read_documents,
    split_documents,
)
from train.evaluate import bits_per_byte, hold_out
from train.export import (
    FILE_TYPES,
    as_tokenizer,
    load_gguf,
    load_model,
    save_gguf,
)
from train.export import (
    main as export,
)
from train.model import Llama, ModelConfig, rope_table, rotate
from train.quantize import dequantize, quantize
from train.sample import TorchLogits
from train.sample import main as sample
from train.tokenizer import BOS, EOS, LONGEST_LINE, lines_of, load_tokenizer, train_tokenizer

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
torch.set_num_threads(1)  # tiny models: more threads only wait for each other
TINY = ModelConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=64)


def tell(count: int) -> list[str]:
    """Made-up stories: few words and a plot, so that a tiny model soon learns something."""
    rng = random.Random(1)
    names, things, places = ["Lily", "Tom", "Ben", "Mia"], ["ball", "kite", "boat", "drum"], ["park", "wood", "house"]
    return [
        f"One day, {name} took a {thing} to the {place}.\n{name} lost the {thing}. {name} was sad.\nThe end."
        for name, thing, place in ((rng.choice(names), rng.choice(things), rng.choice(places)) for _ in range(count))
    ]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("".join(f"{story}\n<|endoftext|>\n" for story in tell(400)))
    return path


def options(text: Path, out: Path, *more: str) -> list[str]:
    shape = "--vocab-size 300 --dim 32 --hidden-dim 64 --layers 2 --heads 4 --kv-heads 2 --context 64".split()
    return [
        str(text),
        "--out",
        str(out),
        *shape,
        "--batch-tokens",
        "512",
        "--learning-rate",
        "0.02",
        "--no-compile",
        "--eval-every",
        "50",
        *more,
    ]


def run(text: Path, out: Path, *more: str) -> Checkpoint:
    return training.train(training.parse_arguments(options(text, out, *more)))


# --- The model ---


def test_rope_depends_on_the_distance_alone() -> None:
    cos, sin = rope_table(TINY)
    q, k = torch.randn(2, 1, 1, 1, TINY.head_size).expand(2, 1, 1, TINY.seq_len, TINY.head_size)
    scores = rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2)  # [1, 1, T, T]: of each pair of positions
    for distance in (0, 1, 17):
        diagonal = scores[0, 0].diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores[0, 0, 0, 0], scores[0, 0, 0, 17], atol=1e-3)


def test_rope_rotates_adjacent_pairs() -> None:
    cos, sin = rope_table(TINY)
    x = torch.zeros(1, 1, 2, TINY.head_size)
    x[..., 2] = 1  # the first of pair 1
    turned = rotate(x, cos[:2], sin[:2])[0, 0, 1]
    angle = 10000.0 ** (-2 / TINY.head_size)
    expected = torch.zeros(TINY.head_size)
    expected[2], expected[3] = np.cos(angle), np.sin(angle)
    torch.testing.assert_close(turned, expected)


def test_shared_key_value_heads_are_repeated_heads() -> None:
    grouped = Llama(TINY)
    full = Llama(ModelConfig(**{**vars(TINY), "n_kv_heads": TINY.n_heads}))
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if name.endswith(("attn_k.weight", "attn_v.weight")):
            heads = weight.view(TINY.n_kv_heads, TINY.head_size, TINY.dim)
            weights[name] = heads.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    tokens = torch.randint(0, TINY.vocab_size, (2, 20))
    torch.testing.assert_close(grouped(tokens), full(tokens))


def test_a_position_does_not_see_what_follows() -> None:
    model = Llama(TINY)
    tokens = torch.randint(0, TINY.vocab_size, (1, 20))
    changed = tokens.clone()
    changed[0, 12:] = 5
    torch.testing.assert_close(model(tokens)[0, :12], model(changed)[0, :12])


@pytest.mark.parametrize(
    ("change", "field"),
    [({"dim": 33}, "dim"), ({"n_heads": 32}, "dim"), ({"n_kv_heads": 3}, "n_kv_heads"), ({"n_layers": 0}, "n_layers")],
)
def test_impossible_shapes_are_named(change: dict[str, int], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        ModelConfig(**{**vars(TINY), **change})


# --- The data ---


def test_documents_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("One.\r\nTwo lines.\r\n<|endoftext|>\r\n\r\n<|endoftext|>\nCafé.\n".encode())
    assert read_documents(path) == ["One.\nTwo lines.", "Café."]
    assert split_documents(["a", "b", "c"]) == (["a", "b"], ["c"])
    assert split_documents(["x" * 200]) == (["x" * 198], ["x" * 2])


def test_every_token_is_a_target_in_each_epoch() -> None:
    lengths = [3, 40, 65, 66, 200]
    starts = np.cumsum([0, *lengths])
    tokens = Tokens(np.arange(starts[-1], dtype=np.uint16), starts)  # the id of a token is its place
    rows = cut_rows(tokens, 64)
    assert (rows[:, 1] - rows[:, 0] <= 65).all()
    plan = plan_epoch(rows, batch_tokens=128, seed=1, epoch=0)
    assert sorted(np.concatenate(plan)) == list(range(len(rows)))
    stream = batches(tokens, 64, 128, seed=1)
    seen: set[int] = set()
    for _ in plan:
        inputs, targets = next(stream)
        assert inputs.numel() <= 128
        assert inputs.shape[1] <= 64
        assert torch.equal(inputs[:, 1:][targets[:, 1:] != PADDING], targets[:, :-1][targets[:, 1:] != PADDING])
        seen.update(targets[targets != PADDING].tolist())
    assert seen == set(range(int(starts[-1]))) - set(starts[:-1].tolist())


def test_batches_go_on_where_they_stopped() -> None:
    tokens = Tokens(np.arange(1000, dtype=np.uint16), np.arange(0, 1001, 20))
    whole = batches(tokens, 32, 128, seed=3)
    for step in range(40):  # several epochs
        inputs, _ = next(whole)
        assert torch.equal(inputs, next(batches(tokens, 32, 128, seed=3, step=step))[0])


def test_encoded_text_is_kept_and_recognised(tmp_path: Path) -> None:
    train_tokenizer(tell(50), 300, tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    stories = tell(3)
    first = encode_documents(stories, tokenizer, tmp_path / "cache")
    again = encode_documents(stories, tokenizer, tmp_path / "cache")
    encode_documents(stories[:2], tokenizer, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert np.array_equal(first.ids, again.ids)
    story = first.ids[first.starts[1] : first.starts[2]].tolist()
    assert (story[0], story[-1]) == (BOS, EOS)
    assert tokenizer.decode(story[1:-1]) == stories[1]


# --- Runs ---


def test_training_lowers_the_loss_and_writes_the_curve(text: Path, tmp_path: Path) -> None:
    run(text, tmp_path, "--tokens", "30000")
    result = Checkpoint.load(tmp_path)
    assert result.tokens >= 30000
    assert result.curve[-1][3] < 0.6 * result.curve[0][3]
    assert result.bits_per_byte is not None
    assert result.bits_per_byte < 1.5
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0] == "step,tokens,learning_rate,train_loss,valid_bits_per_byte,seconds"
    assert len(lines) == len(result.curve) + 1
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_and_resume_give_the_same_weights_bit_for_bit(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(text, tmp_path / "whole", "--tokens", "20000")

    steps = 0

    def interrupting(*arguments: object) -> float:
        nonlocal steps
        steps += 1
        if steps == 17:
            os.kill(os.getpid(), signal.SIGINT)
        return rate(*arguments)  # type: ignore[arg-type]

    rate = training.learning_rate
    monkeypatch.setattr(training, "learning_rate", interrupting)
    handler = signal.getsignal(signal.SIGINT)
    stopped = run(text, tmp_path / "parts", "--tokens", "20000")
    assert stopped.step == 17  # the step was finished
    assert "--resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler

    resumed = run(text, tmp_path / "parts", "--tokens", "20000", "--resume")
    assert (resumed.step, resumed.tokens) == (whole.step, whole.tokens)
    for name, weight in whole.model.items():
        assert torch.equal(weight, resumed.model[name]), name
    assert [row[:5] for row in whole.curve] == [row[:5] for row in resumed.curve]


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [training.learning_rate(1.0, step, step / 1000) for step in range(1000)]
    assert rates[0] == 0.01
    assert set(rates[99:700]) == {1.0}
    assert rates[850] == pytest.approx(0.5)
    assert rates[-1] < 0.01
    assert rates[700:] == sorted(rates[700:], reverse=True)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command prints when it refuses to work."""
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as exit:
        training.main()
    assert exit.value.code
    return str(exit.value.code) + capsys.readouterr().err


def test_what_cannot_be_trained_on_is_said(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *more: str) -> str:
        return refusal(options(path, tmp_path / "out", *more), capsys, monkeypatch)

    latin, empty, broken, short = (tmp_path / name for name in ("latin.txt", "empty.txt", "broken.txt.xz", "short.txt"))
    latin.write_bytes(b"caf\xe9")
    empty.write_bytes(b"\n<|endoftext|>\n")
    broken.write_bytes(b"\xfd7zXZ\x00 no more")
    short.write_text("<|endoftext|>".join(tell(8)))
    assert "no such text file" in refused(tmp_path / "none.txt")
    assert "byte 3 is not UTF-8" in refused(latin)
    assert "holds no text" in refused(empty)
    assert "not a complete .xz" in refused(broken)
    assert "--vocab-size" in refused(short, "--vocab-size", "3000")
    assert "train on more text" in refused(short, "--vocab-size", "300", "--batch-tokens", "100000")
    assert "from 300 to 65536" in refused(text, "--vocab-size", "65537")
    assert "multiple of 32" in refused(text, "--context", "50")
    assert "does not hold one --context" in refused(text, "--batch-tokens", "32")
    assert "no such checkpoint" in refused(text, "--resume")
    assert "dim: 30 must be" in refused(text, "--dim", "30")


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    model = Llama(TINY)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizers = training.make_optimizers(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(model.parameters()).grad[0, 0] = float("nan")  # type: ignore[index]
    assert not training.update(model, optimizers, 0.1)
    assert all(map(torch.equal, before, model.parameters()))


def test_no_line_is_too_long_for_the_tokenizer() -> None:
    book = " ".join(tell(2000)).replace("\n", " ")
    lines = list(lines_of(["a line\n\nand one more", book, "x" * 25_000]))
    assert lines[:2] == ["a line", "and one more"]
    assert "".join(lines[2:]) == book + "x" * 25_000
    assert max(map(len, lines)) == LONGEST_LINE


def test_what_cannot_be_resumed_is_said(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*more: str) -> str:
        return refusal(options(text, tmp_path, *more), capsys, monkeypatch)

    run(text, tmp_path, "--tokens", "600")
    assert "go on with --resume, or choose another --out" in refused()
    assert "hidden_dim: the checkpoint" in refused("--resume", "--hidden-dim", "96")
    assert "seed: the run" in refused("--resume", "--seed", "5")
    assert "ask for more to go on" in refused("--resume", "--tokens", "600")
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    assert "not a checkpoint of this program" in refused("--resume")


# --- Export ---


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(tell(100), TINY.vocab_size, path)
    return as_tokenizer(load_tokenizer(path))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("format", FILE_TYPES)
def test_an_exported_model_reads_back(tokenizer: Tokenizer, tmp_path: Path, tied: bool, format: str) -> None:
    model = Llama(ModelConfig(**{**vars(TINY), "tied": tied, "rope_base": 500000.0}))
    path = tmp_path / "model.gguf"
    save_gguf(model, tokenizer, path, format, {"general.name": "tiny", "general.license": "MIT"})
    again, file = load_gguf(path)
    assert again.config == ModelConfig(**{**vars(model.config), "norm_eps": float(np.float32(1e-5))})
    assert file.name == "tiny"
    assert file.metadata["general.license"] == "MIT"
    assert file.tokenizer.pieces == tokenizer.pieces
    assert file.tokenizer.encode("Lily took a ball.") == tokenizer.encode("Lily took a ball.")
    for name, weight in model.state_dict().items():
        type = format if weight.dim() == 2 else "F32"
        assert file.tensors[name].type == type
        stored = dequantize(quantize(weight.numpy(), type), type, tuple(weight.shape))
        assert torch.equal(again.state_dict()[name], torch.from_numpy(stored)), name


def test_a_run_is_exported_and_measured_alike(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(text, tmp_path / "run", "--tokens", "5000")
    output = tmp_path / "run.gguf"
    arguments = [str(tmp_path / "run"), "-o", str(output), "--format", "F32", "--license", "CC0-1.0", "--data", "tales"]
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    export()
    assert f"{output.stat().st_size:,} bytes" in capsys.readouterr().out
    _, file = load_gguf(output)
    assert file.metadata["general.name"] == "run"
    assert file.metadata["general.license"] == "CC0-1.0"
    assert file.metadata["general.datasets"] == ["tales"]
    assert file.metadata["fabella.training.tokens"] == result.tokens
    assert file.metadata["fabella.training.bits_per_byte"] == pytest.approx(result.bits_per_byte)

    held_out = tell(5)
    measures = []
    for path in (tmp_path / "run", output):
        model, tokenizer = load_model(path)
        measures.append(bits_per_byte(model, hold_out(held_out, tokenizer, model.config.seq_len)))
    assert measures[0] == pytest.approx(measures[1], rel=1e-6)


# --- Bits per byte, sampling ---


def test_bits_per_byte_of_a_model_that_knows_nothing(tokenizer: Tokenizer) -> None:
    model = Llama(TINY)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)  # every token is equally likely: log2(vocab_size) bits each
    stories = [*tell(20), "A tale. " * 200]  # the last is longer than the context: its first 64 tokens count
    text = hold_out(stories, tokenizer, TINY.seq_len)
    tokens = [tokenizer.encode(story, bos=False)[:64] for story in stories]
    n_bytes = sum(len(story) for story in stories[:-1]) + len(tokenizer.decode([BOS, *tokens[-1]]))
    assert all(len(story) < 64 for story in tokens[:-1])
    expected = sum(map(len, tokens)) * np.log2(TINY.vocab_size) / n_bytes
    assert bits_per_byte(model, text) == pytest.approx(expected, rel=1e-5)


def test_stories260k_has_the_bits_per_byte_of_the_reference() -> None:
    checkpoint, valid = SHARED / "models/stories260K.bin", SHARED / "data/tinystories/valid.txt"
    if not (checkpoint.exists() and valid.exists()):
        pytest.skip(f"needs {checkpoint} and {valid}")
    model = read_v0(checkpoint)
    tokenizer = as_tokenizer(load_tokenizer(SHARED / "models/tok512.model"))
    text = hold_out(read_documents(valid), tokenizer, model.config.seq_len)
    assert len(text.documents) == 449
    assert round(bits_per_byte(model, text), 3) == 0.963


def read_v0(path: Path) -> Llama:
    """A llama2.c checkpoint (version 0, tied) as the reference model."""
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", data)
    model = Llama(ModelConfig(dim, hidden, layers, heads, kv_heads, vocab, context))
    weights = model.state_dict()
    blocks = "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_down ffn_up".split()
    names = [f"blk.{layer}.{block}.weight" for block in blocks for layer in range(layers)]
    numbers = torch.from_numpy(np.frombuffer(data, "<f4", offset=28).copy())
    place = 0
    for name in ["token_embd.weight", *names, "output_norm.weight"]:
        count = weights[name].numel()
        weights[name] = numbers[place : place + count].view_as(weights[name])
        place += count
    model.load_state_dict(weights)
    return model.eval()


def test_sample_tells_the_likeliest_story(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Llama(TINY).eval()
    path = tmp_path / "tiny.gguf"
    save_gguf(model, tokenizer, path, "F32", {})
    tokens = tokenizer.encode("One day")
    while len(tokens) <= 30 and tokens[-1] != EOS:  # -n counts the positions computed
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    monkeypatch.setattr(sys, "argv", ["sample", str(path), "-i", "One day", "-t", "0", "-n", "30"])
    sample()
    assert capsys.readouterr().out == tokenizer.decode(tokens) + "\n"

    monkeypatch.setattr(sys, "argv", ["sample", str(tmp_path / "none.gguf")])
    with pytest.raises(SystemExit, match=r"^sample: .*none\.gguf"):
        sample()


def test_torch_logits_answer_like_the_engine() -> None:
    logits = TorchLogits(torch.tensor([1.0, 3.0, float("nan"), 3.0, float("-inf"), 2.0]))
    assert logits.shortlist(3) == [(1, 3.0), (3, 3.0), (5, 2.0)]
    assert len(logits.shortlist(10)) == 4
    total = np.log(sum(np.exp(value / 0.5) for value in (1, 3, 3, 2)))
    assert logits.log_sum_exp(0.5) == pytest.approx(total)
    weights = np.exp(np.array([1.0, 3.0, 3.0, 2.0]))
    edges = weights.cumsum() / weights.sum()
    assert [logits.draw(1.0, float(edge) - 1e-6) for edge in edges] == [0, 1, 3, 5]
    assert logits.draw(1.0, 0.0) == 0
