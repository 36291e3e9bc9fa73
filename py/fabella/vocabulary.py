"""The tokenizer in GGUF's metadata: which kind it is, its pieces, and the tokens that mean something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fabella.errors import ModelFileError
from fabella.metadata import get, quoted
from fabella.sentencepiece import SPACE, SentencePiece
from fabella.tokenizer import CONTROL, NORMAL, USER_DEFINED, Tokenizer, find

KEY = "tokenizer.ggml."
MODEL = KEY + "model"
NO_TOKEN = (1 << 32) - 1  # -1 as an unsigned number: how llama.cpp writes an id that there is not
# Tokens that end a text, by what converters and llama.cpp call them, whatever else the metadata says.
ENDS = frozenset(
    """
    </s> <eos> [EOS] <|endoftext|> <|end_of_text|> <EOT> [EOT] <|eot_id|> <|eom_id|> <|im_end|> <|end|> <end_of_turn>
    <end_of_utterance>
    """.split()
)


# What the tokenizers call their parameters, and the keys of others.
FIELDS = {"pieces": "tokens", "types": "token_type", "split": "pre"} | {
    f"{name}_id": f"{name}_token_id" for name in ("bos", "eos", "unknown")
}


def check_kind(metadata: Mapping[str, Any]) -> None:
    """Raise ModelFileError if the file's tokenizer is of a kind that we do not have."""
    model = get(metadata, MODEL, str)
    if model not in KINDS:
        raise ModelFileError(
            MODEL, f"is {quoted(model)}; only 'llama' (SentencePiece) and 'gpt2' (byte-level BPE) are supported"
        )
    if model == "gpt2":
        from fabella.bytelevel import SPLITS  # which a page whose model is of the other kind need not wait for

        split = get(metadata, KEY + "pre", str)
        if split not in SPLITS:
            names = ", ".join(sorted(SPLITS))
            raise ModelFileError(KEY + "pre", f"is {quoted(split)}; only {names} are supported")


def tokenizer_of(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer; where a converter leaves something out, as llama.cpp takes it then.

    Raises
    ------
    ModelFileError
        `field` is the key.
    """
    try:
        tokenizer = KINDS[get(metadata, MODEL, str)](metadata)
        tokenizer.stop_ids |= _other_ends(metadata, tokenizer)
        return tokenizer
    except ModelFileError as error:
        field = error.field if error.field.startswith(KEY) else KEY + FIELDS.get(error.field, error.field)
        raise ModelFileError(field, error.problem) from None


def _sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    pieces, types = _pieces(metadata)
    return SentencePiece(
        pieces=pieces,
        scores=get(metadata, KEY + "scores", list, default=[0.0] * len(pieces)),
        types=types,
        bos_id=get(metadata, KEY + "bos_token_id", int, default=1),
        eos_id=get(metadata, KEY + "eos_token_id", int, default=2),
        unknown_id=get(metadata, KEY + "unknown_token_id", int, default=0),
        add_bos=get(metadata, KEY + "add_bos_token", bool, default=True),
        add_space_prefix=get(metadata, KEY + "add_space_prefix", bool, default=True),
    )


def _bytelevel(metadata: Mapping[str, Any]) -> Tokenizer:
    from fabella.bytelevel import ADD_BOS, ByteLevel

    pieces, types = _pieces(metadata)
    split = get(metadata, KEY + "pre", str)
    eos_id = get(metadata, KEY + "eos_token_id", int)
    return ByteLevel(
        pieces=pieces,
        types=types,
        merges=get(metadata, KEY + "merges", list),
        split=split,
        bos_id=get(metadata, KEY + "bos_token_id", int, default=eos_id),
        eos_id=eos_id,
        add_bos=get(metadata, KEY + "add_bos_token", bool, default=split in ADD_BOS),
        add_space_prefix=get(metadata, KEY + "add_space_prefix", bool, default=False),
    )


KINDS = {"llama": _sentencepiece, "gpt2": _bytelevel}


def _pieces(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The pieces and their types. What ends a text is no piece that people could type, whatever a converter thought."""
    pieces: list[str] = get(metadata, KEY + "tokens", list)
    types: list[int] = get(metadata, KEY + "token_type", list, default=[NORMAL] * len(pieces))
    ends = [id for id in find(USER_DEFINED, types) if id < len(pieces) and pieces[id] in ENDS]
    if ends:
        types = list(types)
        for id in ends:
            types[id] = CONTROL
    return pieces, types


def _other_ends(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens besides EOS that end a text: the ends of a turn and of a message, and those with an end's name."""
    pieces, types = tokenizer.pieces, tokenizer.types
    ends = {id for id in tokenizer.special if pieces[id] in ENDS and types[id] == CONTROL}
    for key in (KEY + "eot_token_id", KEY + "eom_token_id"):
        id = get(metadata, key, int, default=NO_TOKEN)
        if id in (-1, NO_TOKEN):
            continue
        if not 0 <= id < len(pieces):
            raise ModelFileError(key, f"is {id}, but the vocabulary's tokens are 0 to {len(pieces) - 1}")
        ends.add(id)
    return frozenset(ends)


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the metadata from which `tokenizer_of` makes the same tokenizer."""
    from fabella.bytelevel import ByteLevel

    ends = {
        KEY + "bos_token_id": tokenizer.bos_id,
        KEY + "eos_token_id": tokenizer.eos_id,
    }
    adds = {
        KEY + "add_bos_token": tokenizer.add_bos,
        KEY + "add_eos_token": False,
    }
    if isinstance(tokenizer, ByteLevel):
        return {
            MODEL: "gpt2",
            KEY + "pre": tokenizer.split,
            KEY + "tokens": tokenizer.pieces,
            KEY + "token_type": tokenizer.types,
            KEY + "merges": tokenizer.merges,
            **ends,
            **adds,
            KEY + "add_space_prefix": tokenizer.add_space_prefix,
        }
    scored = cast(SentencePiece, tokenizer)
    return {
        MODEL: "llama",
        KEY + "tokens": [piece.replace(scored.space, SPACE) for piece in scored.pieces],
        KEY + "scores": scored.scores,
        KEY + "token_type": scored.types,
        **ends,
        KEY + "unknown_token_id": scored.unknown_id,
        **adds,
        KEY + "add_space_prefix": scored.add_space_prefix,
        KEY + "remove_extra_whitespaces": False,
    }
