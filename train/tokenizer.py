"""Trains a SentencePiece BPE tokenizer on the documents of a text file.

The settings are those of Llama's tokenizer: text is taken as it is (no Unicode normalisation), a space is put before
the first word, digits stand alone, and a character outside the vocabulary is spelled in UTF-8 bytes, so that any text
can be encoded. Ids: 0 = unknown, 1 = BOS (begins a document), 2 = EOS (ends it), then 256 bytes, merges, characters.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, islice
from pathlib import Path

import sentencepiece

from fabella import tokenizer as pieces
from fabella.sentencepiece import SentencePiece

from . import explain
from .files import replacing
from .progress import Progress, say

BOS, EOS = 1, 2
SMALLEST_VOCABULARY = 300
SPECIAL = 3 + 256  # tokens that are not learned: unknown, BOS, EOS and the bytes
LONGEST_LINE = 10_000  # in characters; SentencePiece leaves out lines longer than its limit, and does not say so
MOST_LEARNED_FROM = 50_000_000  # characters; of a longer text, documents from all over it
ALPHABET = 256  # characters of which a small vocabulary may consist for the most part
COVERAGE = 0.9999  # of the text's characters; rarer ones are spelled in bytes
COVERAGE_OF_MANY = 0.995  # of those of a script of thousands of characters, as much as a vocabulary should hold

UNKNOWN = "▅"

# SentencePiece fails when it learns one of its own tokens' names from the text; cut in two, none is learned.
NAMES = re.compile(r"(?<=<)(?=(?:s|/s|unk|0x[0-9A-F]{2})>)")


def cut_text(text: str, longest: int) -> Iterator[str]:
    """The text in pieces of at most ``longest`` characters, cut before a space where there is one."""
    start = 0
    while len(text) - start > longest:
        cut = text.rfind(" ", start + 1, start + longest)
        cut = cut if cut > 0 else start + longest
        yield text[start:cut]
        start = cut
    yield text[start:]


def lines_of(documents: Iterable[str]) -> Iterator[str]:
    """The documents' lines, the longer ones cut at a space."""
    for document in documents:
        for line in document.split("\n"):
            if line:
                yield from cut_text(line, LONGEST_LINE)


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, path: Path, counts: Counter[str] | None = None, exactly: bool = True
) -> None:
    """Train on ``documents``, which are gone through more than once, and write the SentencePiece model to ``path``.

    ``counts`` are those of the characters, if they are known. A text that cannot fill a vocabulary of ``vocab_size``
    tokens gets as large a one as it can fill, or, if it is to be ``exactly`` so large, a ``ValueError``. If it has
    more characters than an alphabet and than half the vocabulary has room for, the frequent ones get that half, and
    the others are spelled in bytes.
    """
    counts = counts or Counter("".join(lines_of(documents)))
    size = counts.total()
    sample = [*documents] if size <= MOST_LEARNED_FROM else [*islice(documents, 0, None, -(-size // MOST_LEARNED_FROM))]
    try:
        model = _train_fitting(sample, vocab_size, counts)
    except TooLarge as error:
        if exactly or error.fits < SMALLEST_VOCABULARY:
            raise
        model = _train_fitting(sample, error.fits, counts)
    with replacing(path, path.with_suffix(".tmp")) as half:
        half.write_bytes(model)


class TooLarge(ValueError):
    """The text does not fill the vocabulary: ``fits`` tokens are all that it gives."""

    def __init__(self, vocab_size: int, fits: int) -> None:
        least = f"only {fits} can be learned from it: it is too short, or too uniform, to train on"
        advice = f"at most {fits} do" if fits >= SMALLEST_VOCABULARY else least
        super().__init__(f"--vocab-size: this text does not fill {vocab_size} tokens; {advice}")
        self.fits = fits


class TooManyCharacters(ValueError):
    """The text has more different characters than the vocabulary has room for."""


def by_frequency(counts: Counter[str]) -> list[str]:
    """The characters, those that every tokenizer has first, then the frequent ones."""
    return sorted(counts.keys() - {"\n"}, key=lambda character: (character not in " 0", -counts[character], character))


def count_needed(counts: Counter[str], coverage: float = COVERAGE) -> int:
    """How many of the most frequent characters make up ``coverage`` of a text."""
    total = coverage * counts.total()
    return next((n for n, sum in enumerate(accumulate(sorted(counts.values(), reverse=True)), 1) if sum >= total), 0)


def _train_fitting(documents: Sequence[str], vocab_size: int, counts: Counter[str]) -> bytes:
    room = vocab_size - SPECIAL
    kept = room // 2
    if count_needed(counts) <= max(kept, ALPHABET):
        with suppress(TooManyCharacters):
            return _train(documents, vocab_size)
    characters = by_frequency(counts)
    try:
        model = _train(documents, vocab_size, rare=characters[kept:])
    except TooLarge as error:  # so few tokens of several characters are in the text: more room for single ones
        kept = room - (error.fits - SPECIAL - kept)
        if kept >= len(characters):
            raise
        model = _train(documents, vocab_size, rare=characters[kept:])
    say(
        f"This text has {len(characters):,} different characters. The {kept:,} most frequent ones are tokens, the "
        "others are spelled in bytes; a larger --vocab-size would hold more."
    )
    return model


def _train(documents: Sequence[str], vocab_size: int, rare: Sequence[str] = ()) -> bytes:
    """Train. The ``rare`` characters become no tokens, or else the rarest that `COVERAGE` says."""
    # SentencePiece itself leaves out 2 % of a text at most. A digit stands alone: no token is learned across it.
    # And it leaves out every line with the character that it writes for unknown ones itself.
    digits = dict.fromkeys(map(ord, rare), "0")
    stopped: list[BaseException] = []

    def lines() -> Iterator[str]:
        """The text. SentencePiece would turn what stops it into an error of its own."""
        try:
            with Progress("tokenizer", sum(map(len, documents)), " characters") as progress:
                for document in documents:
                    for line in lines_of([document]):
                        line = line.replace(UNKNOWN, "0")
                        yield from NAMES.split(line.translate(digits) if digits else line)
                        progress.update(len(line))
            if progress.bar.n > 10_000_000:
                say("Training the tokenizer...")  # in C++, which shows nothing for some seconds
        except BaseException as error:
            stopped.append(error)
            raise

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0 if rare else COVERAGE,
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
        if stopped:
            raise stopped[0] from None
        if too_high := re.search(r"too high.*<= (\d+)", str(error)):
            raise TooLarge(vocab_size, int(too_high[1])) from error
        if "required_chars" in str(error):
            raise TooManyCharacters from error
        raise ValueError(f"--vocab-size: no tokenizer of {vocab_size} tokens can be made of this text") from error
    return model.getvalue()


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Read a SentencePiece model file; ``OSError`` or ``ValueError``, in words, if that cannot be done."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such tokenizer")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError as error:
        raise ValueError(f"{path}: not a SentencePiece model") from error


def as_tokenizer(trained: sentencepiece.SentencePieceProcessor) -> SentencePiece:
    """The product's own tokenizer with the vocabulary of a SentencePiece model."""
    ids = range(trained.vocab_size())

    def type_of(id: int) -> int:
        if trained.is_unknown(id):
            return pieces.UNKNOWN
        if trained.is_control(id):
            return pieces.CONTROL
        return pieces.BYTE if trained.is_byte(id) else pieces.NORMAL

    return SentencePiece(
        [trained.id_to_piece(id) for id in ids],
        [trained.get_score(id) for id in ids],
        [type_of(id) for id in ids],
        bos_id=trained.bos_id(),
        eos_id=trained.eos_id(),
        unknown_id=trained.unk_id(),
    )


if __name__ == "__main__":
    explain(__doc__)
