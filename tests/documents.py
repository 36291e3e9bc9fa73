"""What documents tell their readers to type, and how a test does it: each command, with less work than theirs."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from builder.tools import PYTHON, ROOT

# How a command is run (None: not at all, another test does), what is put behind it, and what it prints.
Way = tuple[Callable[[str], str] | None, str, str]

QUICK = (
    "--tokens 2000 --vocab-size 300 --dim 32 --hidden-dim 32 --layers 1 --context 64 --batch-tokens 256 --no-compile"
)


def commands(document: str) -> list[str]:
    """The lines of a document's blocks of commands, without their comments, then the commands in its sentences."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)  # of something else
    lines = re.findall(r"^    (\S.*)$", re.sub(r" *\\\n +", " ", blocks), re.MULTILINE)
    inline = re.findall(r"`((?:echo|python|pytest|torchrun) [^`]*)`", blocks)
    return [line.partition("  #")[0].strip() for line in lines + [" ".join(line.split()) for line in inline]]


def programs(document: str) -> list[str]:
    """A document's Python."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)


def check_commands(document: str, ways: Mapping[str, Way], own_files: Mapping[str, str]) -> None:
    """Run all of a document's commands, in its order.

    Parameters
    ----------
    ways
        By the beginning of the command (the longest that fits counts), how it is run. Each must be used.
    own_files
        By the names that the document has for files, the paths of the test's.
    """
    used = set()
    for command in commands(document):
        begin = max((way for way in ways if command.startswith(way)), key=len, default=None)
        assert begin, f"{command}: {document} has a command that this test does not run"
        used.add(begin)
        way, behind, printed = ways[begin]
        for name, path in own_files.items():
            command = re.sub(rf"(?<![\w/-]){re.escape(name)}(?![\w-])", path, command)
        if way:
            assert printed in way(command + behind), command
    assert used == set(ways), f"{document} has no such commands any more"


def run(command: str, folder: Path = ROOT) -> str:
    """Run a command as a reader does, in the activated environment; return what it printed."""
    activated = {**os.environ, "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=activated, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def served(command: str) -> str:
    """Run a command that serves until Ctrl-C; return what it says of that."""
    words = [str(PYTHON) if word == "python" else word for word in shlex.split(command)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = next((line for line in process.stdout if line.startswith("Serving")), "")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    return said
