"""The folder of a training run: what lies in it, who may write there, and how nothing in it is ever half or lost.

    checkpoint.pt           the last state saved, with a checksum (see checkpoint.py)
    checkpoint.old.pt       the one before it
    checkpoint.damaged.pt   what --resume found in place of a checkpoint, set aside
    best.pt                 the model that was best on the held-out text, which export, sample and evaluate take
    tokenizer.model         trained once, at the run's first start; a fine-tuning has its base's, and no file for it
    tokens.cache            the text as tokens: made anew whenever it does not fit; of no fine-tuning
    labels/                 of a student (distill.py): what its teacher says of each token, see labels.py
    curve.csv, curve.png    loss and bits per byte so far
    events.out.tfevents.*   the same for TensorBoard, if it is asked for (tensorboard.py)
    training.lock           held by the training that works here, and let go by the system when that ends, however

This module alone knows these names. It is apart from checkpoint.py, which knows what a checkpoint holds, so that all of
this can be read, and tried, without PyTorch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import explain
from .files import Damaged, check_sealed, flush, read_sealed, replacing, write_sealed
from .progress import say

MAPPED_FROM = 1 << 28  # bytes of a cache
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
ANOTHER_TOKENIZER = "put it back, or that of another run of the same text and --vocab-size, which is the same"


class RunFolder:
    """A run's folder. Anybody may read; writing is for the one who holds it (`held`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.previous = path / "checkpoint.old.pt"
        self.damaged = path / "checkpoint.damaged.pt"
        self.best = path / "best.pt"
        self.tokenizer = path / "tokenizer.model"
        self.cache = path / "tokens.cache"
        self.curve_table = path / "curve.csv"
        self.curve_picture = path / "curve.png"
        self.files = tuple(value for name, value in vars(self).items() if name != "path")
        self.halves = tuple(file.with_suffix(".tmp") for file in self.files)
        self.lock = path / "training.lock"

    @property
    def labels(self) -> Path:
        """The folder of a teacher's labels."""
        return self.path / "labels"

    @property
    def events(self) -> tuple[Path, ...]:
        """TensorBoard's files, which name themselves."""
        return tuple(self.path.glob("events.out.tfevents.*"))

    def owns(self, path: Path) -> bool:
        """Whether ``path`` is one of the run's own files."""
        return path.resolve() in [own.resolve() for own in (*self.files, *self.halves, *self.events, self.lock)]

    # --- Who works here ---

    @contextmanager
    def held(self, resume: bool) -> Iterator[None]:
        """Hold the folder for training: made if it is not there, locked, cleared of half files.

        A new run that saved no model leaves nothing behind. Raises ``OSError``, in words: there is no checkpoint
        to ``resume``, or one that a new run would overwrite; somebody else's files would be; another training works
        here; the folder cannot be written in.
        """
        self._check(resume)
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(f"{self.path}: this folder cannot be written in; choose another --out")
        descriptor = _lock(self.lock)
        try:
            self._check(resume)  # again: another training may have ended here in between
            for path in self.halves:
                path.unlink(missing_ok=True)
            try:
                yield
            finally:
                if not resume and not any(path.exists() for path in (self.checkpoint, self.previous, self.best)):
                    with suppress(OSError):
                        for path in (*self.files, *self.events, self.lock):
                            path.unlink(missing_ok=True)
                        self.path.rmdir()  # unless something else is in it
        finally:
            os.close(descriptor)

    def _check(self, resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path}: is a file; --out must be a folder")
        there = self.checkpoint.exists() or self.previous.exists()
        if resume and not there:
            raise FileNotFoundError(f"{self.checkpoint}: no such checkpoint; train first, without --resume")
        if not resume and there:
            raise FileExistsError(f"{self.path}: has a checkpoint; go on with --resume, or choose another --out")
        if not resume and self.best.exists() and self.lock.exists():
            raise FileExistsError(
                f"{self.best}: is the best model of a training that has no checkpoint any more; choose another --out, "
                "or export it and delete it"
            )
        if not resume and not self.lock.exists():
            for path in (*self.files, *self.halves, *self.events):
                if path.exists():
                    raise FileExistsError(
                        f"{path}: is there already, and no run of this program wrote it; choose another --out"
                    )

    def check_room(self, size: int) -> None:
        """Raise ``OSError`` if a checkpoint of ``size`` bytes does not fit on the disk. Some files may go."""
        free = shutil.disk_usage(self.path).free + sum(path.stat().st_size for path in self._in_its_way())
        if free < size:
            raise OSError(
                f"{self.path}: no space left for a checkpoint of {size / 1e6:,.1f} MB: the disk has "
                f"{free / 1e6:,.1f} MB; make room, or choose another --out"
            )

    # --- The checkpoint ---

    def write_checkpoint(self, content: bytes) -> None:
        """Save; the checkpoint so far becomes the one before. Raises ``OSError``: all is then as it was.

        Where the disk has no room for it, what can be had again makes room, and then the one before.
        """
        while True:
            try:
                self._write_checkpoint(content)
                return
            except OSError as error:
                if error.errno not in NO_ROOM or not (going := self._in_its_way()):
                    raise
                say(f"The disk is full: {going[0]} makes room for the new checkpoint.")
                going[0].unlink()

    def _in_its_way(self) -> list[Path]:
        """The files that go, in this order, where the disk has no room for a checkpoint."""
        cache = self.cache.is_file() and not self._mapped()
        return [self.cache] * cache + [self.previous] * (self.previous.is_file() and self.checkpoint.exists())

    def _write_checkpoint(self, content: bytes) -> None:
        with replacing(self.checkpoint, self.checkpoint.with_suffix(".tmp")) as half:
            self._write_checked(half, content)
            if self.checkpoint.exists():
                self._keep_previous()

    def _write_checked(self, half: Path, content: bytes) -> None:
        write_sealed(half, "checkpoint", [content])
        flush(half)
        if read_sealed(half, "checkpoint") != content:
            raise OSError(f"{half}: the disk gives back something else than was written")

    def write_best(self, content: bytes) -> None:
        """Save the best model in place of the one so far. Raises ``OSError``: that is then as it was."""
        with replacing(self.best, self.best.with_suffix(".tmp")) as half:
            self._write_checked(half, content)

    def read_best(self) -> bytes:
        """Return the best model saved. Raises ``FileNotFoundError`` or ``Damaged``."""
        try:
            return read_sealed(self.best, "checkpoint")
        except Damaged as error:
            raise Damaged(f"{error}; delete it to have the last checkpoint taken instead") from error

    def _keep_previous(self) -> None:
        """Give the checkpoint a second name; no moment is without a checkpoint.pt."""
        second = self.previous.with_suffix(".tmp")
        try:
            second.unlink(missing_ok=True)
            second.hardlink_to(self.checkpoint)
            second.replace(self.previous)
            second.unlink(missing_ok=True)  # a rename between two names of one file does nothing
        except OSError:  # a file system without second names: for a moment only the one before is there
            self.checkpoint.replace(self.previous)

    def read_checkpoint(self) -> bytes:
        """Return what was saved last.

        Raises ``FileNotFoundError``; ``Damaged``, which says so if the one before is there; or ``ValueError`` if it was
        written by a version that knew no checksums.
        """
        try:
            if not self.checkpoint.is_file():
                if self.previous.is_file():
                    raise Damaged(f"{self.checkpoint}: is missing")
                raise FileNotFoundError(f"{self.checkpoint}: no such checkpoint; train first (python -m train.train)")
            with open(self.checkpoint, "rb") as file:
                if file.read(4) == b"PK\x03\x04":
                    raise ValueError(
                        f"{self.checkpoint}: was written by an earlier version of this program, without a checksum; "
                        "use that version to go on or to export, or train anew"
                    )
            return read_sealed(self.checkpoint, "checkpoint")
        except Damaged as error:
            if self._has_whole_previous():
                raise Damaged(
                    f"{error}; the one before it is there ({self.previous.name}), and --resume goes on from that"
                ) from error
            raise

    def _has_whole_previous(self) -> bool:
        try:
            read_sealed(self.previous, "checkpoint")
        except (OSError, Damaged):
            return False
        return True

    def restore_previous(self, why: Damaged) -> str:
        """Put the checkpoint before in the place of a missing or damaged one, which is set aside; say so in words.

        ``why`` says what is wrong with that one. Raises ``Damaged`` if there is none before it, or that is damaged,
        too; then nothing was changed.
        """
        if not self.previous.is_file():
            best = f", but {self.best.name} can be exported" if self.best.is_file() else ""
            raise Damaged(f"{why}; there is none before it to go on from{best}") from why
        try:
            check_sealed(self.previous, "checkpoint")
        except Damaged:
            problem = f"is damaged, and so is the one before it ({self.previous.name}); begin anew in another --out"
            raise Damaged(f"{self.checkpoint}: {problem}") from why
        if not self.checkpoint.exists():
            self.previous.replace(self.checkpoint)
            return f"{self.checkpoint} was missing; going on from the one before it ({self.previous.name})"
        self.checkpoint.replace(self.damaged)
        self.previous.replace(self.checkpoint)
        return (
            f"{self.checkpoint} was damaged, and is now {self.damaged.name}; going on from the one before it "
            f"({self.previous.name})"
        )

    # --- The other files ---

    def hash_tokenizer(self) -> str:
        """The SHA-256 of the tokenizer's file; ``FileNotFoundError`` if it is not there."""
        if not self.tokenizer.is_file():
            raise FileNotFoundError(f"{self.tokenizer}: no such tokenizer; {ANOTHER_TOKENIZER}")
        return hashlib.sha256(self.tokenizer.read_bytes()).hexdigest()

    def write_tokenizer(self, content: bytes) -> None:
        """Keep the tokenizer that the run is to have: a SentencePiece model."""
        self._write(self.tokenizer, content)

    def write_cache(self, name: bytes, parts: Callable[[], Iterable[bytes]]) -> NDArray[np.uint8]:
        """Keep what ``parts`` yields, under a ``name`` of 32 bytes, in place of what was kept before, and return it.

        Without room for it on the disk the work goes on without.
        """
        try:
            with replacing(self.cache, self.cache.with_suffix(".tmp")) as half:
                write_sealed(half, "tokens", chain([name], parts()))
        except OSError as error:
            say(f"{self.cache}: could not be written ({error.strerror}); the next start will encode the text again.")
            return np.frombuffer(b"".join(parts()), np.uint8)
        kept = self.read_cache(name)
        if kept is None:
            raise OSError(f"{self.cache}: the disk gives back something else than was written")
        return kept

    def read_cache(self, name: bytes) -> NDArray[np.uint8] | None:
        """What is kept under ``name``, in memory or, if it is large, on the disk; None if it is missing or damaged."""
        try:
            begin = check_sealed(self.cache, "tokens")
        except (OSError, Damaged):
            return None
        with open(self.cache, "rb") as file:
            file.seek(begin)
            if file.read(len(name)) != name:
                return None
            if self._mapped():
                return np.asarray(np.memmap(self.cache, np.uint8, "r", offset=file.tell()))
            return np.frombuffer(file.read(), np.uint8)

    def _mapped(self) -> bool:
        """Whether the cache is so large that it is used where it is; to delete it then would free nothing."""
        return self.cache.stat().st_size >= MAPPED_FROM

    def write_curve_table(self, table: str) -> None:
        """Keep the learning curve's numbers."""
        self._write(self.curve_table, table.encode())

    def write_curve_picture(self, picture: bytes) -> None:
        """Keep the learning curve, drawn."""
        self._write(self.curve_picture, picture)

    def _write(self, path: Path, content: bytes) -> None:
        with replacing(path, path.with_suffix(".tmp")) as half:
            half.write_bytes(content)


def _lock(path: Path) -> int:
    """Open and lock a file; return its descriptor, which holds the lock until it is closed or its process ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another one may have removed the file between our opening and our locking it.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise BlockingIOError(
                    f"{path.parent}: another training works in this folder; wait for it, or choose another --out"
                ) from error
            raise OSError(
                f"{path.parent}: no lock can be had in this folder ({error.strerror}), as on some network disks: "
                "choose an --out on another disk"
            ) from error
        os.close(descriptor)


if __name__ == "__main__":
    explain(__doc__)
