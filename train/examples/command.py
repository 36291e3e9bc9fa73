"""The command line of a worked example: make the examples, measure a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fabella.console import run_command
from fabella.errors import FabellaError

from .. import explain, tinystories


def run_example(
    name: str, what: str, make: Callable[..., None], measure: Callable[..., None], of_text: tuple[str, ...] = ()
) -> int:
    """Run ``python -m train.examples.NAME make FILE`` or ``... measure MODEL [--adapter FILE]``.

    Parameters
    ----------
    what
        What the example teaches, for --help.
    make
        Writes the examples to a file: its path.
    measure
        Prints how well a model does, with or without an adapter: their paths.
    of_text
        The commands that also take the path of a text: --text, or TinyStories (22 MB, downloaded once).

    Returns the exit status.
    """
    parser = argparse.ArgumentParser(prog=f"python -m train.examples.{name}", description=what)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write the examples")
    making.add_argument("file", type=Path)
    measuring = commands.add_parser("measure", help="measure a model, with or without an adapter")
    measuring.add_argument("model", type=Path)
    measuring.add_argument("--adapter", type=Path)
    for command in of_text:
        commands.choices[command].add_argument("--text", type=Path, help="of documents, in the place of TinyStories")

    def body() -> None:
        options = parser.parse_args()
        text = (options.text or tinystories.fetch(tinystories.VALID),) if options.command in of_text else ()
        if options.command == "make":
            make(options.file, *text)
        else:
            measure(options.model, options.adapter, *text)

    return run_command(name, body, (OSError, ValueError, FabellaError))


if __name__ == "__main__":
    explain(__doc__)
