"""``fabella chat MODEL``: a conversation in a terminal.

What the model says goes to standard output; the prompt for what the user says goes there as well, if a person sits at
it. Each line of a pipe is a turn.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Protocol

from fabella.card import Card
from fabella.chat import Conversation, template_of
from fabella.console import words
from fabella.engine import Engine
from fabella.errors import FabellaError
from fabella.generate import Ending, Step
from fabella.hosts import WasmtimeHost
from fabella.models import open_model, put_adapter
from fabella.options import add_sampling, ending_of, settings_of
from fabella.sampler import Settings
from fabella.session import Session

HELP = """\
/system TEXT    tell the model how it is to be, from the next answer on; without a text, as its template says
/regenerate     have the last answer given anew
/continue       go on with an answer that was cut
/edit TEXT      say something else instead of the last thing you said
/undo           take it back, and the answer
/save FILE      write the conversation to a file, as JSON
/load FILE      go on from such a file
/new            begin another conversation
/quit           the end, as Ctrl-D; Ctrl-C stops an answer"""

WHY = {
    "length": "length reached: /continue goes on",
    "context": "the context is full: /continue goes on, without the oldest turns",
    "loop": "began to loop: /continue goes on",
    "stopped": "stopped: /continue goes on",
}


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    p = argparse.ArgumentParser(
        prog="fabella chat",
        description="Have a conversation with a small language model. /help says what else can be done there.",
    )
    p.add_argument("model", type=Path, help="model file, .gguf, with a chat template")
    p.add_argument("--adapter", metavar="FILE", type=Path, help="adapter (LoRA) for the model, .gguf")
    p.add_argument("--system", metavar="TEXT", help="what the model is told first (default: as its template says)")
    add_sampling(p, "tokens of an answer, 0 = as many as fit")
    return p.parse_args(arguments)


def chat(arguments: list[str]) -> None:
    """Loads the model and talks until the user has had enough."""
    options = parse_arguments(arguments)
    settings_of(options, Card())  # what is wrong is said before the model is loaded
    ending_of(options, Card())
    with open_model(options.model) as (model, source):
        template = template_of(model)
        engine = Engine(WasmtimeHost(), model, source)
    put_adapter(engine, options.adapter)
    conversation = Conversation(Session(engine), model.tokenizer, template, options.system)
    terminal = Terminal(conversation, options, model.card)
    terminal.say(f"[{model.name or options.model.stem}: /help says what can be done here]")
    with suppress(EOFError):
        while True:
            try:
                terminal.turn()
            except KeyboardInterrupt:
                terminal.say("[Ctrl-D ends the conversation]")


class Terminal:
    """The user's side of a conversation.

    Parameters
    ----------
    conversation
        The conversation.
    options
        The command line's.
    card
        The model's, which has what they do not say.
    """

    def __init__(self, conversation: Conversation, options: argparse.Namespace, card: Card) -> None:
        self._conversation = conversation
        self._options = options
        self._card = card
        self._is_person = sys.stdin.isatty() and sys.stdout.isatty()
        self._written: set[Path] = set()  # files
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="strict")
        if self._is_person:
            with suppress(ImportError):  # where there is none, lines cannot be edited
                import readline  # noqa: F401 - it gives input() a history and editing

    def say(self, text: str) -> None:
        """Tells the user something that is no part of the conversation."""
        print(text, file=sys.stderr, flush=True)

    def turn(self) -> None:
        """Asks for a line and does what it says. Raises EOFError when there are no more."""
        try:
            line = input("> " if self._is_person else "")
        except UnicodeDecodeError:
            raise FabellaError("standard input is not UTF-8 text") from None
        if not line.strip():
            return
        try:
            self._do(line)
        except BrokenPipeError:  # whoever reads the answers has had enough
            raise
        except (FabellaError, OSError) as error:
            self.say(f"[{words(error)}]")

    def _do(self, line: str) -> None:
        conversation = self._conversation
        if not line.startswith("/"):
            self._answer(lambda *how: conversation.say(line, *how))
            return
        command, _, text = line.partition(" ")
        text = text.strip()
        match command:
            case "/system":
                conversation.system = text or None
            case "/regenerate":
                self._answer(conversation.regenerate)
            case "/continue":
                self._answer(conversation.go_on)
            case "/edit":
                if not text:
                    raise FabellaError("/edit needs what is to be said instead")
                said = [number for number, turn in enumerate(conversation.turns) if turn.role == "user"]
                number = said[-1] if said else 0
                self._answer(lambda *how: conversation.edit(number, text, *how))
            case "/undo":
                self.say(f"[taken back: {conversation.undo()}]")
            case "/save":
                self._save(_path(command, text))
            case "/load":
                self._load(_path(command, text))
            case "/new":
                conversation.load([] if conversation.system is None else conversation.messages[:1])
            case "/quit":
                raise EOFError
            case "/help":
                self.say(HELP)
            case _:
                self.say(f"[there is no {command}; /help says what there is]")

    def _answer(self, answer: Answer) -> None:
        """Prints an answer as it comes; Ctrl-C stops it."""
        settings, ending = settings_of(self._options, self._card), ending_of(self._options, self._card)
        with _interrupts() as interrupted:
            steps = answer(settings, ending)
            end = None
            try:
                for step in steps:
                    if step.dropped:
                        self.say(f"[the context is full: the model no longer sees the oldest {step.dropped} turns]")
                    sys.stdout.write(step.text)
                    sys.stdout.flush()
                    end = step.end
                    if interrupted():
                        break
            finally:
                sys.stdout.write("\n")
                sys.stdout.flush()
        if end == "context" and len(self._conversation.turns) - self._conversation.dropped <= 2:
            self.say("[the answer has filled the context]")
        elif why := WHY.get(end or "stopped", ""):
            self.say(f"[{why}]")

    def _save(self, path: Path) -> None:
        if path.exists() and path.resolve() not in self._written:
            raise FabellaError(f"{path} is there already: give another name")
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            text = json.dumps(self._conversation.messages, ensure_ascii=False, indent=2)
            beside.write_text(f"{text}\n", encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
        self._written.add(path.resolve())
        self.say(f"[{len(self._conversation.turns)} turns saved in {path}]")

    def _load(self, path: Path) -> None:
        try:
            messages = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise FabellaError(f"{path} is no JSON: {error}") from None
        self._conversation.load(messages)
        for turn in self._conversation.turns:
            self.say(f"{'> ' if turn.role == 'user' else ''}{turn.text}")


class Answer(Protocol):
    """What of a conversation gives an answer, once it is said how."""

    def __call__(self, settings: Settings, ending: Ending) -> Iterator[Step]: ...


def _path(command: str, text: str) -> Path:
    if not text:
        raise FabellaError(f"{command} needs the name of a file")
    return Path(text).expanduser()


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """While it lasts, Ctrl-C is only noted: nothing is left half done. Yields a function that says whether it came."""
    came = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
