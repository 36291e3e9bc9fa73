"""Offline training in PyTorch: train, finetune, distill, evaluate, sample, export, convert. Begin with model.py."""

import os
import sys
from pathlib import Path
from typing import NoReturn

# The driver need not be installed: its source beside this folder is enough.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "py"))

# PyTorch's threads wait for each other by spinning, about a millisecond long, on a core that another program may need:
# two trainings at once were up to sixty times as slow as one. Sleeping at once makes one alone slower; a thousand turns
# are as fast alone, and leave two their half each (LOG.md, 2026-11-25). This is for GNU's OpenMP, PyTorch's on Linux,
# which reads it once, when PyTorch is loaded. Whoever has chosen a way to wait keeps it.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

# oneDNN, which multiplies PyTorch's matrices on a CPU, keeps the program that it makes for each shape, up to 1,024 of
# them, megabytes each. Batches have many shapes: a long fine-tuning came to half as much memory again. As fast are 128
# (LOG.md, 2026-11-27).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

# A command: it takes seconds to import PyTorch, and Ctrl-C in them is not worth a traceback.
if sys.argv[:1] == ["-m"]:
    usual = sys.excepthook
    sys.excepthook = lambda kind, error, trace: None if kind is KeyboardInterrupt else usual(kind, error, trace)


def explain(module: str | None) -> NoReturn:
    """What ``python -m`` says of a module without a command: its docstring, and where the commands are."""
    from fabella.console import run_command

    def body() -> int:
        commands = "train.train, train.finetune, train.distill, train.write, train.transplant, train.evaluate, "
        commands += "train.sample, train.export and train.convert; each has --help"
        print(f"{(module or '').strip()}\n\nThis module is not a command. The commands are {commands}.")
        return 0 if {"-h", "--help"} & set(sys.argv[1:]) else 2

    sys.exit(run_command("train", body))
