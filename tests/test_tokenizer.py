"""The tokenizer against the sentencepiece library, and against a plain retelling of llama2.c's encoder."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabella.errors import ModelFileError
from fabella.llama2c import read_tokenizer
from fabella.sentencepiece import SPACE, SentencePiece
from fabella.sources import BytesSource
from fabella.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Pieces

MODELS = Path(__file__).parents[1] / ".." / "shared" / "models"

# A small corpus with words in several scripts, so that pieces of one, two, three and four UTF-8 bytes per character
# are learned, and some characters so rare that they become byte pieces or unknown.
WORDS = (
    "once upon a time there was little girl named Lily who loved to play outside in the park und über die Straße "
    "große Bäume était façade où naïve сказка жил был царь море 日本 東京 日本語 物語 むかしむかし おじいさん 🐉🐲 🐉 "
    "👩‍👩‍👧 é́ don't can't won't 1984 2026 3.14 -- ... \t tab\ttab   three   spaces aaaa aaa aa abab ababab "
    "<sep> abc abcabc"
).split(" ")


def corpus() -> list[str]:
    chance = random.Random(7)
    lines = [" ".join(chance.choices(WORDS, k=chance.randint(1, 20))) for _ in range(1500)]
    return [*lines, "rare: ☃ ℵ ∮ ꙮ 𓀀 ß"]


def train(vocab_size: int = 600, **options: Any) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        **{
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "byte_fallback": True,
            "character_coverage": 0.999,
            "num_threads": 1,
            "minloglevel": 2,
            **options,
        },
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def tokenizer_of(
    theirs: sentencepiece.SentencePieceProcessor, user_defined: Sequence[str] = (), add_space_prefix: bool = True
) -> SentencePiece:
    """Our tokenizer with the vocabulary of theirs."""
    ids = range(theirs.vocab_size())
    pieces = [theirs.id_to_piece(id) for id in ids]

    def type_of(id: int) -> int:
        for is_type, type in (
            (theirs.is_unknown, UNKNOWN),
            (theirs.is_control, CONTROL),
            (theirs.is_byte, BYTE),
            (theirs.is_unused, UNUSED),
        ):
            if is_type(id):
                return type
        return USER_DEFINED if pieces[id] in user_defined else NORMAL

    scores = [theirs.get_score(id) for id in ids]
    return SentencePiece(pieces, scores, [type_of(id) for id in ids], add_space_prefix=add_space_prefix)


def with_unused(model: bytes, ids: set[int]) -> bytes:
    """Mark pieces as unused in a serialized sentencepiece model.

    The model is a protobuf message; its fields number 1 are the pieces, and a piece's field number 3 is its type.
    """
    result = bytearray()
    position = id = 0
    while position < len(model):
        tag = model[position]
        assert tag & 7 == 2  # all its fields are length-delimited
        length, start = varint(model, position + 1)
        field = model[start : start + length]
        position = start + length
        if tag == 1 << 3 | 2:
            if id in ids:
                field += bytes([3 << 3, UNUSED])  # of a field that is there twice the later one counts
            id += 1
        result.append(tag)
        rest = len(field)
        while rest > 127:
            result.append(rest & 127 | 128)
            rest >>= 7
        result.append(rest)
        result += field
    return bytes(result)


def varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a protobuf number and where it ends."""
    value = shift = 0
    while True:
        value |= (data[position] & 127) << shift
        shift += 7
        position += 1
        if data[position - 1] < 128:
            return value, position


# Any Unicode text, and text made of what the corpus is made of, which exercises many more merges.
fragments = st.sampled_from(
    [*WORDS, "abcd", "the end", " ", "  ", "\n", "a", "ab", "☃", "ꙮ", SPACE, "<s>", "</s>", "<0x0A>"]
)
texts = st.text() | st.lists(fragments | st.text(max_size=3), max_size=30).map("".join)
texts |= st.lists(fragments, max_size=30).map(" ".join)

many = settings(max_examples=400)


class Pair:
    """Theirs and ours with one vocabulary."""

    def __init__(self, theirs: sentencepiece.SentencePieceProcessor, ours: SentencePiece) -> None:
        self.theirs = theirs
        self.ours = ours

    def check(self, text: str) -> None:
        expected = self.theirs.encode(text)
        assert self.ours.encode(text, bos=False) == expected
        assert self.ours.decode(expected) == self.theirs.decode(expected)


@pytest.fixture(scope="module")
def plain() -> Pair:
    theirs = train()
    return Pair(theirs, tokenizer_of(theirs))


@pytest.fixture(scope="module")
def whole() -> Pair:
    """With user-defined pieces, one of them a prefix of another."""
    symbols = ["<sep>", "ab", "abc", f"{SPACE}the{SPACE}end", "🐉", "\n\n"]
    theirs = train(user_defined_symbols=symbols)
    return Pair(theirs, tokenizer_of(theirs, symbols))


@pytest.fixture(scope="module")
def unknown() -> Pair:
    """Without byte pieces."""
    theirs = train(byte_fallback=False, vocab_size=300)
    return Pair(theirs, tokenizer_of(theirs))


@pytest.fixture(scope="module")
def no_prefix() -> Pair:
    theirs = train(add_dummy_prefix=False)
    return Pair(theirs, tokenizer_of(theirs, add_space_prefix=False))


@pytest.fixture(scope="module")
def unused() -> Pair:
    """With half of the learned pieces switched off, so that merges lead through them and are split up again."""
    theirs = train()
    chance = random.Random(3)
    learned = [id for id in range(259, theirs.vocab_size()) if theirs.get_score(id) < 0]
    off = set(chance.sample(learned, len(learned) // 2))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=with_unused(theirs.serialized_model_proto(), off))
    assert sum(theirs.is_unused(id) for id in learned) == len(off) > 100
    return Pair(theirs, tokenizer_of(theirs))


@pytest.mark.parametrize("kind", ["plain", "whole", "unknown", "no_prefix", "unused"])
@many
@example(text="")
@example(text=" ")
@example(text="   ")
@example(text=SPACE)
@example(text="\0")
@example(text="\ufffd")
@example(text="a" * 200)
@example(text="ab" * 100)
@example(text="xabcabx<sep><sep>abcd the end")
@example(text="☃☃ ☃a☃")
@example(text="日本語 日本 𓀀𓀀")
@given(text=texts)
def test_like_sentencepiece(request: pytest.FixtureRequest, kind: str, text: str) -> None:
    request.getfixturevalue(kind).check(text)


@many
@given(text=texts.map(lambda text: text.replace(SPACE, "")))
def test_round_trip(plain: Pair, text: str) -> None:
    """Any text comes back; "▁" itself is the one character that means something else, a space."""
    assert plain.ours.decode(plain.ours.encode(text)) == text


@many
@example(ids=[3 + 0xC2, 1, 3 + 0x80])
@example(ids=[3 + 0xF0, 3 + 0x9F, 3 + 0x41])
@example(ids=[1, 0, 2, 259])
@given(ids=st.lists(st.integers(0, 599) | st.integers(3, 258), max_size=30))
def test_decode_any_tokens(plain: Pair, ids: list[int]) -> None:
    """Tokens in any order decode as in sentencepiece.

    Only what a run of broken UTF-8 counts as differs: theirs has one U+FFFD for each byte, ours one for each maximal
    part of a character, as Unicode recommends and browsers do.
    """
    expected = re.sub("\ufffd+", "\ufffd", plain.theirs.decode(ids))
    assert re.sub("\ufffd+", "\ufffd", plain.ours.decode(ids)) == expected


@many
@given(data=st.data())
def test_streaming_decode(plain: Pair, data: st.DataObject) -> None:
    """Text arrives as whole characters: what has been shown is always a beginning of what will be."""
    text = data.draw(texts)
    ids = plain.ours.encode(text)
    decoder = plain.ours.decoder()
    shown = ""
    for id in ids:
        shown += decoder.push(id)
        assert plain.ours.decode(ids).startswith(shown)
    assert decoder.flush() == ""
    assert shown == plain.ours.decode(ids)


def test_unknown_prints_as_in_sentencepiece(unknown: Pair) -> None:
    assert unknown.ours.encode("☃☃", bos=False)[1:] == [0]
    assert unknown.ours.decode([0]) == unknown.theirs.decode([0]) == " ⁇ "


def test_bos(plain: Pair) -> None:
    assert plain.ours.encode("") == [1]
    assert plain.ours.encode("", bos=False) == []
    assert plain.ours.encode("girl") == [1, *plain.theirs.encode("girl")]
    without = SentencePiece(plain.ours.pieces, plain.ours.scores, plain.ours.types, add_bos=False)
    assert without.encode("girl") == plain.theirs.encode("girl")


def test_lone_surrogates(plain: Pair) -> None:
    """What JavaScript may send although it is no Unicode text."""
    assert plain.ours.encode("a\ud83d") == plain.ours.encode("a\ufffd")
    assert plain.ours.encode("\ud83d\udc09") == plain.ours.encode("🐉")


def test_long_texts_are_quick(plain: Pair) -> None:
    """100,000 characters that all merge; a quadratic encoder would take minutes."""
    for text in ("a" * 100_000, "once upon a time " * 6_000):
        plain.check(text)


# --- llama2.c's files ---


def llama2c_encode(pieces: list[str], scores: list[float], text: str) -> list[int]:
    """llama2.c's encoder: code points, then the best pair of neighbours again and again."""
    ids_of = {piece: id for id, piece in enumerate(pieces)}
    ids = [1]
    if text:
        ids.append(ids_of[" "])
    for character in text:
        if character in ids_of:
            ids.append(ids_of[character])
        else:
            ids += [byte + 3 for byte in character.encode()]
    while True:
        best = None
        for i in range(len(ids) - 1):
            merged = ids_of.get(pieces[ids[i]] + pieces[ids[i + 1]])
            if merged is not None and (best is None or scores[merged] > best[0]):
                best = scores[merged], i, merged
        if best is None:
            return ids
        _, i, merged = best
        ids[i : i + 2] = [merged]


@pytest.fixture(scope="module")
def tok512() -> Pair:
    if not (MODELS / "tok512.bin").exists():
        pytest.skip("../shared/models is not there")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(MODELS / "tok512.model"))
    return Pair(theirs, read_tokenizer(BytesSource((MODELS / "tok512.bin").read_bytes()), theirs.vocab_size()))


english = st.lists(
    st.sampled_from('Once upon a time, there was Lily. She\n loved to "play" outside! é 日本 🐉  \t0 x'.split(" "))
    | st.text(max_size=3),
    max_size=20,
).map(" ".join)


@many
@given(text=english)
def test_tokenizer_bin_like_llama2c(tok512: Pair, text: str) -> None:
    assert tok512.ours.encode(text) == llama2c_encode(tok512.ours.pieces, tok512.ours.scores, text)


@many
@given(text=texts | english)
def test_tokenizer_bin_like_its_sentencepiece_model(tok512: Pair, text: str) -> None:
    """That model joins runs of spaces and drops them at both ends; llama2.c's `run` does not, and neither do we."""
    text = re.sub(" +", " ", text.replace(SPACE, "")).strip(" ")
    expected = tok512.theirs.encode(text)
    assert tok512.ours.encode(text, bos=False) == expected
    assert tokenizer_of(tok512.theirs).encode(text, bos=False) == expected


def test_tokenizer_bin_prints_no_control_bytes(tok512: Pair) -> None:
    """As in llama2.c; but, unlike there, bytes from 128 on are printed, as parts of characters."""
    text = "a\0\x07\x1b[1m\x7f\n\té 🐉"
    assert tok512.ours.decode(tok512.ours.encode(text)) == "a[1m\n\té 🐉"
    assert tok512.ours.decode([1, 2, 0]) == " ⁇ "
    assert tok512.ours.decode([3 + 0xC3, 3 + 0x07, 3 + 0xA9]) == "\ufffd\ufffd"


# --- Vocabularies that are wrong ---

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def small(words: Sequence[str] = ("a", "b", "ab"), **changes: Any) -> SentencePiece:
    arguments: dict[str, Any] = {
        "pieces": ["<unk>", "<s>", "</s>", *BYTES, *words],
        "scores": [0.0] * 259 + [-float(rank) for rank in range(len(words))],
        "types": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(words),
    }
    return SentencePiece(**(arguments | changes))


def test_small() -> None:
    assert small().encode("abc", bos=False) == [*(3 + byte for byte in SPACE.encode()), 261, 3 + ord("c")]


def test_partial_bytes_mean_unknown() -> None:
    """With fewer than all 256 byte pieces nothing falls back to bytes, as in sentencepiece."""
    tokenizer = small(["a"], types=[UNKNOWN, CONTROL, CONTROL] + [BYTE] * 255 + [NORMAL] * 2)
    assert tokenizer.encode("xa", bos=False) == [0, 259]


def test_equal_scores_merge_leftmost_first() -> None:
    tokenizer = small([SPACE, "a", "aa"], scores=[0.0] * 262)
    assert tokenizer.encode("aaa", bos=False) == [259, 261, 260]


def test_user_defined_pieces_stay_alone() -> None:
    """Even where the vocabulary has their union with a neighbour."""
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL, USER_DEFINED, NORMAL, NORMAL]
    tokenizer = small(["c", "ab", "cab", "abc"], types=types, add_space_prefix=False)
    assert tokenizer.encode("cabc", bos=False) == [259, 260, 259]


def split_plainly(pieces: set[str], text: str) -> list[tuple[str, bool]]:
    """At each place the longest user-defined piece, else one character."""
    result = []
    while text:
        piece = next((text[:end] for end in range(len(text), 0, -1) if text[:end] in pieces), "")
        result.append((piece or text[0], bool(piece)))
        text = text[len(piece or text[0]) :]
    return result


@many
@example(pieces={"a", "aa", "aaaa", "ab", "aab"}, text="aaaab aaab aab ab b")
@example(pieces={"ab\0", "abc", "a\U0010ffff", "\ud800"}, text="ababcab\0a\U0010ffffa\ud800")
@given(
    pieces=st.sets(st.text("ab🐉", min_size=1, max_size=5) | st.text(min_size=1, max_size=3)),
    text=st.text("ab🐉") | st.text(),
)
def test_the_longest_user_defined_piece_is_found_at_each_place(pieces: set[str], text: str) -> None:
    runs = Pieces(pieces).cut(text)
    found = [(symbol, whole) for run, whole in runs for symbol in ([run] if whole else run)]
    assert found == split_plainly(pieces, text)


def test_many_user_defined_pieces_are_quick() -> None:
    """100,000 of them, most of them the beginning of ten others; a search that tries all would take hours."""
    words = [f"{number:0{width}d}" for width in range(1, 6) for number in range(10**width)][:100_000]
    tokenizer = small(words, types=[UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [USER_DEFINED] * 100_000)
    text = "31415926535897932384" * 5000
    ids = tokenizer.encode(text, bos=False)[3:]
    assert tokenizer.decode(ids) == text
    assert len(ids) < 25_000


@pytest.mark.parametrize("kind", ["plain", "whole", "unknown", "no_prefix", "unused"])
@many
@example(text="a" * 200)
@example(text="☃" * 200)
@example(text="\ud83d\udc09" * 20)
@given(text=texts)
def test_no_text_has_fewer_tokens_than_is_said_without_encoding(
    request: pytest.FixtureRequest, kind: str, text: str
) -> None:
    tokenizer: SentencePiece = request.getfixturevalue(kind).ours
    assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, bos=False))


def test_the_fewest_tokens_of_a_long_text(plain: Pair, unknown: Pair) -> None:
    """They grow with it, so that a novel is refused at once."""
    longest = max(map(len, plain.ours.pieces[259:]))
    assert plain.ours.fewest_tokens("once upon a time " * 60_000) == -(-17 * 60_000 // longest)
    assert plain.ours.fewest_tokens("☃" * 1_000_000) == -(-1_000_000 // longest)
    assert unknown.ours.fewest_tokens("☃" * 1_000_000) == 0  # they are one unknown token
    assert unknown.ours.fewest_tokens("") == plain.ours.fewest_tokens("") == 0


@pytest.mark.parametrize("text", ["\0", "\x7f", " ", "   ", "\n", "\n\n\n", "\ud800", "\udfff\ud800", "\r\n", "\ufeff"])
def test_odd_prompts_come_back(plain: Pair, text: str) -> None:
    expected = re.sub("[\ud800-\udfff]", "\ufffd", text)
    assert plain.ours.decode(plain.ours.encode(text)) == expected


def test_empty_pieces_and_unused_ones_that_are_there_twice() -> None:
    """How converters pad a vocabulary."""
    pieces = ["a", "", "", "pad", "pad", "pad", "ab", "ab", "b"]
    types = [NORMAL, NORMAL, USER_DEFINED, UNUSED, UNUSED, UNUSED, NORMAL, USER_DEFINED, NORMAL]
    tokenizer = small(pieces, types=[UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + types, add_space_prefix=False)
    space = [3 + byte for byte in SPACE.encode()]
    assert tokenizer.encode("a ab b", bos=False) == [259, *space, 266, *space, 267]
    assert tokenizer.decode([259, 260, 261, 267]) == "ab"


@pytest.mark.parametrize("piece", ["<s>", "<unk>", "<0x41>"])
def test_special_pieces_are_no_result_of_text(piece: str) -> None:
    """Even where the vocabulary could merge its way to them."""
    pieces = [piece[: end + 1] for end in range(len(piece) - 1)] + sorted(set(piece[1:]) - {piece[0]})
    tokenizer = small(pieces, add_space_prefix=False)
    ids = tokenizer.encode(piece, bos=False)
    assert tokenizer.pieces.index(piece) not in ids
    assert tokenizer.decode(ids) == piece


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("pieces", {"pieces": [], "scores": [], "types": []}),
        ("scores", {"scores": [0.0] * 261}),
        ("types", {"types": [NORMAL] * 263}),
        ("scores", {"scores": [float("nan")] * 262}),
        ("scores", {"scores": [float("inf")] * 262}),
        ("scores", {"scores": ["1"] * 262}),
        ("types", {"types": [0] * 262}),
        ("types", {"types": [7] * 262}),
        ("types", {"types": [[]] * 262}),
        ("bos_id", {"bos_id": 262}),
        ("bos_id", {"bos_id": -1}),
        ("eos_id", {"eos_id": 1 << 40}),
        ("unknown_id", {"unknown_id": 262}),
        ("pieces", {"pieces": ["a", *BYTES, *"abcde"], "types": [NORMAL] * 262}),
        ("pieces", {"pieces": ["<unk>", "<s>", "</s>", *BYTES[:-1], "<0x00>", *"abc"]}),
        ("pieces", {"pieces": ["a" * 1025, *BYTES, *"abcde"]}),
        ("pieces", {"pieces": [1, *BYTES, *"abcde"]}),
        ("pieces", {"types": [BYTE] * 262}),
    ],
)
def test_wrong_vocabulary(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError) as caught:
        small(**changes)
    assert caught.value.field == field


@pytest.mark.parametrize("id", [-1, 262, 1 << 40])
def test_no_such_token(id: int) -> None:
    with pytest.raises(IndexError):
        small().decode([id])
