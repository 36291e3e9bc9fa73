"""``python -m fabella MODEL``: tells a story in a terminal, with llama2.c's flags.

``fabella chat MODEL`` has a conversation (terminal.py), ``fabella info MODEL`` says what a model is (info.py). What the
model says goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import select
import sys
import time
from contextlib import suppress
from pathlib import Path

from fabella import __version__
from fabella.card import Card
from fabella.console import run_command
from fabella.engine import Engine
from fabella.errors import FabellaError
from fabella.generate import generate
from fabella.hosts import WasmtimeHost
from fabella.info import info
from fabella.models import open_model, put_adapter
from fabella.options import add_sampling, ending_of, settings_of

LONGEST_PROMPT = 1 << 24  # bytes of standard input: more is not a prompt, and a pipe may have no end
ENDS = {
    "end": "the end",
    "length": "length reached",
    "context": "context full; --shift goes on",
    "stop": "stop string reached",
    "loop": "began to loop",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="fabella",
        description="Tell a story with a small language model. The engine is the very WebAssembly module of the page.",
        epilog="fabella chat MODEL has a conversation. fabella info MODEL says what a model file is, and what it takes "
        "to run it.",
    )
    p.add_argument("model", type=Path, help="model file: .gguf, or llama2.c's .bin together with -z")
    p.add_argument(
        "-i", dest="prompt", metavar="PROMPT", help="how the story begins (default: what is piped in, if anything is)"
    )
    add_sampling(p, "tokens, the prompt's included, 0 = the whole context")
    p.add_argument("--shift", action="store_true", help="when the context is full, go on, forgetting its oldest half")
    p.add_argument("-z", dest="tokenizer", metavar="FILE", type=Path, help="tokenizer.bin, for a .bin model")
    p.add_argument("--adapter", metavar="FILE", type=Path, help="adapter (LoRA) for the model, .gguf")
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
    settings_of(arguments, Card())  # what is wrong is said before the model is loaded
    ending_of(arguments, Card())
    with open_model(arguments.model, arguments.tokenizer, "-z") as (model, source):
        engine = Engine(WasmtimeHost(), model, source)
    put_adapter(engine, arguments.adapter)
    settings, ending = settings_of(arguments, model.card), ending_of(arguments, model.card, arguments.shift)
    prompt = piped_prompt() if arguments.prompt is None else arguments.prompt

    story = generate(engine, model.tokenizer, prompt, settings, ending=ending)
    sampled, dropped, started, end = 0, 0, 0.0, None
    try:
        for step in story:
            sys.stdout.write(step.text)
            sys.stdout.flush()
            if not step.from_prompt:
                started = started or time.perf_counter()  # as llama2.c: the first token is not timed
                sampled += 1
            end = step.end
            dropped = step.dropped or dropped
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    seconds = time.perf_counter() - started
    rate = f"{(sampled - 1) / seconds:.0f} tokens/s" if sampled > 1 else "too short to time"
    forgotten = f"; the oldest {dropped} forgotten on the way" if dropped else ""
    name = model.name or arguments.model.stem
    print(f"[{name}: {sampled} tokens, {rate}, seed {settings.seed}; {ENDS[end or 'end']}{forgotten}]", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 after an error, 2 for a wrong argument, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_command("fabella", lambda: _command(arguments))


def _command(arguments: list[str]) -> None:
    if arguments[:1] == ["chat"]:
        from fabella.terminal import chat  # with Jinja, which stories do without

        chat(arguments[1:])
    elif arguments[:1] == ["info"]:
        info(arguments[1:])
    else:
        tell(arguments)
