"""Every command's streams: closed, full, left by their reader, or of an encoding that cannot hold what is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A command that says what it is told to: by its first argument, what happens, then what is printed.
COMMAND = """
import argparse, os, sys
from fabella.console import run_command
from fabella.errors import FabellaError

def body():
    parser = argparse.ArgumentParser(prog="command")
    parser.add_argument("what")
    what = parser.parse_args().what
    if what == "much":
        for number in range(100_000):
            print("story", number)
    elif what == "text":
        print("Grüße 🦊 \\udcff")
        print("Grüße 🦊 \\udcff", file=sys.stderr)
    elif what == "wrong":
        raise FabellaError("wrong 🦊")
    elif what == "missing":
        open("/nowhere/file")
    elif what == "interrupt":
        print("part of a story", flush=True)
        raise KeyboardInterrupt
    elif what == "exit":
        sys.exit("words")
    elif what == "bug":
        raise ZeroDivisionError
    elif what == "seven":
        return 7
    elif what == "file":
        with open(sys.argv[0] + ".out", "w") as file:
            print("to standard output", flush=True)
            print("to standard error", file=sys.stderr, flush=True)
            file.write("to the file")

sys.exit(run_command("command", body))
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "command.py"
    script.write_text(COMMAND, encoding="utf-8")
    return [sys.executable, str(script)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "py"), "PYTHONUNBUFFERED": ""}


def run(command: list[str], what: str, redirections: str = "", **variables: str) -> tuple[int, str, str]:
    """The status and what came out at standard output and standard error, with a shell's redirections."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command, what],
        capture_output=True,
        env=ENVIRONMENT | variables,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_what_becomes_of_a_command(command: list[str]) -> None:
    assert run(command, "nothing") == (0, "", "")
    assert run(command, "seven") == (7, "", "")
    assert run(command, "wrong") == (1, "", "command: wrong 🦊\n")
    assert run(command, "missing") == (1, "", "command: /nowhere/file: No such file or directory\n")
    assert run(command, "interrupt") == (130, "part of a story\n", "")
    assert run(command, "exit") == (1, "", "words\n")
    assert run(command, "--help")[0] == 0
    status, out, error = run(command, "--nonsense")
    assert (status, out, "usage: command" in error) == (2, "", True)
    status, out, error = run(command, "bug")  # what nobody foresaw is not hidden
    assert (status, out, "ZeroDivisionError" in error) == (1, "", True)


def left(command: list[str], what: str, *streams: str) -> tuple[int, str]:
    """The status, and what came out at standard error, when the readers of these streams have left before the start."""
    reading, writing = os.pipe()
    os.close(reading)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | dict.fromkeys(streams, writing)
    running = subprocess.Popen([*command, what], **pipes, env=ENVIRONMENT)  # type: ignore[call-overload]
    os.close(writing)
    error = running.communicate()[1]
    return running.returncode, (error or b"").decode()


@pytest.mark.parametrize("what", ["much", "text", "nothing", "--help", "interrupt", "exit", "wrong", "--nonsense"])
def test_a_reader_that_has_left_is_no_error(command: list[str], what: str) -> None:
    status, error = left(command, what, "stdout")
    assert "Traceback" not in error
    assert "Exception ignored" not in error
    assert "Broken pipe" not in error
    for streams in (("stderr",), ("stdout", "stderr")):
        left(command, what, *streams)  # what goes wrong could not even be said
    if what in ("much", "text", "nothing", "--help"):
        assert (status, error.replace("Grüße 🦊 \\udcff\n", "")) == (0, "")


def test_a_reader_that_leaves_in_the_middle(command: list[str]) -> None:
    running = subprocess.Popen([*command, "much"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert running.stdout
    assert running.stderr
    assert running.stdout.readline() == b"story 0\n"
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("what", ["much", "text", "--help"])
def test_a_full_disk_is_said_in_words(command: list[str], what: str) -> None:
    status, _, error = run(command, what, "> /dev/full")
    assert status == 1
    assert error.replace("Grüße 🦊 \\udcff\n", "") == "command: No space left on device\n"
    assert run(command, what, "> /dev/full 2> /dev/full")[0] == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_beginning(command: list[str], closed: str) -> None:
    """Nothing that is printed ends up in a file that is opened later."""
    for what, expected in {"much": 0, "text": 0, "file": 0, "wrong": 1, "--help": 0, "--nonsense": 2}.items():
        status, out, error = run(command, what, closed)
        assert status == expected
        assert "Traceback" not in error
        assert ">&-" not in closed.split() or out == ""
        assert "2>&-" not in closed.split() or error == ""
    assert Path(command[1] + ".out").read_text() == "to the file"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "ascii:strict"])
def test_any_character_can_be_written(command: list[str], encoding: str) -> None:
    """To standard output as UTF-8; to standard error as what its encoding has instead, if need be."""
    done = subprocess.run(
        [*command, "text"], capture_output=True, env=ENVIRONMENT | {"PYTHONIOENCODING": encoding}, check=False
    )
    assert (done.returncode, done.stdout.decode()) == (0, "Grüße 🦊 \\udcff\n")
    assert done.stderr.decode(encoding.partition(":")[0]).replace("\\xfc", "ü").replace("\\xdf", "ß") in (
        "Grüße 🦊 \\udcff\n",
        "Grüße \\U0001f98a \\udcff\n",
    )


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_without_a_locale(command: list[str], utf8: str) -> None:
    variables = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": utf8}
    status, out, error = run(command, "text", **variables)
    assert (status, out) == (0, "Grüße 🦊 \\udcff\n")
    assert "Traceback" not in error
    assert run(command, "text", ">&- 2>&-", **variables) == (0, "", "")
    assert run(command, "wrong", **variables)[0] == 1


def test_ctrl_c(command: list[str]) -> None:
    """In the middle, wherever it happens to be."""
    running = subprocess.Popen([*command, "much"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert running.stdout
    assert running.stderr
    assert running.stdout.readline() == b"story 0\n"  # it now waits for the pipe to be read
    running.send_signal(signal.SIGINT)
    rest = running.stdout.read()
    assert running.stderr.read() == b""
    assert running.wait() == 130
    assert b"story 99999" not in rest
