"""Models that a page has and those that it offers: what it knows of each, and where it finds it."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from builder.assets import HASHED_BLOCK
from builder.models import cache_folder, model_file
from builder.tools import BuildError, digest, say, scratch

ASKED_BY = "https://a.page.example"  # the origin of some page or other: whether a host lets it read a file
PROGRESS = 8 << 20  # bytes between two lines about a download
TIMEOUT = 60  # seconds


@dataclass(frozen=True)
class Offer:
    """A model of the page's."""

    file: Path  # on this machine
    url: str | None = None  # where the page finds it; None: beside the page, once it is copied there
    origins: tuple[str, ...] = ()  # that the page has to ask for it


def find_offer(what: str) -> Offer:
    """Return the offer of a file, of a known model, or of an https:// URL, which is downloaded to be looked at.

    Raises
    ------
    BuildError
        If it cannot be had, or a page could not have it.
    """
    if "://" in what:
        return _at_url(what)
    path = model_file(Path(what))
    if path.suffix == ".bin":
        raise BuildError(f"{path}: only GGUF files are offered; `--model {path} --tokenizer FILE` makes one of it")
    return Offer(path)


def origin_of(host: str) -> str:
    """Return a host's origin as a policy names it. Raises BuildError if it is none."""
    parts = urlsplit(host)
    if (
        parts.scheme != "https"
        or host.rstrip("/") != _origin(host)
        or not re.fullmatch(r"[\w.-]+(:\d+)?", parts.netloc)
    ):
        raise BuildError(f"--connect {host}: must be an origin, as https://models.example.org")
    return _origin(host)


def describe(file: Path, url: str) -> dict[str, Any]:
    """Return what the page knows of a model: the `ModelPart` of web/messages.js."""
    from fabella.models import open_model
    from fabella.summary import summary

    with open_model(file) as (model, source):
        said = summary(model, source.size)
    return {**said, "name": said["name"] or file.stem, "file": file.name, "url": url, **hashes_of(file)}


def describe_adapter(file: Path, part: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page knows of an adapter: the `AdapterPart` of web/messages.js."""
    from fabella.adapter import summary
    from fabella.models import open_adapter

    with open_adapter(file) as (adapter, _):
        said = summary(adapter)
    return {**part, **said, "name": said["name"] or file.stem}


def hashes_of(file: Path) -> dict[str, Any]:
    """Return what a file is known by: its size, the hash of each block, and that of all of it."""
    blocks, whole = [], hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(HASHED_BLOCK):
            blocks.append(hashlib.sha256(block).hexdigest())
            whole.update(block)
        return {"bytes": data.tell(), "sha256": blocks, "id": whole.hexdigest()}


# ---- Models that are elsewhere ---------------------------------------------------------------------------------------


def _at_url(url: str) -> Offer:
    """An offer that stays where it is. What was downloaded of it once is not downloaded again."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.fragment:
        raise BuildError(f"--offer {url}: must be a file, the name of a known model, or an https:// URL")
    name = Path(unquote(parts.path)).name or "model.gguf"
    folder = cache_folder() / "offers" / digest(url)
    path, told = folder / name, folder / "from.json"
    if not (path.is_file() and told.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        origins = _download(url, path)
        told.write_text(json.dumps(origins))
    else:
        say(f"Taking {url} as it was when it was downloaded; delete {folder} to have it looked at anew.")
    return Offer(path, url, tuple(json.loads(told.read_text())))


def _download(url: str, path: Path) -> list[str]:
    """Download a file; return the origins that were asked for it: the URL's, and that to which it leads."""
    request = urllib.request.Request(url, headers={"Origin": ASKED_BY})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response, scratch(path.parent) as new:
            origins = list(dict.fromkeys(map(_origin, (url, response.url))))
            if response.headers.get("Access-Control-Allow-Origin") not in ("*", ASKED_BY):
                raise BuildError(f"{url}: its host does not let other pages read it (CORS); offer a copy of the file")
            if not response.url.startswith("https:"):
                raise BuildError(f"{url}: leads to {response.url}, which is not https://")
            with (new / path.name).open("wb") as file:
                _receive(response, file.write, path.name)
            (new / path.name).replace(path)
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise BuildError(f"{url}: cannot be downloaded ({reason})") from None
    return origins


def _receive(response: HTTPResponse, write: Callable[[bytes], object], name: str) -> None:
    """Copy what comes, and say how far it is."""
    total, done, told = int(response.headers.get("Content-Length") or 0), 0, 0
    while block := response.read(HASHED_BLOCK):
        write(block)
        done += len(block)
        if done - told >= PROGRESS or done == total:
            told = done
            say(f"Downloading {name}: {done / 1e6:.0f} MB" + (f" of {total / 1e6:.0f}" if total else ""))
    if total and done != total:
        raise OSError(f"only {done:,} of {total:,} bytes came")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
