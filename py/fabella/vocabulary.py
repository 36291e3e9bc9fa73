"""The tokenizer in GGUF's metadata: its pieces, and the tokens that mean something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fabella.errors import ModelFileError
from fabella.metadata import get, quoted
from fabella.tokenizer import CONTROL, NORMAL, SPACE, USER_DEFINED, Tokenizer

NO_TOKEN = (1 << 32) - 1  # -1 as an unsigned number: how llama.cpp writes an id that there is not
# Tokens that end a text, by what converters and llama.cpp call them, whatever else the metadata says.
ENDS = frozenset(
    """
    </s> <eos> [EOS] <|endoftext|> <|end_of_text|> <EOT> [EOT] <|eot_id|> <|eom_id|> <|im_end|> <|end|> <end_of_turn>
    <end_of_utterance>
    """.split()
)


def check_kind(metadata: Mapping[str, Any]) -> None:
    """Raise ModelFileError if the file's tokenizer is of another kind."""
    key = "tokenizer.ggml.model"
    model = get(metadata, key, str)
    if model != "llama":
        raise ModelFileError(key, f"is {quoted(model)}; only 'llama' (SentencePiece BPE) is supported")


def tokenizer_of(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer; where a converter leaves something out, as llama.cpp takes it then.

    Raises
    ------
    ModelFileError
        `field` is the key.
    """
    key = "tokenizer.ggml."
    pieces = get(metadata, key + "tokens", list)
    types = get(metadata, key + "token_type", list, default=[NORMAL] * len(pieces))
    bos_id = get(metadata, key + "bos_token_id", int, default=1)
    eos_id = get(metadata, key + "eos_token_id", int, default=2)
    try:
        return Tokenizer(
            pieces=pieces,
            scores=get(metadata, key + "scores", list, default=[0.0] * len(pieces)),
            types=types,
            bos_id=bos_id,
            eos_id=eos_id,
            unknown_id=get(metadata, key + "unknown_token_id", int, default=0),
            stop_ids=frozenset((bos_id, eos_id)) | _other_ends(metadata, pieces, types),
            add_bos=get(metadata, key + "add_bos_token", bool, default=True),
            add_space_prefix=get(metadata, key + "add_space_prefix", bool, default=True),
        )
    except ModelFileError as error:
        names = {"pieces": "tokens", "types": "token_type"} | {
            f"{name}_id": f"{name}_token_id" for name in ("bos", "eos", "unknown")
        }
        field = error.field if error.field.startswith(key) else key + names.get(error.field, error.field)
        raise ModelFileError(field, error.problem) from None


def _other_ends(metadata: Mapping[str, Any], pieces: Sequence[str], types: Sequence[int]) -> frozenset[int]:
    """The tokens besides EOS that end a text: the ends of a turn and of a message, and those with an end's name."""
    ends = {
        id
        for id, (piece, type) in enumerate(zip(pieces, types, strict=False))
        if piece in ENDS and type in (CONTROL, USER_DEFINED)
    }
    for key in ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"):
        id = get(metadata, key, int, default=NO_TOKEN)
        if id in (-1, NO_TOKEN):
            continue
        if not 0 <= id < len(pieces):
            raise ModelFileError(key, f"is {id}, but the vocabulary's tokens are 0 to {len(pieces) - 1}")
        ends.add(id)
    return frozenset(ends)


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the metadata from which `tokenizer_of` makes the same tokenizer."""
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.replace(tokenizer.space, SPACE) for piece in tokenizer.pieces],
        "tokenizer.ggml.scores": tokenizer.scores,
        "tokenizer.ggml.token_type": tokenizer.types,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.unknown_token_id": tokenizer.unknown_id,
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": tokenizer.add_space_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }
