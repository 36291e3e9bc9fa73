"""The command line of a worked example: make the examples, measure a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fabella.console import run_command
from fabella.errors import FabellaError

from .. import explain


def run_example(
    name: str, what: str, make: Callable[[Path], None], measure: Callable[[Path, Path | None], None]
) -> int:
    """Run ``python -m train.examples.NAME make FILE`` or ``... measure MODEL [--adapter FILE]``.

    Parameters
    ----------
    what
        What the example teaches, for --help.
    make
        Writes the examples to a file.
    measure
        Prints how well a model does, with or without an adapter.

    Returns the exit status.
    """
    parser = argparse.ArgumentParser(prog=f"python -m train.examples.{name}", description=what)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make", help="write the examples").add_argument("file", type=Path)
    measuring = commands.add_parser("measure", help="measure a model, with or without an adapter")
    measuring.add_argument("model", type=Path)
    measuring.add_argument("--adapter", type=Path)

    def body() -> None:
        options = parser.parse_args()
        if options.command == "make":
            make(options.file)
        else:
            measure(options.model, options.adapter)

    return run_command(name, body, (OSError, FabellaError))


if __name__ == "__main__":
    explain(__doc__)
