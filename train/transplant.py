"""Gives a model the vocabulary of another one, so that it can teach it.

    python -m train.transplant base.gguf out/stories -o teacher.gguf

Between its embedding and its output a model computes with thoughts of its own, and those stay as they are. Only the
embedding, and the output matrix where it is another one, have a row for each token: a new token that is spelled like
one that the model had gets its row; any other gets the mean of the rows of the parts that spell it, the longest first.

The result knows its language, but is not used to being told it in these pieces: fine-tune it on the text before it
teaches (python -m train.finetune teacher.gguf stories.txt --full --out out/teacher).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fabella.bytelevel import BYTES, ByteLevel
from fabella.console import run_command
from fabella.errors import FabellaError
from fabella.formats import STORED
from fabella.gguf import read_gguf
from fabella.sentencepiece import SentencePiece
from fabella.sources import FileSource
from fabella.tokenizer import BYTE, CONTROL, UNKNOWN, Tokenizer, find

from .export import DEFAULT_FORMAT, save_gguf, unstorable
from .files import check_output
from .load import load_model, naming
from .model import Llama

MATRICES = ("token_embd.weight", "output.weight")  # those with a row for each token
KEPT = ("general.name", "general.license", "general.datasets")  # of what a file says of itself


def spellings(tokenizer: Tokenizer) -> list[bytes | None]:
    """The UTF-8 bytes that each token spells; None of one that spells none, as BOS."""
    if not isinstance(tokenizer, ByteLevel | SentencePiece):
        raise ValueError("transplant: only SentencePiece's vocabularies and byte-level ones are known")

    def spell(piece: str, type: int) -> bytes | None:
        if type in (CONTROL, UNKNOWN) or not piece:
            return None
        if type == BYTE:
            return bytes([int(piece[3:5], 16)])
        if isinstance(tokenizer, SentencePiece):
            return piece.replace(tokenizer.space, " ").encode()
        # A piece of a character that writes no byte is text as such.
        return bytes(BYTES[c] for c in piece) if all(c in BYTES for c in piece) else piece.encode()

    return [spell(*token) for token in zip(tokenizer.pieces, tokenizer.types, strict=True)]


def match(old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """For each token of ``new``, the tokens of ``old`` that it is made of; all of them, if there are none.

    BOS is made of BOS, EOS of EOS, unknown of unknown and a byte of that byte, where both have such tokens.
    """
    spelled = spellings(old)
    ids = {spelling: id for id, spelling in enumerate(spelled) if spelling is not None and old.types[id] != BYTE}
    bytes_of = {spelling: id for id in find(BYTE, old.types) if (spelling := spelled[id]) is not None}
    ids = bytes_of | ids  # of two that spell the same, the one that texts have
    longest = max(map(len, ids), default=0)

    def parts(spelling: bytes) -> Iterator[int]:
        """The old tokens that spell it, from its front the longest each time; what none of them spells is left out."""
        at = 0
        while at < len(spelling):
            ends = range(min(len(spelling), at + longest), at, -1)
            end = next((end for end in ends if spelling[at:end] in ids), None)
            if end is not None:
                yield ids[spelling[at:end]]
            at = end or at + 1

    def same(spelling: bytes | None, type: int) -> list[int]:
        if spelling is None:
            return []
        return [bytes_of[spelling]] if type == BYTE and spelling in bytes_of else list(parts(spelling))

    made_of = [same(*token) for token in zip(spellings(new), new.types, strict=True)]
    made_of[new.bos_id], made_of[new.eos_id] = [old.bos_id], [old.eos_id]
    for one, other in zip(find(UNKNOWN, new.types), find(UNKNOWN, old.types), strict=False):
        made_of[one] = [other]
    everything = list(range(len(old)))
    return [parts or everything for parts in made_of]


def transplant(model: Llama, old: Tokenizer, new: Tokenizer) -> Llama:
    """The model, which speaks ``old``, with the vocabulary ``new``."""
    made_of = match(old, new)
    weights = dict(model.state_dict())

    def row(matrix: Tensor, parts: list[int]) -> Tensor:
        return matrix.mean(0) if len(parts) == len(matrix) else matrix[parts].mean(0)

    for name in MATRICES:
        if name in weights:
            weights[name] = torch.stack([row(weights[name], parts) for parts in made_of])
    changed = Llama(replace(model.config, vocab_size=len(new)))
    changed.load_state_dict(weights)
    return changed.eval()


def main() -> int:
    """The command line. Returns the exit status."""
    return run_command("transplant", lambda: run(parse_arguments()), (OSError, ValueError, FabellaError))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m train.transplant", description="Give a model the vocabulary of another one."
    )
    add = parser.add_argument
    add("model", type=Path, help="the --out folder of a training, or a GGUF file of the plain Llama family")
    add("vocabulary", type=Path, help="the --out folder of a training, or a GGUF file, that has it")
    add("-o", dest="output", metavar="FILE", type=Path, required=True, help=".gguf to write")
    add("--format", choices=STORED, default=DEFAULT_FORMAT, help=f"of the matrices (default: {DEFAULT_FORMAT})")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Write the model that ``options`` ask for. Raises ``OSError``, ``ValueError`` or ``FabellaError``, in words."""
    inputs = options.model, options.vocabulary
    check_output(options.output)
    if any(path.exists() and options.output.exists() and path.samefile(options.output) for path in inputs):
        raise ValueError(f"{options.output}: is what it is made of; write to another file")
    model, old = load_model(options.model)
    new = load_vocabulary(options.vocabulary)
    if reason := unstorable(model.config, options.format):
        raise ValueError(f"{reason} (--format)")
    made_of = match(old, new)
    save_gguf(transplant(model, old, new), new, options.output, options.format, about_of(options.model))
    same = sum(len(parts) == 1 for parts in made_of)
    print(
        f"{options.output}: {len(new):,} tokens in the place of {len(old):,}; {same:,} have the row of an old one. "
        "Fine-tune it before it teaches (python -m train.finetune --full)."
    )


def load_vocabulary(path: Path) -> Tokenizer:
    """The tokenizer of a run folder or of a GGUF file, whatever model is in it."""
    if path.is_dir():
        return load_model(path)[1]
    with naming(path), FileSource(path) as source:
        return read_gguf(source).tokenizer


def about_of(path: Path) -> dict[str, object]:
    """What a model's file says of itself and goes into a changed one, too."""
    if path.is_dir():
        return {"general.name": path.resolve().name.encode("utf-8", "replace").decode()}
    with FileSource(path) as source:
        metadata = read_gguf(source).metadata
    return {key: metadata[key] for key in KEPT if key in metadata}


if __name__ == "__main__":
    sys.exit(main())
