"""Training: the reference model, the data, runs that stop and go on, export and back, bits per byte."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import random
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from fabella.formats import STORED
from fabella.modelfile import Config
from fabella.tokenizer import Tokenizer
from train import data, files, loop
from train import run as run_folder
from train import text as text_module
from train import train as training
from train.base import load_base
from train.checkpoint import Checkpoint
from train.data import (
    PADDING,
    Tokens,
    batches,
    cut_rows,
    encode_documents,
    encode_text,
    hash_documents,
    plan_epoch,
    read_documents,
)
from train.evaluate import bits_per_byte, first_tokens, hold_out, windows_of
from train.evaluate import main as evaluate
from train.export import main as export
from train.export import save_gguf, writable
from train.files import Damaged
from train.load import load_gguf, load_model
from train.model import Llama, rope_table, rotate
from train.progress import STREAM, Progress
from train.quantize import dequantize, fitting, quantize
from train.run import RunFolder
from train.sample import TorchLogits
from train.sample import main as sample
from train.text import Text, plan_split
from train.tokenizer import BOS, EOS, LONGEST_LINE, as_tokenizer, lines_of, load_tokenizer, train_tokenizer

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
torch.set_num_threads(1)  # tiny models: more threads only wait for each other
TINY = Config(dim=32, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=64)


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


NUMBERS = "--tokens --vocab-size --dim --hidden-dim --layers --heads --kv-heads --context --batch-tokens".split()
NUMBERS += ["--eval-every", "--seed"]
NO_WHOLE_NUMBERS = ("-1", "1" + 20 * "0", 5000 * "9", "1e3", "1_000", " 512", "٥")


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
    full = Llama(Config(**{**vars(TINY), "n_kv_heads": TINY.n_heads}))
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


# --- The data ---


def test_documents_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("One.\r\nTwo lines.\r\n<|endoftext|>\r\n\r\n<|endoftext|>\nCafé.\n".encode())
    assert read_documents(path) == ["One.\nTwo lines.", "Café."]


def test_the_held_out_part_is_a_share_of_the_text() -> None:
    assert plan_split([1, 1, 1], 0.01) == (2, 0)  # whole documents, characters of the next one
    assert plan_split([200], 0.01) == (0, 198)
    assert plan_split([9900, 60, 40], 0.01) == (1, 0)
    assert plan_split([100, 9900], 0.01) == (1, 9800)  # never a huge one whole
    assert plan_split([9990, 10], 0.01) == (0, 9900)  # nor a crumb alone
    assert plan_split([1], 0.01) == (0, 0)
    assert plan_split([1000] * 10_000) == (9_500, 0)
    assert plan_split([1000] * 100_000) == (99_500, 0)  # of a large text no more than can be measured often


def test_a_text_is_split_where_the_plan_says(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(["x" * 100, "y" * 900 + "\n" + "z" * 40]))
    text = Text(path)
    learned, held_out = text.split()
    assert ["".join(sorted(set(document))) for document in learned] == ["x", "y"]
    assert learned.n_characters == sum(map(len, learned)) == 989
    assert held_out == ["y" * 11 + "\n" + "z" * 40]
    assert list(text.all()) == read_documents(path) == list(text)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_text_that_does_not_fit_in_memory_is_read_anew(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_module, "IN_MEMORY", 10**6 if in_memory else 10)
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(tell(30)))
    text = Text(path)
    assert (text.documents is None) != in_memory
    assert text.hash == hash_documents(tell(30))
    learned, held_out = text.split()
    assert [*learned, *held_out] == tell(30)
    path.write_text("<|endoftext|>".join(tell(30)[1:]))
    if not in_memory:
        with pytest.raises(ValueError, match="was changed while it was being read"):
            list(learned)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("pack", [bytes, lzma.compress], ids=["plain", "xz"])
def test_text_is_read_as_people_have_it(
    tmp_path: Path, encoding: str, newline: str, pack: Callable[[bytes], bytes]
) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""  # Python writes it of itself for the others
    path = tmp_path / "text.txt"
    path.write_bytes(pack((mark + "One 😀\nline.\n<|endoftext|>\nCafé\n".replace("\n", newline)).encode(encoding)))
    assert read_documents(path) == ["One 😀\nline.", "Café"]


def test_joined_files_have_marks_and_streams_inside(tmp_path: Path) -> None:
    path = tmp_path / "text.txt.xz"
    part = "\ufeffA tale.\n<|endoftext|>\n".encode()
    path.write_bytes(lzma.compress(part) + bytes(8) + lzma.compress(part))
    assert read_documents(path) == ["A tale.", "A tale."]


PACKED = lzma.compress(b"A tale of many words. " * 50)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no text"),
        (b"\xef\xbb\xbf", "holds no text"),
        (b" \t\n<|endoftext|>\n<|endoftext|>", "holds no text"),
        ("café".encode("latin-1"), r"byte 3 is not UTF-8 text; .*iconv -f WINDOWS-1252"),
        ("tales".encode("utf-16-le"), r"character 1 is a zero.*iconv -f UTF-16LE"),
        ("tales".encode("utf-16-be"), r"character 0 is a zero.*iconv -f UTF-16BE"),
        ("tales".encode("utf-32-le"), r"character 1 is a zero.*iconv -f UTF-32LE"),
        (b"one zero \0 in a text", "as no text has them$"),
        (b"\xff\xfet\0a", "byte 4 is not UTF-16 text"),
        (b"\xef\xbb\xbfcaf\xe9", "is not UTF-8 text"),
        (PACKED[:-10], r"not a complete \.xz file"),
        (PACKED + b"more", "4 bytes follow its end"),
        (PACKED + PACKED[:20], r"not a complete \.xz file"),
        (PACKED[:40] + bytes([PACKED[40] ^ 1]) + PACKED[41:], r"not a complete \.xz file"),
        (gzip.compress(b"A tale.", mtime=0), "compressed by gzip"),
        (b"PK\x03\x04 word/document.xml", "zip archive"),
        (b"%PDF-1.4", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    ],
)
def test_a_file_that_holds_no_text_is_named_for_what_it_is(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"text\.txt: .*{problem}"):
        read_documents(path)


@given(st.binary())
def test_any_bytes_are_text_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(content)
        with suppress(ValueError):
            documents = read_documents(path)
            assert all(document.strip() for document in documents)


def test_a_folder_and_a_device_are_no_texts(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is a folder without a file that ends in"):
        read_documents(tmp_path)
    with pytest.raises(OSError, match="is not a text file"):
        read_documents(Path("/dev/zero"))


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceProcessor:
    path = tmp_path_factory.mktemp("trained") / "tokenizer.model"
    train_tokenizer(tell(100), 300, path)
    return load_tokenizer(path)


def test_encoded_text_is_kept_and_recognised(
    trained: SentencePieceProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encodings: list[int] = []

    def encode(documents: list[str], *arguments: Any) -> Iterator[list[int]]:
        encodings.append(len(documents))
        return encode_documents(documents, *arguments)

    monkeypatch.setattr(data, "encode_documents", encode)
    folder, stories = RunFolder(tmp_path), tell(3)

    def encoded(count: int) -> Tokens:
        return encode_text(folder, hash_documents(stories[:count]), stories[:count], trained)

    first, again = encoded(3), encoded(3)
    assert encodings == [3]
    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.starts, again.starts)
    story = first.ids[first.starts[1] : first.starts[2]].tolist()
    assert (story[0], story[-1]) == (BOS, EOS)
    assert trained.decode(story[1:-1]) == stories[1]

    encoded(2)  # of another text
    assert encodings == [3, 2]
    assert list(tmp_path.iterdir()) == [folder.cache]  # one is kept
    whole = folder.cache.read_bytes()
    for damaged in (b"", whole[:60], whole[:-1], whole + b"\0", whole[:90] + bytes([whole[90] ^ 1]) + whole[91:]):
        folder.cache.write_bytes(damaged)
        encoded(2)
        assert folder.cache.read_bytes() == whole
    assert encodings == [3, 2, *[2] * 5]


def test_a_long_document_is_encoded_in_pieces(trained: SentencePieceProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut at spaces, the tokens are those of the whole; cut elsewhere, they spell the same text."""
    monkeypatch.setattr(data, "LONGEST_PIECE", 50)
    spaced, dense = " ".join(tell(20)), "\n猫" + "".join(tell(3)).replace(" ", "")
    first, second = (ids[1:-1] for ids in encode_documents([spaced, dense], trained))
    assert first == trained.encode(spaced)
    assert trained.decode(second) == dense


@pytest.mark.parametrize("place", [0, 1, 50, 300, 5000])
def test_of_a_long_document_only_the_beginning_is_encoded_to_measure(tokenizer: Tokenizer, place: int) -> None:
    document = " ".join(tell(200))[place:]
    assert len(document) > 16 * 40
    assert first_tokens(document, tokenizer, 40) == tokenizer.encode(document, bos=False)[:40]


def test_many_different_characters_are_spelled_in_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(1)
    letters = [chr(0x4E00 + i) for i in range(2000)]
    for vocab_size in (300, 1500):
        documents = ["".join(rng.choices(letters, range(2000, 0, -1), k=100)) for _ in range(100)]
        train_tokenizer(documents, vocab_size, tmp_path / "tokenizer.model")
        tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
        assert tokenizer.vocab_size() == vocab_size
        assert "different characters" in capsys.readouterr().err
        for document in (*documents[:5], "▅ <s> 猫\t\U0001f600"):
            assert tokenizer.decode(tokenizer.encode(document)) == document


def test_a_text_may_hold_what_the_tokenizer_keeps_for_itself(tmp_path: Path) -> None:
    documents = [f"{story} <s></s><unk> <0x0A> ▅ 7<s>" for story in tell(200)]
    train_tokenizer(documents, 320, tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.decode(tokenizer.encode(documents[0])) == documents[0]


@pytest.mark.parametrize("documents", [[" "], ["hello"], ["x" * 5000], []])
def test_a_text_too_short_for_a_tokenizer_is_refused_in_our_words(documents: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--vocab-size: (this text does not fill|no tokenizer of) 300") as error:
        train_tokenizer(documents, 300, tmp_path / "tokenizer.model")
    assert ".cc" not in str(error.value)
    assert not list(tmp_path.iterdir())


# --- Runs ---


def test_training_lowers_the_loss_and_writes_the_curve(text: Path, tmp_path: Path) -> None:
    run(text, tmp_path, "--tokens", "30000")
    result = Checkpoint.load(tmp_path)
    assert result.tokens >= 30000
    assert result.curve[-1][3] < 0.6 * result.curve[0][3]
    assert result.bits_per_byte is not None
    assert result.bits_per_byte < 1.5
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0] == "step,tokens,learning_rate,train_bits_per_byte,valid_bits_per_byte,seconds"
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

    rate = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", interrupting)
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


def test_tokens_on_the_disk_and_steps_in_parts_train_alike(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--tokens", "3000", "--dropout", "0")
    whole = run(text, tmp_path / "whole", *arguments)
    monkeypatch.setattr(run_folder, "MAPPED_FROM", 0)
    mapped = run(text, tmp_path / "mapped", *arguments)
    assert all(torch.equal(weight, mapped.model[name]) for name, weight in whole.model.items())
    monkeypatch.setitem(loop.AT_ONCE, "cpu", 128)
    parts = run(text, tmp_path / "parts", *arguments)
    for row, other in zip(whole.curve, parts.curve, strict=True):
        assert row[:5] == pytest.approx(other[:5], rel=1e-3)


def test_the_timed_steps_before_a_training_change_nothing(text: Path, tmp_path: Path) -> None:
    model = Llama(TINY, dropout=0.1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows = torch.randint(0, TINY.vocab_size, (20, 4, 32))
    speed = loop.tokens_a_second(
        model, loop.make_optimizers, loop.make_loss(model, compiled=False), ((row, row) for row in rows)
    )
    assert speed > 0
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [loop.learning_rate(1.0, step, step / 1000) for step in range(1000)]
    assert rates[0] == 0.01
    assert set(rates[99:700]) == {1.0}
    assert rates[850] == pytest.approx(0.5)
    assert rates[-1] < 0.01
    assert rates[700:] == sorted(rates[700:], reverse=True)
    tuning = [loop.learning_rate(1.0, step, step / 1000, decay_from=0.1) for step in range(1000)]
    assert tuning[:101] == rates[:101]
    assert tuning[550] == pytest.approx(0.5)
    assert tuning[100:] == sorted(tuning[100:], reverse=True)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command prints when it refuses to work."""
    return command(training.main, arguments, capsys, monkeypatch, status=1)


def command(
    main: Callable[[], int],
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    status: int = 0,
) -> str:
    """What a command prints, which is to end with ``status``."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    assert main() == status
    return "".join(capsys.readouterr())


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
    assert "no such checkpoint" in refused(text, "--resume")
    assert "needs" in refused(text, "--dim", "65536", "--layers", "1024")
    assert "no space left" in with_disk(1000, lambda: refused(text), monkeypatch)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("")
    assert "is a file; --out must be a folder" in refused(text)


def with_disk(free: int, work: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What ``work`` gives where the disk has so many bytes left."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free))
        return work()


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        *((option, value, "must be a whole number from") for option in NUMBERS for value in NO_WHOLE_NUMBERS),
        *((option, "0", "must be a whole number from") for option in NUMBERS if option != "--seed"),
        *(("--learning-rate", value, "must be above 0 and at most") for value in ("0", "-1", "nan", "inf", "1e300")),
        ("--vocab-size", "65537", "from 300 to 65536"),
        ("--context", "50", "multiple of 32"),
        ("--batch-tokens", "32", "does not hold one --context of 64"),
        ("--dim", "30", "--heads: 4 heads do not divide a width of 30 evenly"),
        ("--heads", "32", "--heads: .*rotary embedding needs an even count"),
        ("--kv-heads", "3", "--kv-heads: 3 key/value heads do not divide 4 heads evenly"),
    ],
)
def test_options_that_cannot_be_are_said_before_the_text_is_read(
    option: str, value: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        training.parse_arguments(options(tmp_path / "no text", tmp_path / "out", option, value))
    assert exit.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"argument (--[a-z-]+: .*)?{problem}", last)


def test_a_width_that_the_usual_format_cannot_hold_is_said_before_the_training(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(text, tmp_path / "run", "--tokens", "600", "--hidden-dim", "100")
    assert "--hidden-dim: Q8_0 needs a multiple of 32, as 96 or 128 is; 100 can be" in capsys.readouterr().err
    arguments = [str(tmp_path / "run"), "-o", str(tmp_path / "model.gguf")]
    assert "hidden_dim: Q8_0 needs" in command(export, arguments, capsys, monkeypatch, status=1)
    assert not (tmp_path / "model.gguf").exists()
    command(export, [*arguments, "--format", "F16"], capsys, monkeypatch)
    assert load_gguf(tmp_path / "model.gguf")[0].config.hidden_dim == 100


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    model = Llama(TINY)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizers = loop.make_optimizers(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(model.parameters()).grad[0, 0] = float("nan")  # type: ignore[index]
    assert not loop.update(model, optimizers, 0.1)
    assert all(map(torch.equal, before, model.parameters()))


def test_no_line_is_too_long_for_the_tokenizer() -> None:
    book = " ".join(tell(2000)).replace("\n", " ")
    lines = list(lines_of(["a line\n\nand one more", book, "x" * 25_000]))
    assert lines[:2] == ["a line", "and one more"]
    assert "".join(lines[2:]) == book + "x" * 25_000
    assert max(map(len, lines)) == LONGEST_LINE


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with two checkpoints, of 600 and of 1,200 tokens; to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(text, folder, "--tokens", "600")
    run(text, folder, "--tokens", "1200", "--resume")
    return folder


def test_what_cannot_be_resumed_is_said(
    text: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)

    def refused(*more: str, text: Path = text) -> str:
        return refusal(options(text, folder, "--tokens", "2000", *more), capsys, monkeypatch)

    assert "go on with --resume, or choose another --out" in refused()
    assert "--hidden-dim: the checkpoint" in refused("--resume", "--hidden-dim", "96")
    assert "--seed: the run" in refused("--resume", "--seed", "5")
    assert "--batch-tokens: the run" in refused("--resume", "--batch-tokens", "256")
    assert "without --valid" in refused("--resume", "--valid", str(text))
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() + "\nOne more word.")
    assert f"{other}: is another text than the one this run began with ({text}" in refused("--resume", text=other)
    tokenizer = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(tokenizer + b"x")
    assert "not the tokenizer that checkpoint.pt was trained with" in refused("--resume")
    (folder / "tokenizer.model").unlink()
    assert "no such tokenizer" in refused("--resume")
    (folder / "tokenizer.model").write_bytes(tokenizer)

    packed = tmp_path / "same.txt.xz"
    packed.write_bytes(lzma.compress(text.read_bytes().replace(b"\n", b"\r\n")))
    assert run(packed, folder, "--tokens", "2000", "--resume").tokens >= 2000  # the same text in another file


def test_every_command_refuses_a_checkpoint_without_its_tokenizer(
    text: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    train_tokenizer(tell(30), 300, folder / "tokenizer.model")
    for main, more in ((export, ["-o", str(tmp_path / "x.gguf")]), (evaluate, [str(text)]), (sample, [])):
        said = command(main, [str(folder), *more], capsys, monkeypatch, status=1)
        assert "not the tokenizer that checkpoint.pt was trained with" in said


def test_a_finished_run_can_be_asked_for_its_curve_again(
    text: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "curve.png").unlink()
    (folder / "curve.csv").write_text("step,")
    arguments = options(text, folder, "--tokens", "1200", "--resume")
    assert "Done already" in command(training.main, arguments, capsys, monkeypatch)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.pop("curve.png").startswith(b"\x89PNG")
    assert after == {name: content for name, content in before.items() if name != "curve.png"}


def test_a_curve_that_cannot_be_drawn_loses_nothing(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run(text, tmp_path / "run", "--tokens", "600")
    assert "The curve could not be written" in capsys.readouterr().err
    assert Checkpoint.load(tmp_path / "run").tokens >= 600
    assert (tmp_path / "run/curve.csv").is_file()


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_checkpoint_with_any_bit_flipped_is_never_loaded(finished: Path, place: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        content = bytearray((finished / "checkpoint.pt").read_bytes())
        content[place % len(content)] ^= 1 << bit
        (Path(name) / "checkpoint.pt").write_bytes(content)
        with pytest.raises(Damaged, match=r"checkpoint\.pt: "):
            Checkpoint.load(Path(name))


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "html", "missing"])
def test_resume_goes_on_from_the_checkpoint_before_a_damaged_one(
    damage: str,
    text: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    checkpoint = folder / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    contents = {"empty": b"", "cut": whole[:-1], "longer": whole + b"\0", "html": b"<!DOCTYPE html>"}
    if damage == "missing":
        checkpoint.unlink()
    else:
        checkpoint.write_bytes(contents[damage])
    arguments = [str(folder), "-o", str(tmp_path / "x.gguf")]
    command(export, arguments, capsys, monkeypatch)  # the best model is apart, and whole
    (folder / "best.pt").unlink()
    said = command(export, arguments, capsys, monkeypatch, status=1)
    assert f"{checkpoint}: " in said
    assert "checkpoint.old.pt" in said

    resumed = run(text, folder, "--tokens", "2400", "--resume")
    assert "going on from the one before it" in capsys.readouterr().err
    assert (folder / "checkpoint.damaged.pt").exists() == (damage != "missing")
    assert Checkpoint.load(folder).step == resumed.step

    for name in ("checkpoint.pt", "checkpoint.old.pt"):
        (folder / name).write_bytes(b"nothing")
    arguments = options(text, folder, "--tokens", "3000", "--resume")
    assert "and so is the one before it" in refusal(arguments, capsys, monkeypatch)
    with pytest.raises(Damaged) as caught:
        Checkpoint.load(folder)
    assert "--resume" not in str(caught.value), "it would not help"


def test_checkpoints_of_an_earlier_version_are_named(finished: Path, tmp_path: Path) -> None:
    torch.save({"config": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="earlier version"):
        Checkpoint.load(tmp_path)


def test_threads_of_two_trainings_leave_the_cores_to_each_other() -> None:
    program = "import os, train; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    usual = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for more, expected in ({}, "1000 None"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"):
        root = Path(__file__).resolve().parent.parent
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=root, env=usual | more, capture_output=True, text=True
        )
        assert done.stdout == expected + "\n"


def test_one_training_works_in_a_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path).held(resume=False):
        with pytest.raises(BlockingIOError, match="another training works in this folder"):  # noqa: SIM117
            with RunFolder(tmp_path).held(resume=False):
                pass
        RunFolder(tmp_path).checkpoint.touch()
    with RunFolder(tmp_path).held(resume=True):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = f"""if True:
        from pathlib import Path
        from train.run import RunFolder
        with RunFolder(Path({str(tmp_path)!r})).held(resume=False):
            RunFolder(Path({str(tmp_path)!r})).checkpoint.with_suffix(".tmp").touch()
            print("held", flush=True)
            input()
    """
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), RunFolder(tmp_path).held(resume=False):
            pass
        process.kill()
    with RunFolder(tmp_path).held(resume=False):
        assert [path.name for path in tmp_path.iterdir()] == ["training.lock"]  # the half file is gone
    assert not tmp_path.exists()  # nothing was saved


@pytest.mark.skipif(os.name == "nt", reason="Windows locks and flushes in another way")
def test_disks_that_know_no_locks_or_flush_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> Callable[..., None]:
        def call(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail(errno.EINVAL))
        files.flush_folder(tmp_path)
        patch.setattr(os, "fsync", fail(errno.EIO))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            files.flush_folder(tmp_path)
    import fcntl

    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOLCK))
    with pytest.raises(OSError, match="no lock can be had in this folder"), RunFolder(tmp_path).held(resume=False):
        pass


def test_files_of_other_programs_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"curve\.csv: is there already"), RunFolder(tmp_path).held(resume=False):
        pass
    assert (tmp_path / "curve.csv").read_text() == "mine"


def test_a_best_model_without_a_checkpoint_is_not_lost(
    text: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in folder.glob("checkpoint*.pt"):
        path.unlink()
    best = (folder / "best.pt").read_bytes()
    assert "best.pt: is the best model of a training" in refusal(options(text, folder), capsys, monkeypatch)
    assert (folder / "best.pt").read_bytes() == best


def test_what_was_measured_is_kept_when_the_numbers_go_out_of_bounds(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, usual = tmp_path / "run", loop.learning_rate
    monkeypatch.setattr(
        loop, "learning_rate", lambda peak, step, *more: 1e30 if step == 5 else usual(peak, step, *more)
    )
    said = refusal(options(text, folder, "--tokens", "9000", "--eval-every", "2"), capsys, monkeypatch)
    assert "--resume with a lower --learning-rate goes on from step 4" in said
    assert Checkpoint.load(folder).step == 4, "what goes on from there knows what it is to be better than"
    assert Checkpoint.load_best(folder).step == 4


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """The next ``writes`` files with a checksum get half onto the disk."""
    left = iter(range(writes))

    def write(path: Path, kind: str, content: Iterable[bytes]) -> None:
        if path.name == "checkpoint.tmp" and next(left, None) is not None:
            path.write_bytes(b"".join(content)[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_sealed(path, kind, content)

    write_sealed = files.write_sealed
    monkeypatch.setattr(run_folder, "write_sealed", write)


def test_a_full_disk_ends_no_training_and_loses_no_checkpoint(
    text: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", -1)  # after each step
    fill_the_disk(monkeypatch, writes=3)
    assert run(text, tmp_path / "new", "--tokens", "2000").tokens >= 2000
    said = capsys.readouterr().err
    assert said.count("tokens.cache makes room") == 1
    assert said.count("Could not save") == 2
    assert "No space left on device. Nothing is saved yet. Training goes on" in said

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = (folder / "checkpoint.pt").read_bytes()
    step = Checkpoint.load(folder).step
    fill_the_disk(monkeypatch, writes=1000)
    said = refusal(options(text, folder, "--tokens", "2000", "--resume"), capsys, monkeypatch)
    assert f"The last checkpoint, of step {step}, is whole" in said
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not list(folder.glob("*.tmp"))


def test_the_cache_and_then_the_checkpoint_before_make_room_for_a_new_one(
    text: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    fill_the_disk(monkeypatch, writes=2)
    assert run(text, folder, "--tokens", "2000", "--resume").step == Checkpoint.load(folder).step
    said = capsys.readouterr().err
    assert re.findall(r"(\S+) makes room", said) == [str(folder / "tokens.cache"), str(folder / "checkpoint.old.pt")]


def test_advice_after_numbers_out_of_bounds_is_true(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    arguments = options(text, folder, "--tokens", "9000")
    usual = loop.learning_rate

    def too_high(peak: float, step: int, *more: float) -> float:
        return 1e30 if step == 5 else usual(peak, step, *more)

    monkeypatch.setattr(loop, "learning_rate", too_high)
    assert "nothing was saved; begin again with a lower" in refusal(arguments, capsys, monkeypatch)
    assert not folder.exists()
    monkeypatch.setattr(training, "SAVE_EVERY", -1)
    said = refusal(arguments, capsys, monkeypatch)
    assert f"step 6 leads straight here: delete {folder / 'checkpoint.pt'}, and --resume" in said
    (folder / "checkpoint.pt").unlink()
    monkeypatch.setattr(loop, "learning_rate", usual)
    command(training.main, [*arguments, "--resume"], capsys, monkeypatch)
    assert Checkpoint.load(folder).tokens >= 9000


@pytest.mark.parametrize("number", loop.StopOnSignal.SIGNALS)
def test_signals_stop_in_good_order(
    number: signal.Signals,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = RunFolder.write_checkpoint

    def twice(folder: RunFolder, content: bytes) -> None:
        os.kill(os.getpid(), number)  # while it saves
        usual(folder, content)

    def stopping(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return step(*arguments)

    step = loop.Loop.step
    monkeypatch.setattr(loop.Loop, "step", stopping)
    monkeypatch.setattr(RunFolder, "write_checkpoint", twice)
    assert run(text, tmp_path / "run", "--tokens", "9000").step == 1
    assert "Stopped and saved at step 1." in capsys.readouterr().out
    assert Checkpoint.load(tmp_path / "run").step == 1

    def early(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(training, "train_tokenizer", early)
    arguments = options(text, tmp_path / "early")
    assert "nothing was saved" in command(training.main, arguments, capsys, monkeypatch, status=130)
    assert not (tmp_path / "early").exists()


def test_a_reader_that_leaves_is_like_ctrl_c(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def update(progress: Progress, count: int, note: str = "") -> None:
        nonlocal calls
        calls += bool(note)
        if calls == 3:
            raise BrokenPipeError

    monkeypatch.setattr(Progress, "update", update)
    command(training.main, options(text, tmp_path / "run", "--tokens", "9000"), capsys, monkeypatch)
    assert Checkpoint.load(tmp_path / "run").step == 3


def test_a_measurement_is_made_to_its_end_when_the_reader_leaves(text: Path, tmp_path: Path) -> None:
    """And is in the run's curve, and so in the exported file."""
    with Progress("measuring", 2, "document") as brief:
        STREAM.left = True
        brief.update(1)
    with Progress("training", 2, " tokens", brief=False) as bar:
        STREAM.left = True
        with pytest.raises(BrokenPipeError):
            bar.update(1)


def test_training_goes_on_where_the_compiler_does_not_work(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def no_compiler(loss_of: object, dynamic: bool) -> Callable[..., Any]:
        def fail(*_: Any) -> None:
            raise InvalidCxxCompiler

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setenv("CXX", sys.executable)
    compiled = run(text, tmp_path / "compiled", "--tokens", "2000", "--compile")
    assert capsys.readouterr().err.count("Training without torch.compile") == 1
    plain = run(text, tmp_path / "plain", "--tokens", "2000", "--no-compile")
    assert all(torch.equal(compiled.model[name], plain.model[name]) for name in plain.model)


def test_without_a_compiler_none_is_announced(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    run(text, tmp_path / "run", "--tokens", "300", "--compile")
    said = capsys.readouterr().out
    assert "No C++ compiler" in said
    assert "Compiling" not in said


def test_a_step_that_needs_too_much_memory_is_said(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss_of(*_: Any) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(loop.MeanLoss, "forward", loss_of)
    assert "--batch-tokens must be smaller" in refusal(options(text, tmp_path / "run"), capsys, monkeypatch)


@pytest.mark.parametrize("module", sorted(path.stem for path in Path(training.__file__).parent.glob("[a-z]*.py")))
def test_every_module_explains_itself(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, f"train.{module}", raising=False)
    with pytest.raises(SystemExit) as exit:
        runpy.run_module(f"train.{module}", run_name="__main__")
    assert not exit.value.code
    assert len(capsys.readouterr().out) > 100


# --- Export ---


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(tell(100), TINY.vocab_size, path)
    return as_tokenizer(load_tokenizer(path))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("format", STORED)
def test_an_exported_model_reads_back(tokenizer: Tokenizer, tmp_path: Path, tied: bool, format: str) -> None:
    model = Llama(Config(**{**vars(TINY), "tied": tied, "rope_base": 500000.0}))
    path = tmp_path / "model.gguf"
    save_gguf(model, tokenizer, path, format, {"general.name": "tiny", "general.license": "MIT"})
    again, file = load_gguf(path)
    assert again.config == Config(**{**vars(model.config), "norm_eps": float(np.float32(1e-5))})
    assert file.name == "tiny"
    assert file.metadata["general.license"] == "MIT"
    assert file.tokenizer.pieces == tokenizer.pieces
    assert file.tokenizer.encode("Lily took a ball.") == tokenizer.encode("Lily took a ball.")
    for name, weight in model.state_dict().items():
        type = fitting(format, weight.shape[1]) if weight.dim() == 2 else "F32"
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
    # What is fine-tuned from it keeps its words, and does not claim what was measured of it.
    assert load_base(output).about == {"general.name": "run", "general.license": "CC0-1.0"} | {
        key: value for key, value in file.metadata.items() if key == "fabella.beginnings"
    }

    held_out = tell(5)
    measures = []
    for path in (tmp_path / "run", output):
        model, tokenizer = load_model(path)
        measures.append(bits_per_byte(model, hold_out(held_out, tokenizer, model.config.seq_len)))
    assert measures[0] == pytest.approx(measures[1], rel=1e-6)


def test_names_that_are_no_text_are_exported_as_far_as_they_are() -> None:
    assert writable(os.fsdecode(b"caf\xe9")) == "caf?"


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


def test_of_whole_documents_each_token_counts_once_and_is_known_by_half_a_context(tokenizer: Tokenizer) -> None:
    for length in (1, 2, 64, 65, 66, 200):
        tokens = list(range(length))
        windows = list(windows_of(tokens, 64))
        assert [token for window in windows for token in window.tokens[-window.counted :]] == tokens[1:]
        for number, window in enumerate(windows):
            assert len(window.tokens) <= 65
            assert window.tokens == tokens[window.tokens[0] :][: len(window.tokens)]
            assert len(window.tokens) - window.counted >= (32 if number else 1)
    short, long = "A tale.", "A tale of a fox. " * 40
    text = hold_out([short, long], tokenizer, 64, whole=True)
    assert (text.n_documents, text.n_bytes, text.n_bytes_in_all) == (2, len(short + long), len(short + long))
    model = Llama(TINY)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    n_tokens = sum(len(tokenizer.encode(document, bos=False)) for document in (short, long))
    expected = n_tokens * np.log2(TINY.vocab_size) / text.n_bytes
    assert bits_per_byte(model, text) == pytest.approx(expected, rel=1e-5)


def test_stories260k_has_the_bits_per_byte_of_the_reference() -> None:
    checkpoint, valid = SHARED / "models/stories260K.bin", SHARED / "data/tinystories/valid.txt"
    if not (checkpoint.exists() and valid.exists()):
        pytest.skip(f"needs {checkpoint} and {valid}")
    model = read_v0(checkpoint)
    tokenizer = as_tokenizer(load_tokenizer(SHARED / "models/tok512.model"))
    text = hold_out(read_documents(valid), tokenizer, model.config.seq_len)
    assert text.n_documents == 449
    assert round(bits_per_byte(model, text), 3) == 0.963


def read_v0(path: Path) -> Llama:
    """A llama2.c checkpoint (version 0, tied) as the reference model."""
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", data)
    model = Llama(Config(dim, hidden, layers, heads, kv_heads, vocab, context))
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
    assert sample() == 1
    assert re.match(r"sample: .*none\.gguf", capsys.readouterr().err)


def test_sample_says_its_seed_which_tells_the_same_story_again(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_gguf(Llama(TINY), tokenizer, tmp_path / "tiny.gguf", "F32", {})

    def told(*more: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["sample", str(tmp_path / "tiny.gguf"), "-n", "20", *more])
        assert sample() == 0
        output = capsys.readouterr()
        seed = re.search(r"seed (\d{1,18})\]", output.err)
        assert seed
        return output.out, seed[1]

    story, seed = told()
    assert told("-s", seed) == (story, seed)
    said = command(sample, [str(tmp_path / "tiny.gguf"), "-n", "-3"], capsys, monkeypatch, status=1)
    assert "-n -3: must be 0" in said


def test_evaluate_says_how_much_of_the_text_it_measured(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_gguf(Llama(TINY), tokenizer, tmp_path / "tiny.gguf", "F32", {})
    text = tmp_path / "text.txt"
    for content, words in (
        ("A tale.\n<|endoftext|>\nÄ", r"on 2 documents, 9 bytes\n"),
        ("A tale. " * 100, r"on 1 document, \d+ of 800 bytes \(its first 64 tokens\)\n"),
        ("A tale.\n<|endoftext|>\n" + "A tale. " * 100, r"of 807 bytes \(the first 64 tokens of each\)\n"),
    ):
        text.write_text(content, encoding="utf-8")
        said = command(evaluate, [str(tmp_path / "tiny.gguf"), str(text)], capsys, monkeypatch)
        assert re.search(words, said)


def test_where_an_export_cannot_be_written_is_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(output: Path) -> str:
        return command(export, [str(tmp_path / "run"), "-o", str(output)], capsys, monkeypatch, status=1)

    assert "is a folder" in refused(tmp_path)
    assert "there is no folder" in refused(tmp_path / "none/model.gguf")
    assert "not a plain file" in refused(Path(os.devnull))
    assert "for llama2.c's format take python -m train.convert" in refused(tmp_path / "model.bin")
    (tmp_path / "run").mkdir()
    for own in ("checkpoint.pt", "checkpoint.tmp", "training.lock"):
        assert "a file of the run itself" in refused(tmp_path / "run" / own)


def test_torch_logits_answer_like_the_engine() -> None:
    logits = TorchLogits(torch.tensor([1.0, 3.0, float("nan"), 3.0, float("-inf"), 2.0]))
    assert logits.shortlist(3) == [(1, 3.0), (3, 3.0), (5, 2.0)]
    assert len(logits.shortlist(10)) == 4
    total = sum(np.exp(value / 0.5) for value in (1, 3, 3, 2))
    tokens, _, probabilities = zip(*logits.candidates(3, 0.5), strict=True)
    assert tokens == (1, 3, 5)
    assert probabilities == pytest.approx([np.exp(value / 0.5) / total for value in (3, 3, 2)])
    weights = np.exp(np.array([1.0, 3.0, 3.0, 2.0]))
    edges = weights.cumsum() / weights.sum()
    assert [logits.draw(1.0, float(edge) - 1e-6) for edge in edges] == [0, 1, 3, 5]
    assert logits.draw(1.0, 0.0) == 0
