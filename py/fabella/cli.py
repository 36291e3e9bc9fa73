"""``python -m fabella MODEL``: tells a story in a terminal, with llama2.c's flags. ``info MODEL`` says what a model is.

The story goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import select
import sys
import time
from contextlib import suppress
from pathlib import Path

from fabella import __version__
from fabella.console import run_command
from fabella.engine import Engine
from fabella.errors import FabellaError
from fabella.generate import generate
from fabella.hosts import WasmtimeHost
from fabella.info import info
from fabella.models import open_model
from fabella.sampler import Settings, random_seed

LONGEST_PROMPT = 1 << 24  # bytes of standard input: more is not a prompt, and a pipe may have no end


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="fabella",
        description="Tell a story with a small language model. The engine is the very WebAssembly module of the page.",
        epilog="fabella info MODEL says what a model file is, and what it takes to run it.",
    )
    p.add_argument("model", type=Path, help="model file: .gguf, or llama2.c's .bin together with -z")
    p.add_argument(
        "-i", dest="prompt", metavar="PROMPT", help="how the story begins (default: what is piped in, if anything is)"
    )
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


def piped_prompt() -> str:
    """The text on standard input, without the line's end that `echo` adds; none if a person sits at it."""
    if sys.stdin.isatty():
        return ""
    with suppress(OSError):  # where this cannot be asked of a file
        if not select.select([sys.stdin], [], [], 1)[0]:
            print("fabella: waiting for the prompt on standard input; -i gives it at once", file=sys.stderr)
    data = sys.stdin.buffer.read(LONGEST_PROMPT + 1)
    if len(data) > LONGEST_PROMPT:
        raise FabellaError(f"the prompt on standard input is longer than {LONGEST_PROMPT} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FabellaError("the prompt on standard input is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")


def tell(argv: list[str]) -> None:
    """Loads the model and prints one story."""
    arguments = parser().parse_args(argv)
    seed = arguments.seed or random_seed()
    if arguments.length < 0:
        raise FabellaError(f"-n {arguments.length}: must be 0 or more")
    settings = Settings(arguments.temperature, arguments.top_p, arguments.top_k, seed)
    with open_model(arguments.model, arguments.tokenizer, "-z") as (model, source):
        engine = Engine(WasmtimeHost(), model, source)
    prompt = piped_prompt() if arguments.prompt is None else arguments.prompt

    story = generate(engine, model.tokenizer, prompt, settings, arguments.length)
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
    """Entry point. Returns the exit status: 0, 1 after an error, 2 for a wrong argument, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["info"]:
        return run_command("fabella", lambda: info(arguments[1:]))
    return run_command("fabella", lambda: tell(arguments))
