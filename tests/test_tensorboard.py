"""TensorBoard reads the numbers of curve.csv, each once, whatever happened to the training."""

from __future__ import annotations

import csv
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import distill
from train import train as training
from train.checkpoint import Checkpoint
from train.run import RunFolder

from .trainings import SHAPE, write_stories

COLUMNS = ("train_bits_per_byte", "valid_bits_per_byte", "learning_rate")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measures after every five steps, saves after each, and tells short stories."""
    monkeypatch.setattr(training, "SAVE_EVERY", -1)
    monkeypatch.setattr("train.announce.SAMPLE", 4)
    monkeypatch.setattr("train.curve.draw_curve", lambda *_: b"")
    text = write_stories(tmp_path / "stories.txt")
    return [str(text), "--out", str(tmp_path / "run"), *SHAPE, "--eval-every", "5"]


def train(*command: str) -> Checkpoint:
    return training.train(training.parse_arguments([*command]))


def points(folder: Path, name: str) -> dict[int, float]:
    """What TensorBoard shows under a name: values over the tokens learned from, each there once."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = [(event.step, event.value) for event in events.Scalars(name)]
    assert found == sorted(set(found))
    assert len(dict(found)) == len(found)
    return dict(found)


def check_against_the_table(folder: Path) -> list[dict[str, str]]:
    """Return the rows of curve.csv, after all of them were found, and nothing else, in the event files."""
    with open(folder / "curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in COLUMNS:
        in_table = {int(row["tokens"]): float(np.float32(row[name])) for row in rows if row[name]}
        assert points(folder, name) == in_table
    times = [(0, 0.0), *((int(row["tokens"]), float(row["seconds"])) for row in rows)]
    speeds = {tokens: (tokens - before) / (seconds - then) for (before, then), (tokens, seconds) in pairwise(times)}
    assert points(folder, "tokens_per_second") == pytest.approx(speeds)
    return rows


def test_a_training_writes_its_curve_for_tensorboard(command: list[str], tmp_path: Path) -> None:
    result = train(*command, "--tokens", "3000", "--tensorboard")
    rows = check_against_the_table(tmp_path / "run")
    assert len(rows) == len(result.curve) >= 3
    assert len(RunFolder(tmp_path / "run").events) == 1


def test_a_resumed_training_has_each_point_once(command: list[str], tmp_path: Path) -> None:
    """Also where the last training had written more than its checkpoint knows."""
    first = train(*command, "--tokens", "3000", "--tensorboard")
    assert first.step % 5
    (tmp_path / "run/checkpoint.pt").unlink()  # the one before it does not have the last row
    second = train(*command, "--tokens", "6000", "--tensorboard", "--resume")
    rows = check_against_the_table(tmp_path / "run")
    assert first.tokens not in [int(row["tokens"]) for row in rows]
    assert len(rows) == len(second.curve) > len(first.curve)


def test_a_curve_without_event_files_can_be_had_for_tensorboard_later(command: list[str], tmp_path: Path) -> None:
    train(*command, "--tokens", "3000")
    assert not RunFolder(tmp_path / "run").events
    train(*command, "--tokens", "3000", "--resume", "--tensorboard")  # which has nothing to learn any more
    assert len(check_against_the_table(tmp_path / "run")) >= 3


@pytest.mark.parametrize("main", [training, distill])
def test_a_missing_package_is_said_at_once(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    positional = ["no teacher", "no text"] if main is distill else ["no text"]
    with pytest.raises(SystemExit) as end:
        main.parse_arguments([*positional, "--out", str(tmp_path / "run"), "--tensorboard"])
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "--tensorboard: needs the package tensorboard" in last
    assert last.endswith("pip install tensorboard")


def test_a_full_disk_ends_the_event_file_and_not_the_training(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    write = RecordWriter.write

    def full(self: Any, data: bytes) -> None:
        if b"tokens_per_second" in data:
            raise OSError(28, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    assert train(*command, "--tokens", "3000", "--tensorboard").tokens >= 3000
    said = capfd.readouterr().err
    assert said.count("TensorBoard's file could not be written (No space left on device)") == 1
    assert "Traceback" not in said
    assert len(list((tmp_path / "run").glob("*.pt"))) == 3  # the checkpoint, the one before, the best


def test_event_files_are_the_run_s_own(tmp_path: Path) -> None:
    """Those of somebody else are left alone; a run that has saved nothing takes its own along."""
    folder = RunFolder(tmp_path / "run")
    events = tmp_path / "run/events.out.tfevents.1"
    with folder.held(resume=False):
        events.touch()
        assert folder.owns(events)
    assert not events.exists()
    events.parent.mkdir()
    events.touch()
    with pytest.raises(FileExistsError, match=r"tfevents\.1: is there already"), folder.held(resume=False):
        pass
    assert events.exists()
