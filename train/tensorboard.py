"""The learning curve for TensorBoard, which draws it in the browser while the model learns: tensorboard --logdir out.

The numbers are those of curve.csv, by the same names, over the tokens learned from; tokens_per_second is the speed
between two rows. They lie in the run's folder, in a file for each start (events.out.tfevents.*). What a killed training
wrote there last may be more than its checkpoint knows, or less. Each start therefore writes the curve so far anew, in
the place of (purge_step) all that earlier files have, so that no point is missing, and none is there twice.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from fabella.console import words

from . import explain
from .checkpoint import Checkpoint
from .curve import TABLE_COLUMNS, as_table
from .progress import say
from .run import RunFolder


def check_installed() -> None:
    """Raise ``ValueError`` if TensorBoard's files cannot be written here."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except Exception as error:  # whatever a package, or one that it needs, may raise
        raise ValueError(
            f"--tensorboard: needs the package tensorboard ({words(error)}); pip install tensorboard"
        ) from error


class EventLog:
    """A run's event file, between ``with`` and its end. What goes wrong is said and ends nothing, as with the curve."""

    def __init__(self, folder: RunFolder, run: Checkpoint) -> None:
        self.folder, self.run = folder, run
        self.written = 0  # rows of the curve
        self.failed = False

    def __enter__(self) -> EventLog:
        from torch.utils.tensorboard import SummaryWriter

        # It writes in a thread, whose errors flush() raises in ours; there is no need for a traceback besides.
        self.previous_hook, threading.excepthook = threading.excepthook, self._leave_to_flush
        try:
            self.writer = SummaryWriter(str(self.folder.path), purge_step=0)
        except OSError as error:
            self._give_up(error)
        self.write()
        return self

    def write(self) -> None:
        """Write the rows of the curve that are not written yet."""
        if self.failed:
            return
        run = self.run
        rows = [dict(zip(TABLE_COLUMNS, row, strict=True)) for row in as_table(run.curve, run.bytes_per_token)]
        try:
            for number in range(self.written, len(rows)):
                before = rows[number - 1] if number else dict.fromkeys(TABLE_COLUMNS, 0)
                self._write_row(rows[number], before)
            self.writer.flush()
            self.written = len(rows)
        except OSError as error:
            self._give_up(error)

    def _write_row(self, row: dict, before: dict) -> None:
        values = {name: row[name] for name in ("train_bits_per_byte", "valid_bits_per_byte", "learning_rate")}
        seconds = row["seconds"] - before["seconds"]
        values["tokens_per_second"] = (row["tokens"] - before["tokens"]) / seconds if seconds else None
        then = time.time() - (self.run.seconds - row["seconds"])  # as if there had been no pause
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(name, value, row["tokens"], then)

    def _give_up(self, error: OSError) -> None:
        self.failed = True
        say(f"TensorBoard's file could not be written ({words(error)}); --resume --tensorboard writes it anew.")

    def _leave_to_flush(self, exception: threading.ExceptHookArgs) -> None:
        if not type(exception.thread).__module__.startswith("tensorboard."):
            self.previous_hook(exception)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.failed:
            self.writer.close()
        threading.excepthook = self.previous_hook


if __name__ == "__main__":
    explain(__doc__)
