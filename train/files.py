"""Files that are whole or not there: written beside, flushed to the disk, then renamed; some carry a checksum."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import explain

READ_AT_ONCE = 1 << 20  # bytes


class Damaged(ValueError):
    """A file is not what this program wrote: cut, changed, or replaced by something else."""


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Write a new ``path``: the body writes to the path that it is given, beside the old file.

    After the body the new file is flushed to the disk and takes the old one's place. Whatever goes wrong, the old file
    stays as it was and the half one is removed. An ``OSError`` names ``path``.
    """
    temporary = temporary or path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.strerror:
            error.filename = str(path)  # the half file's name would say nothing
        raise


def flush(path: Path) -> None:
    """Wait until the file is on the disk: otherwise a crash could leave a renamed, empty one."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Wait until the folder's names are on the disk."""
    if os.name == "nt":  # has no such call, and needs none
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some shared folders do not know how
            raise
    finally:
        os.close(descriptor)


def write_sealed(path: Path, kind: str, content: Iterable[bytes]) -> None:
    """Write ``content``, which may come in parts, behind a line that says what it is, and its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        file.write(_first_line(kind) + bytes(digest.digest_size))
        for part in content:
            digest.update(part)
            file.write(part)
        file.seek(len(_first_line(kind)))
        file.write(digest.digest())


def read_sealed(path: Path, kind: str) -> bytes:
    """Return the content that `write_sealed` wrote. Raises ``Damaged`` if a single byte of the file is another."""
    return path.read_bytes()[check_sealed(path, kind) :]


def check_sealed(path: Path, kind: str) -> int:
    """Return the place where the content of a sealed file begins; ``Damaged`` if a single byte of it is another."""
    first, digest = _first_line(kind), hashlib.sha256()
    with open(path, "rb") as file:
        if file.read(len(first)) != first:
            raise Damaged(f"{path}: not a {kind} of this program, or damaged in its first bytes")
        checksum = file.read(digest.digest_size)
        begin = file.tell()
        while part := file.read(READ_AT_ONCE):
            digest.update(part)
        if digest.digest() != checksum:
            raise Damaged(f"{path}: damaged; its checksum does not fit its {file.tell():,} bytes")
    return begin


def _first_line(kind: str) -> bytes:
    return f"fabella {kind} 1\n".encode()


def check_output(path: Path) -> None:
    """Raise ``OSError``, in words, if it is plain already that ``path`` cannot be written."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name the file to write in it")
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: is not a plain file, and cannot be replaced by one")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent} to write it in")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: the folder {path.parent} cannot be written in")


if __name__ == "__main__":
    explain(__doc__)
