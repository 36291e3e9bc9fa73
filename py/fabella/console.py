"""One rule for the streams of every command: any character can be written, and whoever reads may leave at any moment.

A command's ``main`` hands its body to :func:`run_command` and exits with the status that comes back. The body parses
the command line, too, since that may print.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper

from fabella.errors import FabellaError

INTERRUPTED = 130  # as a shell says it of Ctrl-C: 128 + SIGINT


def run_command(
    name: str, body: Callable[[], int | None], errors: tuple[type[Exception], ...] = (FabellaError, OSError)
) -> int:
    """Runs the body of a command and returns its exit status.

    Standard output becomes UTF-8, whatever the terminal's code page: a story may hold any character. A stream that is
    closed from the beginning is written to nowhere. When the reader of a stream leaves, the command ends quietly.

    Parameters
    ----------
    name
        The command's, which its messages begin with.
    body
        Returns the exit status, None for 0.
    errors
        Those whose words are meant for the user: one line on standard error, and status 1.
    """
    open_streams()
    try:
        status = _run(body)
        sys.stdout.flush()
        sys.stderr.flush()
        return status
    except BrokenPipeError:  # whoever reads has had enough, as in `| head`
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except errors as error:
        with suppress(OSError):
            print(f"{name}: {words(error)}", file=sys.stderr, flush=True)
        return 1
    finally:
        _let_go(sys.stdout)
        _let_go(sys.stderr)


def _run(body: Callable[[], int | None]) -> int:
    try:
        return body() or 0
    except SystemExit as end:  # argparse has printed its help, or what is wrong, and sys.exit() may have words
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)


def open_streams() -> None:
    """Opens what the caller has closed of the standard streams, and has any character written to the others.

    A closed one would be the next file that is opened, and what is printed would end up in it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # for the programs that a command starts
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 - stays open until the end
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    # A file's name may hold bytes that are not text in any encoding.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def words(error: Exception) -> str:
    """What an error says to a person: of an ``OSError`` the file and the reason, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _let_go(stream: object) -> None:
    """Flushes a stream; what it cannot take is dropped, or Python would complain of it when it exits."""
    if isinstance(stream, TextIOWrapper):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
