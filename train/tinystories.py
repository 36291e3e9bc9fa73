"""Fetches TinyStories (Eldan & Li 2023, arXiv:2305.07759): two million stories for small children, 2.2 GB of text.

    python -m train.train TinyStories --out out/tinystories

The files are those of version 2, all written by GPT-4, as https://huggingface.co/datasets/roneneldan/TinyStories has
them under the licence CDLA-Sharing-1.0. They are kept in the user's cache; a download that broke off goes on where it
was, and one whose size is not the announced is refused.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from . import explain
from .files import flush
from .progress import Progress, say

NAME = "TinyStories"
URL = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"
TRAIN, VALID = "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"
READ_AT_ONCE = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without a byte
TRIES = 5


def is_named(path: Path) -> bool:
    """Whether ``path`` is no file but the name of this text."""
    return str(path).lower() == NAME.lower() and not path.exists()


def fetch(file: str) -> Path:
    """The path of `TRAIN` or `VALID`, downloaded if it is not there yet. Raises ``OSError``, in words."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "fabella" / "tinystories" / file
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        download(URL + file, path)
    return path


def download(url: str, path: Path) -> None:
    """Download to ``path``. What has come of it stays beside it until it is whole. Raises ``OSError``, in words."""
    part = path.with_suffix(".part")
    for left in reversed(range(TRIES)):
        before = _size(part)
        try:
            _go_on(url, part)
            break
        except (OSError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 416 and left:  # more is there than there is
                part.unlink(missing_ok=True)
                continue
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            told = f"{url}: cannot be downloaded ({reason})"
            if isinstance(error, urllib.error.HTTPError) or not left or _size(part) == before:
                raise OSError(f"{told}. What has come is kept; the same command goes on from there") from error
            say(f"{told}; trying again")
    flush(part)
    part.replace(path)


def _go_on(url: str, part: Path) -> None:
    """Ask for what is missing of ``part``, and add what comes."""
    done = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # the host sends all of it
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with (
            open(part, "ab" if done else "wb") as file,
            Progress(part.stem, total or 0, "B", done=done, brief=False) as progress,
        ):
            while block := response.read(READ_AT_ONCE):
                file.write(block)
                progress.update(len(block))
    if total is not None and _size(part) != total:
        raise OSError(f"only {_size(part):,} of {total:,} bytes came")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


if __name__ == "__main__":
    explain(__doc__)
