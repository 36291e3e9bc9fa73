"""``fabella chat``: at a terminal, through pipes, stopped, and with files."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fabella.modelfile import Config

from .patience import PATIENCE
from .random_models import write_random_model
from .test_chat import TEMPLATE
from .test_cli import ENVIRONMENT, fabella

# Large and slow enough that an answer can be stopped on its way.
CONFIG = Config(dim=256, hidden_dim=512, n_layers=4, n_heads=4, n_kv_heads=4, vocab_size=400, seq_len=4000)
NO_END = ("--logit-bias", "1:-100", "--logit-bias", "2:-100")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG, template=TEMPLATE)


class Terminal:
    """The command at a terminal of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "fabella", "chat", *map(str, arguments)]
        environment = {**ENVIRONMENT, "TERM": "dumb", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True, preexec_fn=own
        )
        os.close(slave)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, pattern: str, again: str = "") -> str:
        """What is shown up to a pattern, which is waited for; what was waited for before is gone.

        `again` is typed each second on the way: a Ctrl-C that comes just when a line begins to be read goes unheard.
        """
        patience = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < patience, f"{pattern!r} is not in {self.shown!r}"
            if select.select([self.master], [], [], 1)[0]:
                with suppress(OSError):  # the other side is closed
                    self.shown += os.read(self.master, 1 << 16).decode(errors="replace")
            elif again:
                self.type(again)
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before


def own() -> None:
    """Make the terminal that of the new session, so that its Ctrl-C is heard."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def terminal(model: Path) -> Iterator[Terminal]:
    with Terminal(model, "-t", "0", "-n", "12", *NO_END) as opened:
        opened.wait("> ")
        yield opened


def test_a_conversation_at_a_terminal(terminal: Terminal) -> None:
    terminal.type("w1 w2\n")
    first = terminal.wait("/continue goes on]\r\n> ")
    terminal.type("/regenerate\n")
    again = terminal.wait("/continue goes on]\r\n> ")
    assert first.split("\r\n", 1)[1] == again.split("\r\n", 1)[1]
    terminal.type("/help\n")
    assert "/undo" in terminal.wait("Ctrl-C stops an answer\r\n> ")
    terminal.type("/undo\n")
    terminal.wait(r"\[taken back: w1 w2\]\r\n> ")
    terminal.type("\x04")  # Ctrl-D
    assert terminal.process.wait(PATIENCE) == 0


def test_earlier_lines_come_back(terminal: Terminal) -> None:
    pytest.importorskip("readline")
    terminal.type("/nothing\n")
    terminal.wait(r"there is no /nothing.*\r\n> ")
    terminal.type("\x10\n")  # Ctrl-P: the line before
    terminal.wait(r"/nothing\r\n.*there is no /nothing")
    terminal.type("/quit\n")
    assert terminal.process.wait(PATIENCE) == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(model: Path) -> None:
    with Terminal(model, "-t", "0", *NO_END) as terminal:
        terminal.wait("> ")
        terminal.type("w1\n")
        terminal.wait(r"w1\r\n[\s\S]{20}")  # it has begun
        terminal.type("\x03")
        terminal.wait(r"\[stopped: /continue goes on\]\r\n> ")
        terminal.type("\x03")
        terminal.wait(r"\[Ctrl-D ends the conversation\]\r\n> ", again="\x03")
        terminal.type("/continue\n")
        terminal.wait(r"/continue\r\n[\s\S]{20}")
        terminal.type("\x03")
        terminal.wait(r"\[stopped: /continue goes on\]\r\n> ")
        terminal.type("/quit\n")
        assert terminal.process.wait(PATIENCE) == 0


def test_each_line_of_a_pipe_is_a_turn(model: Path) -> None:
    done = fabella("chat", model, "-t", "0", "-n", "8", piped=b"w1\n\nw2 w3\n/regenerate\n")
    answers = done.stdout.split("\n")
    assert len(answers) >= 4
    assert answers[-1] == ""
    assert "> " not in done.stdout + done.stderr
    assert fabella("chat", model, "-t", "0", "-n", "8", piped=b"w1\r\nw2 w3\n/regenerate").stdout == done.stdout


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_closes_early_is_no_error(model: Path, stream: str) -> None:
    command = [sys.executable, "-m", "fabella", "chat", str(model), "-t", "0", *NO_END]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(b"w1\nw2\n/nothing\n" * 50)
    process.stdin.close()
    if stream == "stdout":
        assert process.stdout.read(20)
        process.stdout.close()
        said = process.stderr.read()
    else:
        process.stderr.close()
        process.stdout.close()
        said = b""
    assert process.wait(PATIENCE) == 0
    assert b"Traceback" not in said
    assert b"Broken" not in said


def test_saving_and_loading(model: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "talk.json", tmp_path / "other.json"
    ask = f"/system Be brief.\nw1\n/save {file}\n/save {file}\n/undo\n/load {file}\nw2\n/save {other}\n"
    done = fabella("chat", model, "-t", "0", "-n", "8", *NO_END, piped=ask.encode())
    assert done.stderr.count(f"2 turns saved in {file}") == 2, "what one has written oneself, one may write again"
    messages = json.loads(file.read_text(encoding="utf-8"))
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert json.loads(other.read_text(encoding="utf-8"))[:3] == messages
    assert sorted(tmp_path.iterdir()) == [other, file]
    straight = fabella("chat", model, "-t", "0", "-n", "8", *NO_END, "--system", "Be brief.", piped=b"w1\nw2\n")
    assert done.stdout == straight.stdout


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ("/save", "/save needs the name of a file"),
        ("/save /nowhere/at/all.json", "[/nowhere/at/all.json: No such file or directory]"),
        ("/save {there}", "is there already: give another name"),
        ("/load {there}", "is no JSON"),
        ("/load {gone}", "gone: No such file or directory]"),
        ("/load {wrong}", "message 1 is by 'assistant'"),
        ("/undo", "nothing to undo"),
        ("/regenerate", "nothing was said yet"),
        ("/continue", "no answer to go on with"),
        ("/edit w1", "none of the user's"),
        ("/edit", "/edit needs what is to be said instead"),
        ("/bogus", "there is no /bogus; /help says what there is"),
        ("{long}", "shorten it"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_conversation_goes_on(
    model: Path, tmp_path: Path, ask: str, said: str
) -> None:
    (tmp_path / "there").write_text("{ nothing")
    (tmp_path / "wrong").write_text('[{"role": "assistant", "content": "Hi"}]')
    names = {name: tmp_path / name for name in ("there", "gone", "wrong")}
    line = ask.format(**names, long="w1 " * 5000)
    done = fabella("chat", model, "-t", "0", "-n", "3", *NO_END, piped=f"{line}\nw1\n".encode())
    assert said in done.stderr
    assert done.stdout.strip() or "length reached" in done.stderr
    assert (tmp_path / "there").read_text() == "{ nothing"


def test_a_model_without_a_template_is_none_for_a_conversation(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", Config(32, 48, 1, 2, 2, 300, 64))
    assert "has no chat template" in fabella("chat", path, status=1).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-t", "-1"), "temperature"),
        (("--min-p", "2"), "min_p"),
        (("--stop", ""), "stop"),
        (("--logit-bias", "five"), "--logit-bias five"),
        (("-n", "-1"), "-n -1"),
    ],
)
def test_wrong_arguments_are_said_at_once(model: Path, arguments: tuple[str, ...], said: str) -> None:
    done = fabella("chat", model, *arguments, status=1, piped=b"w1\n")
    assert said in done.stderr
    assert not done.stdout


def test_input_that_is_no_text(model: Path) -> None:
    assert "not UTF-8" in fabella("chat", model, status=1, piped=b"w1 \xff\n").stderr
