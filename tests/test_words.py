"""The tokenizer at work: a text's words and their merges are those that encode it, of either kind of vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabella.bytelevel import CHARACTERS, ByteLevel
from fabella.sentencepiece import SentencePiece
from fabella.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Tokenizer, Word

PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "ab", "▁a", "▁ab", "bc", "abc", "▁abc", "<x>"]
TYPES = [UNKNOWN, CONTROL, CONTROL, *[NORMAL] * 10, USER_DEFINED]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def scored(types: list[int] = TYPES, with_bytes: bool = True, **more: Any) -> SentencePiece:
    pieces = PIECES + (BYTES if with_bytes else [])
    scores = [0.0] * 3 + [-float(id) for id in range(len(pieces) - 3)]
    return SentencePiece(pieces, scores, types + [BYTE] * (len(pieces) - len(PIECES)), **more)


def bytelevel(split: str = "gpt-2", prefix: bool = False) -> ByteLevel:
    merges = ["a b", "ab c", "Ġ abc", "Ġ a", "Ã ©"]
    pieces = [*CHARACTERS.values(), "ab", "abc", "Ġabc", "Ġa", "Ã©", "<e>", "<x>"]
    types = [NORMAL] * (len(pieces) - 2) + [CONTROL, USER_DEFINED]
    return ByteLevel(pieces, types, merges, split, len(pieces) - 2, len(pieces) - 2, add_space_prefix=prefix)


TOKENIZERS = {
    "scored": scored(),
    "without a space at the front": scored(add_space_prefix=False),
    "without bytes": scored(with_bytes=False),
    "with an unused piece": scored([*TYPES[:11], UNUSED, *TYPES[12:]]),
    "byte-level": bytelevel(),
    "byte-level, whole words": bytelevel("llama3"),
    "byte-level, composed, with a space": bytelevel("qwen2", prefix=True),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(st.sampled_from("abc  é\n<x>ßあ🦊")))
def test_words_have_the_tokens_of_the_text_and_merges_lead_to_them(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    words = list(tokenizer.words(text))
    assert [id for word in words for id in word.ids] == tokenizer.encode(text)
    for word in words:
        assert all("".join(step) == word.text for step in word.steps)
        sizes = [len(step) for step in word.steps]
        assert sizes == list(range(sizes[0], sizes[0] - len(sizes), -1)), "one merge at a time"


def test_a_word_step_by_step() -> None:
    (word,) = scored().words("abc", bos=False)
    assert word == Word("▁abc", [12], [["▁", "a", "b", "c"], ["▁", "ab", "c"], ["▁ab", "c"], ["▁abc"]])
    (word,) = bytelevel().words("abc")
    assert word.steps == [["a", "b", "c"], ["ab", "c"], ["abc"]]
    assert word.ids == [bytelevel().pieces.index("abc")]


def test_control_pieces_are_words_where_they_count() -> None:
    tokenizer = scored()
    assert [word.text for word in tokenizer.words("a</s>b", special=True)] == ["<s>", "▁a", "</s>", "▁b"]
    assert [word.text for word in tokenizer.words("a", bos=False)] == ["▁a"]
    assert [word.text for word in tokenizer.words("a<x>b", bos=False)] == ["▁a", "<x>", "b"]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(before=st.text(st.sampled_from("abc é"), min_size=1), text=st.text(st.sampled_from("abc é")))
def test_a_text_that_goes_on_is_decoded_behind_the_other(name: str, before: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    if name == "without bytes" or name.startswith("byte-level, composed"):
        return  # "é" is unknown; is composed
    ids = [*tokenizer.encode(before, bos=False), *tokenizer.encode_on(text)]
    assert tokenizer.decode(ids) == before + text


def every(tokenizer: Tokenizer) -> list[tuple[str, str, bytes]]:
    return [(token.kind, token.text, token.data) for token in map(tokenizer.token, range(len(tokenizer)))]


def test_each_token_can_be_read() -> None:
    seen = every(scored())
    assert seen[:5] == [
        ("unknown", "<unk>", b" \xe2\x81\x87 "),
        ("control", "<s>", b""),
        ("control", "</s>", b""),
        ("text", " ", b" "),
        ("text", "a", b"a"),
    ]
    assert seen[12] == ("text", " abc", b" abc")
    assert seen[14 + 0xE2] == ("bytes", "⟨E2⟩", b"\xe2")
    assert seen[14 + 0x41] == ("text", "A", b"A")
    tokenizer = bytelevel()
    by_piece = dict(zip(tokenizer.pieces, every(tokenizer), strict=True))
    assert by_piece["Ġabc"] == ("text", " abc", b" abc")
    assert by_piece["Ã"] == ("bytes", "⟨C3⟩", b"\xc3")
    assert by_piece["Ã©"] == ("text", "é", "é".encode())
    assert by_piece["<e>"] == ("control", "<e>", b"")
    assert by_piece["<x>"] == ("text", "<x>", b"<x>")
    for id in (-1, len(tokenizer)):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            tokenizer.token(id)
