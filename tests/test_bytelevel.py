"""Byte-level BPE against the library tokenizers: the same tokens for any text, however its vocabulary splits it."""

from __future__ import annotations

import io
import json
import math
import random
import struct
import sys
import unicodedata
from functools import cache
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from fabella import bytelevel
from fabella.architectures import expected_shapes
from fabella.bytelevel import CHARACTERS, SPLITS, ByteLevel
from fabella.config import Config
from fabella.errors import ModelFileError
from fabella.gguf import describe, read_gguf, write_gguf
from fabella.sources import BytesSource
from fabella.tokenizer import CONTROL, NORMAL, USER_DEFINED

from .texts import CORPUS, hostile_text

# As the libraries write them: https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp) and each model's own files.
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {"llama-bpe": LLAMA3 % r"\p{N}{1,3}", "qwen2": LLAMA3 % r"\p{N}"}
KINDS = ("gpt-2", "smollm", "llama-bpe", "qwen2")
IM_END, OWN = "<|im_end|>", ("<tool>", "<too", "two  words")


def splitter(kind: str) -> Any:
    """How the library splits a text, bytes written as characters."""
    if kind == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@cache
def library(kind: str) -> tokenizers.Tokenizer:
    """The library's tokenizer, trained on a few lines in many scripts."""
    theirs = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    theirs.pre_tokenizer = splitter(kind)
    if kind == "qwen2":
        theirs.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    theirs.train_from_iterator(CORPUS, trainer)
    return theirs


@cache
def ours(kind: str) -> ByteLevel:
    """Ours with its vocabulary, and a few special pieces besides."""
    model = json.loads(library(kind).to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(merge) for merge in model["merges"]]
    count = len(pieces)
    types = [NORMAL] * count + [CONTROL] + [USER_DEFINED] * len(OWN)
    return ByteLevel([*pieces, IM_END, *OWN], types, merges, kind, bos_id=count, eos_id=count)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400)
@given(text=hostile_text())
@example(text="it's It'S it'ſ I'LL we'Ve 'd'")
@example(text="1234567 ²³ ½ Ⅷ ௰ ١٢٣ 一二三")
@example(text=" \t\n  \r\n\n x  y   \u2003z \x1c\x1d w\u3000v")
@example(text="a" * 3000)
@example(text="e\u0301 \u0041\u030a \uac00 \u1100\u1161")
def test_like_the_library(kind: str, text: str) -> None:
    assert ours(kind).encode(text) == library(kind).encode(text).ids
    if kind != "qwen2":
        assert ours(kind).decode(ours(kind).encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_in_many_scripts(kind: str) -> None:
    text = "\n".join(CORPUS)
    assert ours(kind).encode(text) == library(kind).encode(text).ids
    shuffled = list(text)
    random.Random(1).shuffle(shuffled)
    assert ours(kind).encode("".join(shuffled)) == library(kind).encode("".join(shuffled)).ids


@pytest.mark.parametrize("kind", KINDS)
def test_every_character_that_this_python_knows_is_split_like_the_library(kind: str) -> None:
    """Each between a letter, a number, a sign and a space."""
    known = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    find, theirs = bytelevel.find_words(SPLITS[kind]).findall, splitter(kind)
    for start in range(0, len(known), 20_000):
        text = "".join(f"a{c}1{c}!{c} {c}" for c in known[start : start + 20_000])
        words = ["".join(CHARACTERS[byte] for byte in word.encode()) for word in find(text)]
        assert words == [word for word, _ in theirs.pre_tokenize_str(text)]


def test_names_of_the_same_split() -> None:
    assert set(KINDS) <= set(SPLITS)
    assert SPLITS["llama3"] == SPLITS["llama-bpe"] != SPLITS["qwen2"] == SPLITS["megrez"]
    assert set(bytelevel.WHOLE_WORDS) | set(bytelevel.COMPOSED) <= set(SPLITS)


def test_a_piece_that_is_there_twice() -> None:
    """A control piece is none that text could become; a user-defined one goes before a normal one."""
    good = {"pieces": ["a", "b", "ab", "a", "<x>", "<x>"], "types": [1, 1, 1, 3, 4, 3]}
    tokenizer = ByteLevel(**(GOOD | good))
    assert tokenizer.encode("a<x>ab") == [0, 4, 2]
    tokenizer = ByteLevel(**(GOOD | good | {"types": [1, 1, 1, 4, 4, 3]}))
    assert tokenizer.encode("a<x>b") == [3, 4, 1]
    assert tokenizer.encode("<x>", special=True) == [5]


def test_control_pieces_are_found_where_a_template_puts_them_alone() -> None:
    tokenizer = ours("smollm")
    control = tokenizer.bos_id
    assert tokenizer.encode(f"Hi{IM_END}", special=True) == [*tokenizer.encode("Hi"), control]
    assert control not in tokenizer.encode(f"Hi{IM_END}")
    assert tokenizer.decode(tokenizer.encode(f"Hi{IM_END}")) == f"Hi{IM_END}"
    assert tokenizer.decode([*tokenizer.encode("Hi"), control]) == "Hi", "nothing to print"


def test_user_defined_pieces_are_always_found_the_longest_first() -> None:
    tokenizer = ours("gpt-2")
    tool, too, two = (tokenizer.pieces.index(piece) for piece in OWN)
    assert tokenizer.encode("a<tool>b") == [*tokenizer.encode("a"), tool, *tokenizer.encode("b")]
    assert tokenizer.encode("<too<tool") == [too, too, *tokenizer.encode("l")]
    assert tokenizer.encode("two  words") == [two]
    assert tokenizer.decode([two, tool]) == "two  words<tool>"


@given(ids=st.lists(st.integers(0, 850), max_size=30))
def test_any_tokens_have_a_text(ids: list[int]) -> None:
    """Whatever bytes they are: as Python's own decoder has it, given all at once."""
    tokenizer = ours("gpt-2")
    data = b"".join(bytelevel.bytes_of(tokenizer.pieces[id]) for id in ids)
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


@given(text=st.text(), parts=st.integers(1, 7))
def test_streaming_never_gives_half_a_character(text: str, parts: int) -> None:
    tokenizer = ours("llama-bpe")
    decoder = tokenizer.decoder()
    pushed = [decoder.push(id) for id in tokenizer.encode(text)]
    assert "".join(pushed) + decoder.flush() == text
    assert "�" not in "".join(pushed).replace("�", "" if "�" in text else "�")


@given(text=hostile_text())
def test_no_text_has_fewer_tokens_than_is_said(text: str) -> None:
    for kind in KINDS:
        assert ours(kind).fewest_tokens(text) <= len(ours(kind).encode(text))


def test_lone_surrogates() -> None:
    assert ours("gpt-2").encode("a\ud800b") == ours("gpt-2").encode("a�b")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytelevel, "REMEMBERED", 10)
    tokenizer = ours.__wrapped__("smollm")
    text = " ".join(f"word{i}" for i in range(100))
    assert tokenizer.encode(text) == library("smollm").encode(text).ids
    assert tokenizer._word_ids.cache_info().currsize <= 10


GOOD: dict[str, Any] = {
    "pieces": ["a", "b", "ab", "<end>"],
    "types": [1, 1, 1, 3],
    "merges": ["a b"],
    "split": "gpt-2",
    "bos_id": 3,
    "eos_id": 3,
}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("pieces", {"pieces": [], "types": []}),
        ("pieces", {"pieces": ["a", "b", "ab", "x" * 2000]}),
        ("types", {"types": [1, 1, 1]}),
        ("types", {"types": [1, 1, 1, 9]}),
        ("pieces", {"pieces": ["a", "a", "b", "<end>"]}),
        ("merges", {"merges": ["a c"]}),
        ("merges", {"types": [1, 1, 3, 3]}),
        ("merges", {"merges": ["ab"]}),
        ("merges", {"merges": ["a b "]}),
        ("merges", {"merges": ["a b", "a b"]}),
        ("split", {"split": "tekken"}),
        ("bos_id", {"bos_id": 4}),
        ("eos_id", {"eos_id": -1}),
    ],
)
def test_wrong_vocabulary(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError) as caught:
        ByteLevel(**(GOOD | changes))
    assert caught.value.field == field


# ---- In a file -------------------------------------------------------------------------------------------------------


@cache
def model_file(kind: str) -> bytes:
    """A model with this vocabulary."""
    tokenizer = ours(kind)
    config = Config(dim=2, hidden_dim=1, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=len(tokenizer), seq_len=16)
    tensors = [(name, "F32", shape, bytes(4 * math.prod(shape))) for name, shape in expected_shapes(config).items()]
    file = io.BytesIO()
    write_gguf(file, describe(config, tokenizer, {}), tensors)
    return file.getvalue()


class AtOnce(BytesSource):
    """A file that finds many texts at once, as that of the page does."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data
        self.asked = 0

    def texts(self, offset: int, count: int) -> tuple[bytes, int] | None:
        self.asked += 1
        texts = []
        for _ in range(count):
            length = int.from_bytes(self.data[offset : offset + 8], "little")
            offset += 8 + length
            if offset > self.size:
                return None
            texts.append(self.data[offset - length : offset])
        return b"\0".join(texts), offset


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", [BytesSource, AtOnce])
def test_in_a_file_it_is_the_same(kind: str, source: type[BytesSource]) -> None:
    file = source(model_file(kind))
    tokenizer = read_gguf(file).tokenizer
    for name in ("pieces", "types", "merges", "split", "bos_id", "eos_id", "add_bos", "stop_ids"):
        assert getattr(tokenizer, name) == getattr(ours(kind), name)
    assert all(tokenizer.encode(text) == ours(kind).encode(text) for text in CORPUS)
    assert not isinstance(file, AtOnce) or file.asked == 2


@pytest.mark.parametrize("source", [BytesSource, AtOnce])
def test_a_piece_with_a_zero_byte(source: type[BytesSource]) -> None:
    """Which could be taken for two, where they are found at once."""
    data = model_file("gpt-2").replace(struct.pack("<Q", 10) + b"<|im_end|>", struct.pack("<Q", 10) + b"<|im\0end|>")
    assert read_gguf(source(data)).tokenizer.pieces[ours("gpt-2").bos_id] == "<|im\0end|>"


@pytest.mark.parametrize("source", [BytesSource, AtOnce])
@settings(max_examples=300)
@given(data=st.data())
def test_any_bytes_changed_are_refused_in_words_or_harmless(source: type[BytesSource], data: st.DataObject) -> None:
    file = bytearray(model_file("llama-bpe"))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(file) - 1) | st.integers(0, 1000))
        file[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del file[data.draw(st.integers(0, len(file) - 1)) :]
    try:
        tokenizer = read_gguf(source(bytes(file))).tokenizer
    except ModelFileError:
        return
    text = "\n".join(CORPUS)
    assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))
    tokenizer.decode(range(len(tokenizer)))
