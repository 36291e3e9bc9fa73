"""The page: what web/ and the other parts become in dist/."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from builder.assets import part, publish
from builder.engines import build_engines
from builder.install import ensure_node_packages, ensure_python
from builder.offers import describe, describe_adapter, find_offer, origin_of
from builder.offline import compress, publish_manifest, write_service_worker
from builder.proof import noted
from builder.python import build_further, build_program, build_snapshot, build_stdlib, copy_pyodide
from builder.told import as_html, told_before
from builder.tools import NODE_MODULES, PYTHON, ROOT, WEB, BuildError, cached, digest, run, say, scratch, size

EMBEDDING = "fabella.js"  # the name stays, for other pages have it
ASSETS_BLOCK = '<script type="application/json" id="assets">'  # in index.html; what follows it, the build fills in

# web/rooms/: scripts that the page loads when they are wanted.
ROOMS = ("chat", "code", "look", "proof", "share", "shelf")
PROVES = ("Equals PyTorch?", "Computes right?")  # the self-test's button, with PyTorch's tokens and without


def bundle(
    model: Path,
    tokenizer: Path | None,
    out: Path,
    words: Mapping[str, Any] | None = None,
    offered: Sequence[str] = (),
    hosts: Sequence[str] = (),
    offline: bool = True,
    address: str | None = None,
    adapter: Path | None = None,
) -> None:
    """Build everything that has changed and write the static page into `out`.

    Parameters
    ----------
    model, tokenizer
        The model that the page is built around.
    out
        A folder that is the page's alone.
    words
        Metadata for this model's file, in the place of its own: see fabella/card.py.
    offered
        Files, known models or URLs that the page offers besides.
    hosts
        Origins of which visitors may open models by their address.
    offline
        Whether the page is kept on its visitors' machines, for when there is no network.
    address
        The URL where the page will be.
    adapter
        An adapter for the page's own model, GGUF: in use from the start, and the visitor may take it off.
    """
    out = out.resolve()
    check_out(out)
    hosts = [origin_of(host) for host in hosts]
    if address is not None and not re.fullmatch(r"https?://[^\s\"<>]+", address):
        raise BuildError(f"--url {address}: must be a whole address, as https://example.org/stories/")
    offers = [find_offer(what) for what in offered]
    ensure_python("requirements.txt")
    ensure_node_packages()
    engines, stdlib = build_engines(), build_stdlib()
    snapshot = build_snapshot(stdlib, build_program())
    with scratch(out.parent) as folder:
        new = folder / "dist"
        (new / "assets").mkdir(parents=True)
        gguf = reworded(model_as_gguf(model, tokenizer, folder), words or {}, folder)
        if adapter:
            check_as_page(gguf, gguf, adapter)
        for offer in offers:
            model_as_gguf(offer.file, None, folder)
        url = publish(gguf, new, "{stem}-{hash}.gguf")
        models = [describe(gguf, url)]
        for offer in offers:
            models.append(describe(offer.file, offer.url or publish(offer.file, new, "{stem}-{hash}.gguf")))
            if models[-1]["id"] in [other["id"] for other in models[:-1]]:
                raise BuildError(f"{offer.url or offer.file}: the page has this model already")
        notes = noted(gguf, model)
        scripts = bundle_scripts(new, {"noted": notes, "samplers": write_samplers()})
        assets = {
            "worker": part(new, scripts["worker.js"]),
            "helper": part(new, scripts["helper.js"]),
            "python": {
                **copy_pyodide(new),
                "stdlib": part(new, publish(stdlib, new, "python-stdlib-{hash}.zip")),
                "snapshot": part(new, publish(snapshot, new, "python-{hash}.bin")),
                "further": part(new, publish(build_further(), new, "python-further-{hash}.zip")),
            },
            "engines": {
                name: part(new, publish(path, new, f"run-{name}-{{hash}}.wasm")) for name, path in engines.items()
            },
            "rooms": {name: part(new, scripts[f"{name}.js"]) for name in ROOMS},
            "hosts": hosts,
            "model": models[0],
            "offers": models[1:],
            "adapter": describe_adapter(adapter, part(new, publish(adapter, new, "{stem}-{hash}.gguf")))
            if adapter
            else None,
            "offline": offline,
        }
        shutil.copyfile(WEB / "LICENSES.txt", new / "LICENSES.txt")
        origins = [*hosts, *(origin for offer in offers for origin in offer.origins)]
        proves = PROVES[json.loads(notes.read_text())["torch"] is None]
        version = write_index(new, scripts, assets, gguf, folder, origins, address, adapter, proves)
        write_service_worker(new, version, offline, models[0])
        shutil.copyfile(WEB / EMBEDDING, new / EMBEDDING)
        bytes_of_page = size(new)
        compress(new)
        swap(new, out)
    say(f"Built {os.path.relpath(out)} around {model.name}: {bytes_of_page / 1e6:.1f} MB.")


def write_samplers() -> Path:
    """Write what the editor of the visitor's code shows: the sampler's source, examples, help.

    In the cache, because esbuild's hashes are also of where a bundle's parts lie.
    """
    from fabella.samplers import texts

    shown = json.dumps(texts(), ensure_ascii=False)
    return cached("samplers.json", digest(shown), lambda target: target.write_text(shown, encoding="utf-8"))


def model_as_gguf(model: Path, tokenizer: Path | None, folder: Path) -> Path:
    """Check a model file and return it as GGUF; llama2.c's .bin and tokenizer become one GGUF file in `folder`."""
    from fabella.errors import FabellaError
    from fabella.llama2c import convert_llama2c
    from fabella.models import open_model

    gguf = model
    try:
        with open_model(model, tokenizer, "--tokenizer"):
            pass
        if tokenizer:
            gguf = folder / f"{model.stem}.gguf"
            convert_llama2c(model, tokenizer, gguf)
    except FabellaError as error:
        raise BuildError(str(error)) from error
    check_as_page(gguf, model)
    return gguf


def check_as_page(gguf: Path, model: Path, adapter: Path | None = None) -> None:
    """Refuse what the page would refuse: a model is loaded as the page loads it, weights and all; `model` names it."""
    arguments = ["-m", "fabella.check", str(gguf.resolve()), *(["--adapter", str(adapter)] if adapter else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "py")}
    checked = subprocess.run(
        [PYTHON, *arguments], env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if checked.returncode:
        said = checked.stderr.strip().removeprefix("fabella.check: ")
        raise BuildError(said.replace(str(gguf.resolve()), str(model)))


def reworded(gguf: Path, words: Mapping[str, Any], folder: Path) -> Path:
    """Return a model's file with other metadata, a copy in `folder` if there is anything to change."""
    from fabella.gguf import copy_gguf
    from fabella.sources import FileSource

    if not words:
        return gguf
    copy = folder / "reworded" / gguf.name
    copy.parent.mkdir()
    with FileSource(gguf) as source, copy.open("wb") as target:
        copy_gguf(source, target, words)
    return copy


def bundle_scripts(out: Path, data: Mapping[str, Path]) -> dict[str, str]:
    """Bundle the page's scripts and style with esbuild; return the URL of each by its name in web/.

    app.js becomes a classic script, which browsers run whatever type a server gives it; the other two are modules,
    which app.js and worker.js start from what they have downloaded. `data` are JSON files that rooms import by a name.
    """
    esbuild = ("node", NODE_MODULES / "esbuild/bin/esbuild", "--log-level=warning", "--bundle", "--target=es2022")
    output = ("--entry-names=[name]-[hash]", f"--outdir={out / 'assets'}")
    node = ("--external:node:*", "--external:ws")  # what Pyodide would import there
    run(*esbuild, *output, "--format=iife", "--minify", "web/app.js", "web/style.css")
    run(*esbuild, *output, "--format=esm", "--minify", *node, "web/worker.js", "web/helper.js")
    room = ("--format=iife", "--minify", "--loader:.css=text")  # a room brings its own style, as a text
    aliases = [f"--alias:{name}={file}" for name, file in data.items()]
    for name in ROOMS:
        run(*esbuild, *output, *aliases, *room, f"--global-name=fabella_{name}", f"web/rooms/{name}.js")
    urls = {}
    for name in ("app.js", "style.css", "worker.js", "helper.js", *(f"{room}.js" for room in ROOMS)):
        stem, suffix = name.split(".")
        (path,) = (out / "assets").glob(f"{stem}-*.{suffix}")
        urls[name] = f"assets/{path.name}"
    return urls


def write_index(
    out: Path,
    scripts: dict[str, str],
    assets: dict[str, Any],
    gguf: Path,
    folder: Path,
    origins: Sequence[str] = (),
    address: str | None = None,
    adapter: Path | None = None,
    proves: str = "",
) -> str:
    """Write index.html: files named by their published URLs, the style inside, and what the worker finds where.

    A style of its own the browser would wait for before it shows anything, for ever if need be. The page's words are
    those of its first model, as far as that has any; it may ask `origins` besides its own; the self-test's button is
    called `proves`. Returns the page's version,
    which changes with every file; `folder` is for what is made on the way.
    """

    def url(match: re.Match[str]) -> str:
        attribute, name = match.groups()
        return f'{attribute}="{scripts.get(name) or publish(WEB / name, out)}"'

    page = (WEB / "index.html").read_text(encoding="utf-8")

    def once(pattern: str, text: str) -> None:
        """Put a text in the place of what a pattern matches, but for its groups."""
        nonlocal page
        page, found = re.subn(pattern, lambda match: "".join(match.groups()) + text, page, flags=re.DOTALL)
        if found != 1:
            raise BuildError(f"web/index.html: expected {pattern} once, found it {found} times")

    style_path = out / scripts["style.css"]
    style = style_path.read_text(encoding="utf-8")
    style_path.unlink()
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    once('<link rel="stylesheet" href="style.css" />', f"<style>{style}</style>")
    once("style-src 'self'", f"style-src 'sha256-{style_hash}'")
    once('<script type="module" src="app.js">', '<script defer src="app.js">')
    once("connect-src 'self'", " ".join(["connect-src 'self'", *dict.fromkeys(origins)]))
    first = assets["model"]
    for pattern, text in words_of(first):
        once(pattern, text)
    once('(<button id="proof"[^>]*>)[^<]*', proves)
    if assets["adapter"]:
        once('(<p id="adapter"[^>]*?) hidden(?=>)', "")
        once('(<span id="adapter-says"[^>]*>)', html.escape(adapter_line(assets["adapter"]["name"])))
    told = told_before(gguf, (first["beginnings"] or [""])[0], adapter) if not first["chats"] else None
    if told:
        once('(<section id="told-before"[^>]*>)', as_html(told))
    scripts = {**scripts, "manifest.webmanifest": publish_manifest(page, out, folder)}
    picture = urljoin(address or "", publish(WEB / "share.png", out))  # of a relative one nobody who shares it knows
    once('content="share.png"', f'content="{html.escape(picture)}"')
    page = re.sub(r'\b(href|src)="([\w-]+\.\w+)"', url, page)
    data = json.dumps(assets).replace("<", "\\u003c")
    once(f"{ASSETS_BLOCK}.*?</script>", f"{ASSETS_BLOCK}{data}</script>")
    version = digest(page, out / "LICENSES.txt")  # all other files carry theirs in their names
    once('<meta name="version" content="" />', f'<meta name="version" content="{version}" />')
    (out / "index.html").write_text(page, encoding="utf-8")
    return version


def adapter_line(name: str) -> str:
    """What the page says of an adapter that is in use, as web/views/adapter.js writes it."""
    return f"It speaks through the adapter “{name}”."


def words_of(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a page says that is built around a model, behind the pattern of what it follows in index.html.

    Elements have no other elements in them: <title>, #title, #about, and #prompt, the field for the story's beginning.
    """

    def element(id: str) -> str:
        return rf'(<\w+\b[^>]*\bid="{id}"[^>]*>)[^<]*'

    def meta(name: str) -> str:
        return rf'(<meta {name} content=")[^"]*'

    if model["chats"] and not model["about"]:
        model = {**model, "about": "You can talk to this page."}
    texts = {key: html.escape(model[key] or "") for key in ("title", "about", "language")}
    if texts["title"]:
        for pattern in ("(<title>)[^<]*", element("title"), meta('property="og:title"')):
            yield pattern, texts["title"]
    if texts["about"]:
        for pattern in (element("about"), meta('name="description"'), meta('property="og:description"')):
            yield pattern, texts["about"]
    yield element("model-name"), html.escape(model["title"] or model["name"])
    yield element("model-size"), f"{model['bytes'] / 1e6:.1f} MB"  # as web/words.js writes it
    if texts["language"]:
        yield '(<html lang=")[^"]*', texts["language"]
    if model["beginnings"]:
        beginnings = [html.escape(text) for text in model["beginnings"]]
        if model["chats"]:
            yield element("prompt"), ""
        else:
            yield element("prompt"), "\n" + beginnings.pop(0)  # HTML leaves the first line's end out
        yield (
            element("beginnings"),
            "or: " * bool(beginnings)
            + "".join(f'<button type="button" class="plain" title="{t}">{t}</button>' for t in beginnings),
        )
    elif model["chats"]:
        yield element("prompt"), ""


def check_out(out: Path) -> None:
    """Refuse to put the page where anything but an earlier page is: it would be deleted."""
    existing = next(place for place in (out, *out.parents) if place.exists())
    if not existing.is_dir():
        raise BuildError(f"{existing} is a file: name a folder with --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BuildError(f"{existing} is not writable: name another folder with --out")
    if existing != out:
        return
    index = out / "index.html"
    text = index.read_text(encoding="utf-8", errors="replace") if index.is_file() else ""
    if f'{ASSETS_BLOCK}{{"' not in text:
        text = ""  # not a page of ours
    strangers = sorted(
        name
        for path in out.rglob("*")
        if path.name != ".DS_Store" and not path.is_dir()
        if not is_of_page(name := path.relative_to(out).as_posix(), text)
    )
    if strangers:
        raise BuildError(
            f"{out} holds other files ({', '.join(strangers[:3])}): name a new folder with --out, and copy the page "
            "from there"
        )


def is_of_page(name: str, index: str) -> bool:
    """Whether a file, named within the folder of a page, belongs to that page: its index.html names it."""
    if not index:
        return False
    name = re.sub(r"\.(br|gz)$", "", name)
    # Pyodide's files were once named by their folder alone.
    pattern = r"index\.html|LICENSES\.txt|sw\.js|fabella\.js|pyodide-[\d.]+/pyodide(\.asm)?\.(mjs|wasm)"
    return re.fullmatch(pattern, name) is not None or (name.startswith("assets/") and f'{name}"' in index)


def swap(new: Path, out: Path) -> None:
    """Put a finished folder in the place of an older one, which is never seen half written."""
    check_out(out)
    new.chmod(0o755)
    old = new.with_name(f"{new.name}-old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
