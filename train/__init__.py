"""Offline training in PyTorch: data, tokenizer, model, train, evaluate, sample, export. Begin with model.py."""

import sys
from pathlib import Path
from typing import NoReturn

# The driver need not be installed: its source beside this folder is enough.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "py"))


def explain(module: str | None) -> NoReturn:
    """What ``python -m`` says of a module without a command: its docstring, and where the commands are."""
    from fabella.console import run_command

    def body() -> int:
        commands = "train.train, train.evaluate, train.sample and train.export"
        print(
            f"{(module or '').strip()}\n\nThis module is not a command. The commands are {commands}; each has --help."
        )
        return 0 if {"-h", "--help"} & set(sys.argv[1:]) else 2

    sys.exit(run_command("train", body))
