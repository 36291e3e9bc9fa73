"""The page without a network, on any host, on a home screen: service worker, manifest, compressed copies."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from builder.assets import publish
from builder.tools import NODE_MODULES, WEB, BuildError, cached, digest, run

SERVICE_WORKER = "sw.js"  # the name stays, for browsers look there for a newer one
WORTHWHILE = 0.9  # a compressed copy is at most this part of its file
LARGE = 1 << 16  # bytes: compressing more takes so long that the result is kept

BROTLI = """
    import { readFileSync, writeFileSync } from "node:fs";
    import { brotliCompressSync, constants } from "node:zlib";
    const files = process.argv.slice(1);
    while (files.length > 0) {
      const [source, target] = files.splice(0, 2);
      const data = readFileSync(source);
      writeFileSync(target, brotliCompressSync(data, { params: { [constants.BROTLI_PARAM_SIZE_HINT]: data.length } }));
    }
"""


# ---- The service worker ----------------------------------------------------------------------------------------------


def write_service_worker(out: Path, version: str, offline: bool, model: Mapping[str, Any]) -> None:
    """Write sw.js: web/service-worker.js, which keeps the page's files, or web/no-service-worker.js, which undoes that.

    Parameters
    ----------
    out
        The page, otherwise finished.
    version
        Changes with every file of the page; index.html holds it.
    offline
        Whether the page is kept on the visitors' machines.
    model
        What the page knows of its own model: kept with the other files where a browser has no other place for it.
    """
    source = WEB / ("service-worker.js" if offline else "no-service-worker.js")
    esbuild = ("node", NODE_MODULES / "esbuild/bin/esbuild", "--log-level=warning", "--bundle", "--target=es2022")
    script = run(*esbuild, "--format=iife", source)
    if offline:
        files = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in sorted(files_of_page(out))}
        known = {"version": version, "files": files, "models": {model["url"]: model["id"]}}
        script = f"globalThis.page = {json.dumps(known, indent=1)};\n{script}"
    (out / SERVICE_WORKER).write_text(script, encoding="utf-8")


def files_of_page(out: Path) -> Iterator[str]:
    """Yield the names of the files that the page may ask for, but for its models, which web/store.js keeps."""
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".gguf":
            yield path.relative_to(out).as_posix()


# ---- The manifest ----------------------------------------------------------------------------------------------------


def publish_manifest(page: str, out: Path, folder: Path) -> str:
    """Write what a home screen shows of the page, as index.html has it, into the page's assets; return its URL.

    Parameters
    ----------
    page
        The text of web/index.html.
    out
        The page; addresses in the manifest are relative to its own, in assets/.
    folder
        For what is made on the way.
    """

    def said(pattern: str) -> str:
        found = re.search(pattern, page)
        if not found:
            raise BuildError(f"web/index.html: {pattern} is missing")
        return html.unescape(found[1])

    def icon(name: str, sizes: str, type: str, **more: str) -> dict[str, str]:
        return {"src": Path(publish(WEB / name, out)).name, "sizes": sizes, "type": type, **more}

    title = said(r"<title>(.+?)</title>")
    paper = said(r'name="theme-color" content="(.+?)"')
    manifest = {
        "name": title,
        "short_name": title.partition(":")[0],
        "description": said(r'name="description" content="(.+?)"'),
        "lang": said(r'<html lang="(.+?)"'),
        **{"start_url": "../", "scope": "../", "display": "standalone"},
        **{"theme_color": paper, "background_color": paper},
        "icons": [
            icon("favicon.svg", "any", "image/svg+xml"),
            icon("icon-192.png", "192x192", "image/png"),
            icon("icon-512.png", "512x512", "image/png"),
            icon("icon-512.png", "512x512", "image/png", purpose="maskable"),
        ],
    }
    path = folder / "manifest.webmanifest"
    path.write_text(json.dumps(manifest, ensure_ascii=False, indent=2), encoding="utf-8")
    return publish(path, out)


# ---- Compressed copies -----------------------------------------------------------------------------------------------


def compress(out: Path) -> None:
    """Write FILE.br and FILE.gz beside each file of the page that becomes a tenth smaller or more.

    Not beside models: downloads of those go on where they broke off, which means bytes of the file itself.
    """
    paths = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".gguf"]
    small = [path for path in paths if path.stat().st_size < LARGE]
    for path in small:
        compress_gzip(path, copies(path)[0])
    compress_brotli(*(file for path in small for file in (path, copies(path)[1])))
    large = sorted(set(paths) - set(small), key=lambda path: path.stat().st_size, reverse=True)
    with ThreadPoolExecutor() as pool:  # Brotli takes most of a first build's time, and one core for a file
        list(pool.map(compress_large, large))
    for path in paths:
        for copy in copies(path):
            if copy.stat().st_size > WORTHWHILE * path.stat().st_size:
                copy.unlink()


def copies(path: Path) -> tuple[Path, Path]:
    """Return the places of a file's copies, compressed by gzip and by Brotli."""
    return path.with_name(f"{path.name}.gz"), path.with_name(f"{path.name}.br")


def compress_large(path: Path) -> None:
    """Write the copies of a large file; they are kept for the next build."""
    gz, br = copies(path)
    shutil.copyfile(kept_copy(path, br.name, partial(compress_brotli, path)), br)
    shutil.copyfile(kept_copy(path, gz.name, partial(compress_gzip, path)), gz)


def kept_copy(path: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Return a compressed copy, made anew only if the file is another one."""
    return cached(re.sub(r"-\w{10,11}\b", "", name), digest(path, BROTLI), make)


def compress_gzip(source: Path, target: Path) -> None:
    """Compress one file; when that was is not in it."""
    target.write_bytes(gzip.compress(source.read_bytes(), 9, mtime=0))


def compress_brotli(*files: Path) -> None:
    """Compress files: each source is followed by its target."""
    run("node", "--input-type=module", "--eval", BROTLI, *files)
