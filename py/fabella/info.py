"""``python -m fabella info MODEL``: what a model file is, and what it takes to run it."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fabella.architectures import family_title, parameter_count
from fabella.bytelevel import ByteLevel
from fabella.card import Card
from fabella.engine import Engine
from fabella.errors import short_text
from fabella.hosts import WasmtimeHost
from fabella.memory import model_size
from fabella.modelfile import Config, ModelFile
from fabella.models import open_model
from fabella.tokenizer import Tokenizer


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="fabella info", description="Say what a model file is and what it takes to run it; or why it cannot run."
    )
    p.add_argument("model", type=Path, help="model file: .gguf, or llama2.c's .bin together with -z")
    p.add_argument("-z", dest="tokenizer", metavar="FILE", type=Path, help="tokenizer.bin, for a .bin model")
    return p


def info(argv: list[str]) -> None:
    """Load the model that the command line names, weights and all, and print what it is."""
    arguments = parser().parse_args(argv)
    with open_model(arguments.model, arguments.tokenizer, "-z") as (model, source):
        engine = Engine(WasmtimeHost(), model, source)
        rows = dict(describe(model, engine, source.size))
    width = max(map(len, rows))
    for name, text in rows.items():
        print(f"{name:{width}}  {text}")


def describe(model: ModelFile, engine: Engine, size: int) -> Iterator[tuple[str, str]]:
    """Yield what there is to say, each thing with its name."""
    config = model.config
    yield "Name", model.name or "not stated"
    yield from _words(model.card)
    yield "Licence", model.license or "not stated"
    yield "Family", family_title(config)
    yield "Size", f"{parameter_count(model.tensors) / 1e6:,.1f} million parameters, {size / 1e6:,.1f} MB"
    yield "Shape", _shape(config)
    yield "Vocabulary", _vocabulary(model.tokenizer)
    yield "Context", _context(config)
    yield "Weights", _formats(model)
    token = engine.cache_size
    yield (
        "Memory",
        f"{engine.weights_size / 1e6:,.1f} MB of weights, and {token / 1e3:,.1f} kB for each token: "
        f"{model_size(config, model.tensors) / 1e6:,.0f} MB in all with a full context",
    )
    template = model.chat_template
    yield "Chat template", "none" if template is None else f"{len(template):,} characters"


def _words(card: Card) -> Iterator[tuple[str, str]]:
    """What the model says of itself, if it says anything."""
    if card.title:
        yield "Title", card.title
    if card.about:
        yield "About", card.about
    if card.language:
        yield "Language", card.language
    if card.beginnings:
        yield "Beginnings", " | ".join(short_text(text, 60) for text in card.beginnings)
    if card.own:
        yield "Settings", ", ".join(f"{name} {value}" for name, value in card.own.items())


def _shape(c: Config) -> str:
    layers = f"{c.n_layers} layers" + (f", each run {c.repeats} times" if c.repeats > 1 else "")
    heads = f"{c.n_heads} heads of {c.head_size}, {c.n_kv_heads} of keys and values"
    return f"{layers}; {c.dim:,} wide, {c.hidden_dim:,} in the feed-forward network; {heads}"


def _vocabulary(tokenizer: Tokenizer) -> str:
    kind = f"byte-level BPE, split as {tokenizer.split}" if isinstance(tokenizer, ByteLevel) else "SentencePiece"
    return f"{len(tokenizer):,} tokens ({kind})"


def _context(c: Config) -> str:
    local = sum(0 < window < c.seq_len for window in c.windows)
    window = min((window for window in c.windows if window), default=0)
    seen = f"; {local} of {c.n_layers} layers see the last {window:,}" if local else ""
    return f"{c.seq_len:,} tokens{seen}"


def _formats(model: ModelFile) -> str:
    sizes: Counter[str] = Counter()
    for tensor in model.tensors.values():
        sizes[tensor.type] += tensor.size
    return ", ".join(f"{type} {100 * size / sizes.total():.1f} %" for type, size in sizes.most_common())
