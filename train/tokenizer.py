"""Trains a SentencePiece BPE tokenizer on the documents of a text file.

The settings are those of Llama's tokenizer: text is taken as it is (no Unicode normalisation), a space is put before
the first word, digits stand alone, and a character outside the vocabulary is spelled in UTF-8 bytes, so that any text
can be encoded. Ids: 0 = unknown, 1 = BOS (begins a document), 2 = EOS (ends it), then 256 bytes, merges, characters.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

BOS, EOS = 1, 2
LONGEST_LINE = 10_000  # in characters; SentencePiece leaves out lines longer than its limit, and does not say so


def lines_of(documents: Iterable[str]) -> Iterator[str]:
    """The documents' lines, the longer ones cut at a space."""
    for document in documents:
        for line in document.split("\n"):
            while len(line) > LONGEST_LINE:
                cut = line.rfind(" ", 1, LONGEST_LINE)
                cut = cut if cut > 0 else LONGEST_LINE
                yield line[:cut]
                line = line[cut:]
            if line:
                yield line


def train_tokenizer(documents: Iterable[str], vocab_size: int, path: Path) -> None:
    """Train on ``documents`` and write the SentencePiece model to ``path``.

    Raises ``ValueError`` if the text cannot fill (or is too varied for) a vocabulary of ``vocab_size`` tokens.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines_of(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.9999,  # rarer characters are spelled in bytes
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            max_sentence_length=8 * LONGEST_LINE,  # in bytes
            unk_id=0,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=-1,
            num_threads=1,  # the same text gives the same tokenizer
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"--vocab-size: no tokenizer of {vocab_size} tokens fits this text ({reason})") from error
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(model.getvalue())
    temporary.replace(path)


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Read a SentencePiece model file; ``FileNotFoundError`` or ``ValueError`` if that cannot be done."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such tokenizer")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path}: not a SentencePiece model ({error})") from error
