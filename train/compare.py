"""What a report is made of: models measured on a held-out text, and the stories that they tell, side by side.

Every model is told from by the engine, as the page does it: a run folder's model is written as GGUF, in F32, first.
Bits per byte are measured in PyTorch, from the file's weights as F32 numbers, because that reads many documents at
once; what PyTorch does not know (train/load.py) the engine measures.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fabella.architectures import parameter_count
from fabella.engine import Engine
from fabella.errors import FabellaError, PromptError
from fabella.formats import FLOATS, FORMATS, QUANTISED
from fabella.generate import Ending, Reason, generate
from fabella.gguf import read_gguf, write_gguf
from fabella.hosts import new_host
from fabella.model import Model
from fabella.modelfile import ModelFile
from fabella.models import open_model
from fabella.sampler import Settings
from fabella.session import Session
from fabella.sources import FileSource
from fabella.tokenizer import Tokenizer, well_formed

from . import explain
from .evaluate import bits_of_documents, hold_out
from .export import save_gguf, unstorable, writable
from .load import load_model, load_run
from .measures import NGram, found_in, ngrams, words
from .progress import Progress, say
from .quantize import fitting, quantize, read_weights
from .sources import documents_of
from .tokenizer import as_tokenizer

PROMPTS = Path(__file__).with_name("prompts.txt")
LENGTH = 256  # tokens of a story's own, at most
COPIED = 8  # words in a row that are looked for in the training text
GIVEN_WORDS = 16  # of a held-out document, in the place of a prompt
GIVEN_CHARACTERS = 80  # the same where there are no spaces
SHOWN_CHARACTERS = 1000  # of a held-out document, about as long as a story

MODES = ("sampled", "greedy")
End = Reason | Literal["", "unfit"]  # of a text that a person wrote; of a prompt that is too long for the model


@dataclass(frozen=True)
class Told:
    """A text that began with a prompt, and how it ended."""

    prompt: str
    text: str  # without the prompt
    end: End


@dataclass(frozen=True)
class Candidate:
    """A model to be measured: where it is, and the format to store its matrices in first, if any."""

    name: str
    path: Path
    format: str | None = None


@dataclass
class Measured:
    """What was measured of a model."""

    name: str
    facts: dict[str, str]  # to be told of it
    bits: NDArray[np.float64]  # of each held-out document
    settings: Settings  # of its sampled stories
    stories: dict[str, list[Told]]  # by mode; one for each prompt
    judged: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # bits of each story under the judge


@dataclass
class Comparison:
    """All that a report shows."""

    text: str  # the held-out text's name
    documents: NDArray[np.float64]  # bytes of each of its documents
    models: list[Measured]
    own: list[Told]  # documents of the held-out text, in the place of stories
    judge: str = ""  # its name
    own_judged: NDArray[np.float64] | None = None
    training_text: str = ""  # its name
    training_ngrams: set[NGram] | None = None  # those of the stories that it has


# --- Models ---


def candidates(paths: Sequence[Path], quantised: bool) -> list[Candidate]:
    """The models, each with a name of its own; ``quantised``: in F32 and in each quantised format that they allow.

    Raises ``OSError`` or ``ValueError`` if there is no such file, or it is quantised already.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such model")
    names = Counter(path.resolve().name for path in paths)
    found: list[Candidate] = []
    for path in paths:
        name = writable(path.resolve().name if names[path.resolve().name] == 1 else str(path))
        found += _formats(Candidate(name, path)) if quantised else [Candidate(name, path)]
    twice = [name for name, count in Counter(candidate.name for candidate in found).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]}: is given twice")
    return found


def _formats(model: Candidate) -> Iterator[Candidate]:
    if model.path.is_dir():
        config = load_run(model.path)[0].config
        first = "F32"
    else:
        with open_model(model.path) as (file, _):
            config = file.config
            types = {tensor.type for tensor in file.tensors.values() if len(tensor.shape) == 2}
            if not types <= {*FLOATS}:
                raise ValueError(
                    f"{model.path}: is quantised already ({', '.join(sorted(types))}): --quantised begins with "
                    "a run folder, or with a file in F32, F16 or BF16"
                )
            (first, *_) = sorted(types)
    yield replace(model, name=f"{model.name} {first}")
    for format in QUANTISED:
        if reason := unstorable(config, format):
            say(f"{model.name} is left out in {format}: {reason}")
        else:
            yield replace(model, name=f"{model.name} {format}", format=format)


@contextmanager
def stored(model: Candidate) -> Iterator[Path]:
    """The model as a GGUF file, for as long as the body runs."""
    if model.path.is_file() and not model.format:
        yield model.path
        return
    with tempfile.TemporaryDirectory() as name:
        path = model.path
        if path.is_dir():
            run, tokenizer = load_run(path)
            path = Path(name) / "F32.gguf"
            save_gguf(run.build_model(), as_tokenizer(tokenizer), path, "F32", {})
        if model.format:
            source, path = path, Path(name) / "quantised.gguf"
            store_as(source, model.format, path)
        yield path


def store_as(model: Path, format: str, path: Path) -> None:
    """Write a GGUF file's matrices in another format."""
    with FileSource(model) as source:
        file = read_gguf(source)
        tensors = []
        for tensor in file.tensors.values():
            type = fitting(format, tensor.shape[1]) if len(tensor.shape) == 2 else "F32"
            tensors.append((tensor.name, type, tensor.shape, quantize(read_weights(source, tensor), type)))
        about: dict[str, Any] = {**file.metadata, "general.file_type": FORMATS[format].file_type}
        about.pop("general.alignment", None)
        write_gguf(path, about, tensors)


# --- Bits ---


def bits_of(model: Path, texts: Sequence[str], name: str) -> NDArray[np.float64]:
    """How many bits a GGUF model or a run's needs to tell each text, from BOS on to its last token: [texts].

    Raises ``ValueError`` if it answers with numbers that are not finite.
    """
    try:
        torch_model, tokenizer = load_model(model)
    except FabellaError:  # it is no plain Llama, or none at all: that the engine says
        bits = _bits_by_engine(model, texts)
    else:
        bits = bits_of_documents(torch_model, hold_out(texts, tokenizer, torch_model.config.seq_len, whole=True))
    if not np.isfinite(bits).all():
        raise ValueError(f"{name}: its answers are no finite numbers")
    return bits


def _bits_by_engine(path: Path, texts: Sequence[str]) -> NDArray[np.float64]:
    bits = np.zeros(len(texts))
    with (
        open_model(path) as (file, source),
        Model(file, Engine(new_host(), file, source)) as model,
        Progress("measuring", int(sizes_of(texts).sum()), "B") as progress,
    ):
        for number, text in enumerate(texts):
            if size := len(well_formed(text).encode()):
                bits[number] = model.perplexity(text) * size
                progress.update(size)
    return bits


def sizes_of(texts: Sequence[str]) -> NDArray[np.float64]:
    """The UTF-8 bytes of each text: [texts]."""
    return np.array([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.float64)


# --- Stories ---


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: one per line, or of a .yaml file a list of texts. Raises ``OSError`` or ``ValueError``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text") from error
    prompts = _yaml_list(text, path) if path.suffix in (".yaml", ".yml") else text.splitlines()
    prompts = list(dict.fromkeys(prompt.strip() for prompt in prompts if prompt.strip()))
    if not prompts:
        raise ValueError(f"{path}: holds no prompt")
    return prompts


def _yaml_list(text: str, path: Path) -> list[str]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(f"{path}: to read YAML takes one more package: pip install pyyaml") from error
    try:
        prompts = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not YAML, or is damaged") from error
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"{path}: must be a list of texts")
    return prompts


def tell_stories(
    model: Path, prompts: Sequence[str], name: str
) -> tuple[dict[str, str], Settings, dict[str, list[Told]]]:
    """Have a GGUF model go on from each prompt: sampled by its own settings, and greedily.

    Returns facts about the model, those settings and the stories by mode. The seed is the prompt's number, from 1 on.
    """
    with open_model(model) as (file, source):
        engine = Engine(new_host(), file, source)
    try:
        settings = Settings(**{name: value for name, value in file.card.settings.items() if name != "length"})  # type: ignore[arg-type]
        session = Session(engine)
        stories: dict[str, list[Told]] = {mode: [] for mode in MODES}
        with Progress(f"telling, {name}", len(MODES) * len(prompts), " stories") as progress:
            for mode, told in stories.items():
                for seed, prompt in enumerate(prompts, 1):
                    how = replace(settings, seed=seed) if mode == "sampled" else Settings(temperature=0)
                    told.append(_tell(session, file.tokenizer, prompt, how))
                    progress.update(1)
    finally:
        engine.close()
    return _facts(file, model), settings, stories


def _tell(session: Session, tokenizer: Tokenizer, prompt: str, settings: Settings) -> Told:
    ending = Ending(len(tokenizer.encode(prompt)) + LENGTH, loops=True)
    try:
        steps = list(generate(session, tokenizer, prompt, settings, ending=ending))
    except PromptError:
        return Told(prompt, "", "unfit")
    return Told(prompt, "".join(step.text for step in steps if not step.from_prompt), steps[-1].end or "length")


def _facts(file: ModelFile, path: Path) -> dict[str, str]:
    types = {tensor.type for tensor in file.tensors.values() if len(tensor.shape) == 2}
    return {
        "Parameters": f"{parameter_count(file.tensors):,}",
        "Matrices in": ", ".join(sorted(types)),
        "Bytes of the file": f"{path.stat().st_size:,}",
        "Vocabulary": f"{file.config.vocab_size:,}",
        "Context, in tokens": f"{file.config.seq_len:,}",
    }


def as_told(documents: Sequence[str], count: int) -> list[Told]:
    """The first documents with something behind their first words, as if these had been a prompt."""
    told: list[Told] = []
    for document in documents:
        start = re.match(rf"\s*(?:\S+\s+){{{GIVEN_WORDS}}}", document[:SHOWN_CHARACTERS])
        cut = len(start[0].rstrip()) if start else GIVEN_CHARACTERS
        if document[cut:].strip() and len(told) < count:
            whole = len(document) <= SHOWN_CHARACTERS
            told.append(Told(document[:cut], document[cut:SHOWN_CHARACTERS], "" if whole else "length"))
    return told


# --- All of it ---


def compare(
    models: Sequence[Candidate],
    text: tuple[str, Sequence[str]],
    prompts: Sequence[str],
    judge: Path | None = None,
    training_text: Path | None = None,
) -> Comparison:
    """Measure the models on a held-out text (its name, its documents), and have them tell; raises as these do."""
    name, documents = text
    measured = []
    for model in models:
        with stored(model) as path:
            bits = bits_of(path, documents, model.name)
            facts, settings, stories = tell_stories(path, prompts, model.name)
        measured.append(Measured(model.name, facts, bits, settings, stories))
    comparison = Comparison(name, sizes_of(documents), measured, as_told(documents, 2 * len(prompts)))  # enough words
    if training_text:
        comparison.training_text = writable(training_text.name)
        comparison.training_ngrams = copied_ngrams(comparison, training_text)
    if judge:
        comparison.judge = writable(judge.resolve().name)
        with_judge(comparison, judge)
    return comparison


def copied_ngrams(comparison: Comparison, training_text: Path) -> set[NGram]:
    """The 8-grams of the stories, and of the held-out text's, that the training text has, too."""
    told = [told for model in comparison.models for mode in MODES for told in model.stories[mode]] + comparison.own
    wanted = {gram for story in told for gram in ngrams(words(story.text), COPIED)}
    found: set[NGram] = set()
    for document in documents_of(training_text):
        found |= found_in(document, COPIED, wanted)
    return found


def with_judge(comparison: Comparison, judge: Path) -> None:
    """Measure all stories, each behind its prompt, by a stronger model."""
    places: dict[str, int] = {}  # of each text that the judge reads, once

    def place(text: str) -> int:
        return places.setdefault(text, len(places))

    def pairs(stories: Sequence[Told]) -> list[tuple[int, int]]:
        return [(place(told.prompt + told.text), place(told.prompt)) for told in stories]

    of_models = [{mode: pairs(model.stories[mode]) for mode in MODES} for model in comparison.models]
    of_text = pairs(comparison.own)
    bits = bits_of(judge, list(places), comparison.judge)

    def behind(pairs: list[tuple[int, int]]) -> NDArray[np.float64]:
        return np.array([bits[whole] - bits[prompt] for whole, prompt in pairs])

    for model, by_mode in zip(comparison.models, of_models, strict=True):
        model.judged = {mode: behind(by_mode[mode]) for mode in MODES}
    comparison.own_judged = behind(of_text)


if __name__ == "__main__":
    explain(__doc__)
