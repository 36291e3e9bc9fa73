"""Several processes train one model: the same losses as one has, one folder, and a lost process loses nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.checkpoint import Checkpoint
from train.run import RunFolder

from .trainings import PROGRAM, SHAPE, write_stories

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = [*SHAPE, "--eval-every", "10"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stories(tmp_path_factory.mktemp("text") / "stories.txt")


def start(processes: int, text: Path, out: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    program = out.parent / "program.py"
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = torchrun if processes > 1 else [sys.executable]
    command += [str(program), str(text), "--out", str(out), *OPTIONS, *more]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_have_the_losses_of_one(text: Path, tmp_path: Path) -> None:
    runs = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        with start(processes, text, out, "--tokens", "4000", "--tensorboard") as process:
            said, errors = process.communicate()
        assert process.returncode == 0, errors
        assert said.count("Done: ") == 1
        assert len(RunFolder(out).events) == 1
        runs.append(Checkpoint.load(out))
    one, two = runs
    assert (one.step, one.tokens) == (two.step, two.tokens)
    for row, other in zip(one.curve, two.curve, strict=True):
        assert row[:2] == other[:2]
        assert row[3:5] == pytest.approx(other[3:5], rel=2e-3)


def test_a_lost_process_ends_the_training_and_loses_nothing(text: Path, tmp_path: Path) -> None:
    out, pids = tmp_path / "run", tmp_path / "pids"
    pids.mkdir()
    with start(2, text, out, "--rounds", "100000", PIDS=str(pids)) as process:
        while not (out / "checkpoint.old.pt").exists():  # two were saved
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.kill(int((pids / "1").read_text()), signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode
    assert re.search("train: (one of the processes has ended|could not)|Signal 9|exitcode  *: -9", errors), errors
    step = Checkpoint.load(out).step
    assert not list(out.glob("*.tmp"))
    with start(1, text, out, "--tokens", str(Checkpoint.load(out).tokens + 1000), "--resume") as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert Checkpoint.load(out).step > step
