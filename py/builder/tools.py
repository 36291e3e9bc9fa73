"""Small tools of the builder: the repository's places, commands, hashes, folders that nobody sees half written."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
CACHE = ROOT / "build"
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
NODE_MODULES = ROOT / "node_modules"
SCRATCH = ".building-"  # begins the names of folders in which something is made


class BuildError(Exception):
    """The build cannot go on; the message says why and what to do."""


def say(message: str) -> None:
    """Print one line at once, also where the output is a pipe."""
    print(message, flush=True)


def run(*command: str | Path, **variables: str) -> str:
    """Run a command in the repository, silently unless it fails, and return what it printed.

    The keywords are environment variables for it, on top of our own.
    """
    environment = {**os.environ, **variables}
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=pipe, stderr=out, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is not installed") from None
    if done.returncode:
        printed = done.stdout.rstrip()[-10_000:]  # Node quotes a whole line, and some have megabytes
        raise BuildError(f"this command failed:\n{' '.join(map(str, command))}\n{printed}".rstrip())
    return done.stdout


def digest(*inputs: str | bytes | Path) -> str:
    """Return a short hash of texts, bytes and files (their contents, whatever their names)."""
    total = hashlib.sha256()
    for item in inputs:
        data = item.read_bytes() if isinstance(item, Path) else item.encode() if isinstance(item, str) else item
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()[:10]


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


@contextmanager
def locked(folder: Path) -> Iterator[bool | None]:
    """Hold a folder's lock; yield True if it was free, False if it was not, None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A temporary folder beside what will become of it, so that a rename moves it into place.

    What killed builds have left there is removed. A build that is still running is known by the lock of its folder; one
    that has just made its folder may lose it before it has the lock, and then makes another.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for other in parent.glob(f"{SCRATCH}*"):
        with suppress(OSError), locked(other) as left_over:
            if left_over:
                shutil.rmtree(other, ignore_errors=True)
    while True:
        with (
            tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent, ignore_cleanup_errors=True) as name,
            ExitStack() as held,
        ):
            folder = Path(name)
            try:
                free = held.enter_context(locked(folder))
            except FileNotFoundError:
                continue
            if free is not False and folder.exists():
                yield folder
                return


def cached(name: str, key: str, make: Callable[[Path], object]) -> Path:
    """Return build/NAME-KEY; `make` writes it unless an earlier run has. The key hashes all that it depends on.

    A new one takes the place of those with other keys. What is made of a model has that in its name: of two builds at a
    time, one must not take the other's away.
    """
    stem, suffix = Path(name).stem, Path(name).suffix
    path = CACHE / f"{stem}-{key}{suffix}"
    if not path.exists():
        with scratch(CACHE) as folder:
            make(folder / name)
            with (folder / name).open("rb") as made:
                os.fsync(made)  # a name must not outlive a power cut that its bytes do not
            (folder / name).replace(path)
        for old in set(CACHE.glob(f"{stem}-*{suffix}")) - {path}:
            old.unlink(missing_ok=True)
    return path
