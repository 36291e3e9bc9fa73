"""Has a model write texts for another one to learn from: distillation where the two share no vocabulary.

    python -m train.write TEACHER stories.txt -o written/stories.txt.xz --stories 10000

The teacher writes many texts at once (teller.py). Those are kept that are like the documents of TEXT, which it has
learned from, but near to none of them, nor to each other, nor to the held-out text (filters.py). A student then learns
from what was written, alone or beside the text (train.train and train.distill take a folder of both), measured on the
same held-out text: --valid, or the end of TEXT that train.train holds out.

With --best-of N at most one of N is kept: of those that are written together, the ones that the teacher itself finds
likeliest. What a small model writes breaks where it has led itself to what it knows little of, and such texts are
unlikely as a whole; so a model that learns from its own likeliest texts breaks fewer (LOG.md). They go on from the
first tokens of TEXT's documents, which are not judged with them, and are balanced (filters.py).

Ctrl-C stops; the same command with --resume goes on where it was, and writes what it would have written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch

from fabella.console import INTERRUPTED, run_command
from fabella.errors import FabellaError
from fabella.tokenizer import Tokenizer

from .evaluate import Window, first_tokens, nats_of_windows
from .files import check_output, replacing
from .filters import UNFINISHED, UNLIKELY, Filters
from .load import hash_model, load_model
from .loop import choose_precision, seed_torch
from .model import Llama
from .options import LARGEST_SEED, number, whole_number
from .progress import Progress
from .sources import END_OF_TEXT, FIELD, read_documents
from .teller import tell
from .text import hash_documents
from .train import read_text

AT_ONCE = {"cpu": 64, "cuda": 1024}  # texts that are written together
LONGEST = 1024  # tokens, unless the command says otherwise
LENGTH_PENALTY = 0.5  # exponent; without it the shortest text would be the likeliest
FIRST_TOKENS = 12  # of a document: what texts begin with, with --best-of
MOST_BEGINNINGS = 100_000  # they are kept in memory
HOPELESS = 20  # times as many texts as are written together, ...
FEWEST_KEPT = 0.01  # ... after which so many must have been worth keeping


@dataclass
class State:
    """How far a writing has come: what is kept beside the file, after every batch of texts."""

    key: str  # a hash of all that decides about what is written
    batches: int = 0
    size: int = 0  # bytes of the file that belong to these batches
    kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # how many were not kept, by why

    @property
    def written(self) -> int:
        """How many texts were written, kept or not."""
        return self.kept + sum(self.reasons.values())

    @property
    def judged(self) -> int:
        """Of how many it was asked whether they are worth keeping."""
        return max(1, self.written - self.reasons.get(UNLIKELY, 0))

    def save(self, path: Path) -> None:
        """Save in place of the state so far. Raises ``OSError``."""
        with replacing(path) as half:
            half.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> State:
        """What `save` has written. Raises ``OSError``, or ``ValueError`` if it is something else."""
        try:
            state = cls(**json.loads(path.read_text()))
            counts = [state.batches, state.size, state.kept, *state.reasons.values()]
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError("a count is none")
            return state
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: does not say how far the writing has come, as it should") from error


class Writing:
    """A file of texts that grows, and how far it has come."""

    def __init__(self, path: Path, key: str, resume: bool) -> None:
        """Begin ``path``, or go on with it. Raises ``OSError`` or ``ValueError``, in words, if that cannot be."""
        self.path, self.state_path = path, path.with_name(path.name + ".state")
        check_output(path)
        check_output(self.state_path)
        if not resume:
            if path.exists():
                raise FileExistsError(f"{path}: is there already; go on with --resume, or choose another -o")
            self.state = State(key)
            return
        if not path.exists() or not self.state_path.exists():
            raise FileNotFoundError(f"{path}: there is no writing to go on with; begin without --resume")
        self.state = State.load(self.state_path)
        if self.state.key != key:
            raise ValueError(
                f"{path}: was begun with another teacher, text, option or device (CPU or GPU); only --stories "
                "may be another number"
            )
        if path.stat().st_size < self.state.size:
            raise ValueError(f"{path}: is shorter than it was; begin anew, in another file")
        os.truncate(path, self.state.size)  # what an interruption has left of a batch

    def add(self, texts: list[str], reasons: Counter[str]) -> None:
        """Add the texts of a batch, and count those that are not kept. Raises ``OSError``."""
        state = self.state
        content = "".join(f"{text}\n{END_OF_TEXT}\n" for text in texts).encode()
        if self.path.suffix == ".xz" and content:
            content = lzma.compress(content)
        with open(self.path, "ab") as file:
            if file.tell() != state.size:
                raise OSError(f"{self.path}: was changed by somebody else; --resume goes on from the last batch")
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        state.batches += 1
        state.size += len(content)
        state.kept += len(texts)
        state.reasons = dict(Counter(state.reasons) + reasons)
        state.save(self.state_path)


def main() -> int:
    """The command line. Returns the exit status."""

    def body() -> int:
        options = parse_arguments()
        try:
            write(options)
        except KeyboardInterrupt:
            print(f"write: stopped; the same command with --resume goes on with {options.output}", file=sys.stderr)
            return INTERRUPTED
        return 0

    return run_command("write", body, (OSError, ValueError, FloatingPointError, MemoryError, FabellaError))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m train.write",
        description="Have a model write texts like those it has learned from. Ctrl-C stops; --resume goes on.",
    )
    add = parser.add_argument
    add("teacher", type=Path, help="the --out folder of a training, or a GGUF file of the plain Llama family")
    add("text", type=Path, help="what it has learned from, as train.train takes it")
    add("-o", dest="output", metavar="FILE", type=Path, required=True, help=".txt or .txt.xz to write")
    add("--field", default=FIELD, help=f"of .jsonl and .parquet files, that holds the text (default: {FIELD})")
    add("--valid", type=Path, help="held-out text (default: the last 5%% of the text)")
    add("--stories", type=whole_number(1, 10**9), help="how many to keep (default: as many as the text has)")
    add(
        "--beginnings",
        type=Path,
        metavar="FILE",
        help="what texts begin with, a line each, in turns (default: nothing; with --best-of, as TEXT's documents)",
    )
    add(
        "--best-of",
        type=whole_number(1, AT_ONCE["cpu"]),
        default=1,
        metavar="N",
        help="keep at most one of N, the likeliest (default 1: all)",
    )
    add("-t", dest="temperature", type=number(0, 100), default=1.0, help="default 1.0")
    add("-p", dest="top_p", type=number(0, 1), default=1.0, help="top-p, 1 = off (default 1)")
    add(
        "--min-p", type=number(0, 1), default=0.0, help="least part of the likeliest token's probability (default: off)"
    )
    add("-n", dest="length", type=whole_number(2, 1 << 20), help=f"tokens (default: the context, at most {LONGEST})")
    add("-s", dest="seed", type=whole_number(0, LARGEST_SEED), default=1, help="default 1")
    add("--resume", action="store_true", help="go on with what is in -o")
    return parser.parse_args(arguments)


def write(options: argparse.Namespace) -> State:
    """Write as the command's ``options`` say; return what came of it.

    Raises, in words, ``OSError`` or ``ValueError`` (unusable text, teacher or options; hardly anything that the teacher
    writes is worth keeping) and ``FloatingPointError``. Whatever ends it, --resume goes on.
    """
    check_output(options.output)
    model, tokenizer = load_model(options.teacher)
    length = options.length or min(LONGEST, model.config.seq_len)
    if length > model.config.seq_len:
        raise ValueError(f"-n {length}: the teacher's context holds {model.config.seq_len} tokens")
    learned, held_out = read_text(options)
    if options.beginnings is None and options.best_of > 1:
        beginnings = beginnings_of(learned, tokenizer)
        if not beginnings:
            raise ValueError(f"{options.text}: no document has {FIRST_TOKENS} tokens to go on from; give --beginnings")
        if length <= len(beginnings[0]):
            raise ValueError(f"-n {length}: is too short for texts that begin with {FIRST_TOKENS} tokens")
    else:
        beginnings = read_beginnings(options.beginnings, tokenizer, length)
    stories = options.stories or max(1, learned.n_documents // options.best_of)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    at_once = AT_ONCE[device]
    texts = f"{hash_model(model)} {learned.text.hash} {hash_documents(held_out)}"
    picking = options.temperature, options.top_p, options.min_p, options.seed
    decides = repr((texts, beginnings, length, at_once, options.best_of, picking))
    writing = Writing(options.output, hashlib.sha256(decides.encode()).hexdigest(), options.resume)
    state = writing.state
    filters = Filters(learned, held_out, balanced=options.best_of > 1)
    if state.kept:
        for story in read_documents(options.output):
            filters.keep(story)
    model.to(device)
    with Progress("writing", stories, " stories", done=state.kept, brief=False) as progress:
        while state.kept < stories:
            kept: list[str] = []
            reasons = Counter[str]()
            for told in write_batch(model, tokenizer, beginnings, options, length, at_once, state.batches):
                if told is None:
                    reasons[UNFINISHED] += 1
                elif len(kept) == at_once // options.best_of:
                    reasons[UNLIKELY] += 1
                elif reason := filters.refuse(told):
                    reasons[reason] += 1
                else:
                    filters.keep(told)
                    kept.append(told)
            writing.add(kept, reasons)
            progress.update(len(kept), f"{state.kept / state.judged:.0%} worth keeping")
            if state.written >= HOPELESS * at_once and state.kept < FEWEST_KEPT * state.judged:
                raise ValueError(f"{options.teacher}: hardly a text that it writes is worth keeping. {describe(state)}")
    print(f"{options.output}: {state.kept:,} texts, {state.size:,} bytes. {describe(state)}")
    return state


def write_batch(
    model: Llama,
    tokenizer: Tokenizer,
    beginnings: list[list[int]],
    options: argparse.Namespace,
    length: int,
    count: int,
    batch: int,
) -> list[str | None]:
    """The texts of a batch, which follow from the seed and the batch's number alone; None: one that did not end.

    With --best-of the likeliest is the first: that with the largest logarithm of the probability, behind the beginning,
    over the length to the power of `LENGTH_PENALTY` (a simpler form of that of Y. Wu et al., 2016,
    https://arxiv.org/abs/1609.08144); those that did not end are the last.
    """
    seed_torch(options.seed, batch)
    begin = [beginnings[(batch * count + number) % len(beginnings)] for number in range(count)]
    told = tell(model, begin, tokenizer.stop_ids, length, options.temperature, options.top_p, options.min_p)
    texts = [
        tokenizer.decode(ids[:-1]).strip("\n") if ids[-1] in tokenizer.stop_ids and len(ids) > len(start) else None
        for ids, start in zip(told, begin, strict=True)
    ]
    if options.best_of == 1:
        return texts
    ended = [
        Window(ids, len(ids) - len(start), number)
        for number, (ids, start) in enumerate(zip(told, begin, strict=True))
        if texts[number] is not None
    ]
    return [texts[number] for number in likeliest_first(model, ended)] + [None] * (count - len(ended))


def likeliest_first(model: Llama, windows: list[Window]) -> list[int]:
    """The numbers (``document``) of ``windows``, the likeliest for its length first: by what counts of each."""
    unlikely: dict[int, float] = {}
    with choose_precision(model.token_embd.weight.device.type):
        for batch, nats in nats_of_windows(model, windows):
            for window, found in zip(batch, nats.tolist(), strict=True):
                unlikely[window.document] = found / window.counted**LENGTH_PENALTY
    return sorted(unlikely, key=unlikely.__getitem__)


def read_beginnings(path: Path | None, tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """The tokens that texts begin with, BOS first. Raises ``OSError`` or ``ValueError``, in words."""
    if path is None:
        return [[tokenizer.bos_id]]
    lines = [line for document in read_documents(path) for line in document.split("\n") if line.strip()]
    beginnings = [[tokenizer.bos_id, *tokenizer.encode(line, bos=False)] for line in lines]
    for line, beginning in zip(lines, beginnings, strict=True):
        if len(beginning) >= length:
            raise ValueError(f"{path}: {line[:40]!r} begins a text with {len(beginning)} tokens, of {length} in all")
    return beginnings


def beginnings_of(documents: Iterable[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The first `FIRST_TOKENS` of each document, BOS before them; a document of fewer is left out."""
    found = []
    for document in islice(documents, MOST_BEGINNINGS):
        ids = first_tokens(document, tokenizer, FIRST_TOKENS)
        if len(ids) == FIRST_TOKENS:
            found.append([tokenizer.bos_id, *ids])
    return found


def describe(state: State) -> str:
    """How many of the texts were kept, and why the others were not."""
    reasons = [f"{count:,} {reason}" for reason, count in sorted(state.reasons.items())]
    return f"Of {state.written:,} written not kept: {', '.join(reasons) or 'none'}."


if __name__ == "__main__":
    sys.exit(main())
