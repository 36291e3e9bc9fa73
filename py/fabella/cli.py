"""``python -m fabella MODEL``: tells a story in a terminal, with llama2.c's flags.

The story goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from io import TextIOWrapper
from pathlib import Path

from fabella import __version__
from fabella.engine import Engine
from fabella.errors import FabellaError
from fabella.generate import generate
from fabella.gguf import read_gguf
from fabella.hosts import WasmtimeHost
from fabella.llama2c import read_llama2c
from fabella.modelfile import FileSource, ModelFile
from fabella.sampler import Settings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="fabella",
        description="Tell a story with a small language model. The engine is the very WebAssembly module of the page.",
    )
    p.add_argument("model", type=Path, help="model file: .gguf, or llama2.c's .bin together with -z")
    p.add_argument("-i", dest="prompt", metavar="PROMPT", default="", help="how the story begins")
    p.add_argument("-t", dest="temperature", type=float, default=1.0, help="temperature, 0 = greedy (default 1.0)")
    p.add_argument("-p", dest="top_p", type=float, default=0.9, help="top-p, 1 = off (default 0.9)")
    p.add_argument("-k", dest="top_k", type=int, default=0, help="top-k, 0 = off (default 0)")
    p.add_argument("-s", dest="seed", type=int, default=0, help="random seed, 0 = another one each time (default 0)")
    p.add_argument(
        "-n",
        dest="length",
        type=int,
        default=256,
        help="tokens, the prompt's included, 0 = whole context (default 256)",
    )
    p.add_argument("-z", dest="tokenizer", metavar="FILE", type=Path, help="tokenizer.bin, for a .bin model")
    p.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return p


def open_model(source: FileSource, path: Path, tokenizer: Path | None) -> ModelFile:
    """Reads the description of a model file, GGUF or llama2.c, by its first bytes."""
    if source.read(0, 4) == b"GGUF":
        return read_gguf(source)
    if tokenizer is None:
        raise FabellaError(f"{path}: not a GGUF file; a llama2.c .bin needs its tokenizer as well: -z tokenizer.bin")
    with FileSource(tokenizer) as vocabulary:
        return read_llama2c(source, vocabulary)


def tell(arguments: argparse.Namespace) -> None:
    """Loads the model and prints one story."""
    seed = arguments.seed or time.time_ns()
    if arguments.length < 0:
        raise FabellaError(f"-n {arguments.length}: must be 0 or more")
    settings = Settings(arguments.temperature, arguments.top_p, arguments.top_k, seed)
    with FileSource(arguments.model) as source:
        model = open_model(source, arguments.model, arguments.tokenizer)
        engine = Engine(WasmtimeHost(), model, source)

    story = generate(engine, model.tokenizer, arguments.prompt, settings, arguments.length)
    sampled, started, end = 0, 0.0, None
    try:
        for step in story:
            sys.stdout.write(step.text)
            sys.stdout.flush()
            if not step.from_prompt:
                started = started or time.perf_counter()  # as llama2.c: the first token is not timed
                sampled += 1
            end = step.end
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    seconds = time.perf_counter() - started
    rate = f"{(sampled - 1) / seconds:.0f} tokens/s" if sampled > 1 else "too short to time"
    why = {"end": "the end", "length": "length reached", "context": "context full"}[end or "end"]
    print(f"[{model.name or arguments.model.stem}: {sampled} tokens, {rate}, seed {seed}; {why}]", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 after an error in words, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the terminal's: a story may hold any character
    try:
        tell(arguments)
    except BrokenPipeError:  # whoever reads has had enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (FabellaError, OSError) as error:
        print(f"fabella: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
