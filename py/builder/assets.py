"""The page's files: their names, which carry a hash, and what the page knows of each."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from builder.tools import digest

HASHED_BLOCK = 1 << 20  # bytes: the page compares the files it downloads block by block (web/download.js)


def publish(path: Path, out: Path, name: str = "{stem}-{hash}{suffix}") -> str:
    """Copy a file into the page's assets under a name that changes with its content; return its URL within the page."""
    stem, suffix = (re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII) for text in (path.stem[:100], path.suffix))
    named = name.format(stem=stem.lstrip("."), suffix=suffix, hash=digest(path))
    shutil.copyfile(path, out / "assets" / named)
    return f"assets/{named}"


def part(out: Path, url: str) -> dict[str, Any]:
    """Return what the page knows of one of its files: the `Part` of web/messages.js."""
    hashes = []
    with (out / url).open("rb") as file:
        while block := file.read(HASHED_BLOCK):
            hashes.append(hashlib.sha256(block).hexdigest())
        return {"url": url, "bytes": file.tell(), "sha256": hashes}


def model_part(out: Path, url: str, name: str) -> dict[str, Any]:
    """Return what the page knows of a model: the `ModelPart` of web/messages.js."""
    with (out / url).open("rb") as file:
        return {**part(out, url), "name": name, "id": hashlib.file_digest(file, "sha256").hexdigest()}
