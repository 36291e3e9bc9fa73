"""Where the bytes of a file are: on disk, in Python's memory, or (see hosts.py) in that of the page."""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType
from typing import BinaryIO, Protocol, Self, runtime_checkable


class ByteSource(Protocol):
    """Something that bytes can be read from: a file, a bytes object, a download in the page."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the `size` bytes from `offset`; the caller stays within `self.size`."""


@runtime_checkable
class TextSource(ByteSource, Protocol):
    """One that finds many texts at once."""

    def texts(self, offset: int, count: int) -> tuple[bytes, int] | None:
        """Return texts that lie one behind the other, each behind its length (u64).

        Returns
        -------
        All of them with a zero byte between two, and the offset behind the last; None if the file ends before.
        """


class BytesSource:
    """A file that is already in Python's memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class Closing:
    """What is closed at the end of a `with` statement."""

    def close(self) -> None:
        """Give back what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FileSource(Closing):
    """A file on disk; close it, or use it in a `with` statement. Raises OSError if it cannot be opened."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "this is a folder; name the file in it", os.fspath(path))
        if not stat.S_ISREG(mode):  # a pipe would not even open before somebody writes
            raise OSError(errno.ESPIPE, "this is a pipe or a device; save the model as a file", os.fspath(path))
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 - stays open until close()
        self.size = self._file.seek(0, os.SEEK_END)

    def read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
