"""A training that is killed, wherever, and resumed is the training that was never killed, bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from train.checkpoint import Checkpoint

from .trainings import PROGRAM, SHAPE, write_stories

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = [*SHAPE, *"--tokens 6000 --eval-every 5 --dropout 0.2".split()]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stories(tmp_path_factory.mktemp("text") / "stories.txt")


def start(text: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(text), "--out", str(out), *OPTIONS, *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_a_training_killed_at_random_moments_ends_the_same(text: Path, tmp_path: Path) -> None:
    with start(text, tmp_path / "whole") as process:
        assert process.wait() == 0, process.stderr and process.stderr.read()
    rng = random.Random(2)
    folder = tmp_path / "killed"
    kills = 0
    while True:
        resume = ["--resume"] if (folder / "checkpoint.pt").exists() else []
        with start(text, folder, *resume) as process:
            before = Checkpoint.load(folder).step if resume else 0
            while kills < 4 and process.poll() is None:  # until it has got somewhere, then at any moment
                if (folder / "checkpoint.pt").exists() and Checkpoint.load(folder).step > before:
                    time.sleep(rng.uniform(0, 0.05))
                    process.kill()
                    kills += 1
                    break
                time.sleep(0.002)
            if process.wait() == 0:
                break
            assert process.returncode == -9, process.stderr and process.stderr.read()
    assert kills == 4
    for load in (Checkpoint.load, Checkpoint.load_best):
        whole, killed = load(tmp_path / "whole"), load(folder)
        assert (whole.step, whole.tokens) == (killed.step, killed.tokens)
        assert [row[:5] for row in whole.curve] == [row[:5] for row in killed.curve]
        assert all(torch.equal(weight, killed.model[name]) for name, weight in whole.model.items())
    whole, killed = Checkpoint.load(tmp_path / "whole"), Checkpoint.load(folder)
    for mine, other in zip(whole.optimizers, killed.optimizers, strict=True):
        assert mine["state"].keys() == other["state"].keys()
        for number, state in mine["state"].items():
            assert all(torch.equal(value, other["state"][number][name]) for name, value in state.items())
