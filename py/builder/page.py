"""The page: what web/ and the other parts become in dist/."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from builder.assets import model_part, part, publish
from builder.engines import build_engines
from builder.install import ensure_node_packages, ensure_python
from builder.python import build_chat, build_program, build_stdlib, copy_pyodide, project_version, pyodide_loader
from builder.tools import NODE_MODULES, PYTHON, ROOT, WEB, BuildError, run, say, scratch, size

ASSETS_BLOCK = '<script type="application/json" id="assets">'  # in index.html; what follows it, the build fills in


def bundle(model: Path, tokenizer: Path | None, out: Path) -> None:
    """Build everything that has changed and write the static page into `out`."""
    out = out.resolve()
    check_out(out)
    ensure_python("requirements.txt")
    ensure_node_packages()
    engines, stdlib = build_engines(), build_stdlib()
    program = build_program()
    with scratch(out.parent) as folder:
        new = folder / "dist"
        (new / "assets").mkdir(parents=True)
        gguf = model_as_gguf(model, tokenizer, folder)
        scripts = bundle_scripts(new)
        assets = {
            "worker": part(new, scripts["worker.js"]),
            "helper": part(new, scripts["helper.js"]),
            "python": {
                **copy_pyodide(new),
                "stdlib": part(new, publish(stdlib, new, "python-stdlib-{hash}.zip")),
                "program": part(
                    new, publish(program, new, f"fabella-{project_version()}-0{{hash}}-cp314-none-any.whl")
                ),
                **({"chat": part(new, publish(build_chat(), new, "chat-{hash}.zip"))} if chats(gguf) else {}),
            },
            "engines": {
                name: part(new, publish(path, new, f"run-{name}-{{hash}}.wasm")) for name, path in engines.items()
            },
            "model": model_part(new, publish(gguf, new, "{stem}-{hash}.gguf"), gguf.name),
        }
        write_index(new, scripts, assets)
        shutil.copyfile(WEB / "LICENSES.txt", new / "LICENSES.txt")
        swap(new, out)
    say(f"Built {os.path.relpath(out)} around {model.name}: {size(out) / 1e6:.1f} MB.")


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
    # What the page would refuse is refused here: it is loaded as the page loads it, weights and all.
    arguments = ("-m", "fabella.check", str(gguf.resolve()))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "py")}
    checked = subprocess.run(
        [PYTHON, *arguments], env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if checked.returncode:
        said = checked.stderr.strip().removeprefix("fabella.check: ")
        raise BuildError(said.replace(str(gguf.resolve()), str(model)))
    return gguf


def chats(gguf: Path) -> bool:
    """Whether a model is made for conversations."""
    from fabella.models import open_model

    with open_model(gguf) as (model, _):
        return model.chat_template is not None


def bundle_scripts(out: Path) -> dict[str, str]:
    """Bundle the page's scripts and style with esbuild; return the URL of each by its name in web/.

    app.js becomes a classic script, which browsers run whatever type a server gives it; the other two are modules,
    which app.js and worker.js start from what they have downloaded.
    """
    esbuild = ("node", NODE_MODULES / "esbuild/bin/esbuild", "--log-level=warning", "--bundle", "--target=es2022")
    output = ("--entry-names=[name]-[hash]", f"--outdir={out / 'assets'}")
    loader = ("--external:node:*", "--external:ws", f"--alias:pyodide={pyodide_loader()}")
    run(*esbuild, *output, "--format=iife", "web/app.js", "web/style.css")
    run(*esbuild, *output, "--format=esm", *loader, "web/worker.js", "web/helper.js")
    urls = {}
    for name in ("app.js", "style.css", "worker.js", "helper.js"):
        stem, suffix = name.split(".")
        (path,) = (out / "assets").glob(f"{stem}-*.{suffix}")
        urls[name] = f"assets/{path.name}"
    return urls


def write_index(out: Path, scripts: dict[str, str], assets: dict[str, Any]) -> None:
    """Write index.html: files named by their published URLs, the style inside, and what the worker finds where.

    A style of its own the browser would wait for before it shows anything, for ever if need be.
    """

    def url(match: re.Match[str]) -> str:
        attribute, name = match.groups()
        return f'{attribute}="{scripts.get(name) or publish(WEB / name, out)}"'

    page = (WEB / "index.html").read_text(encoding="utf-8")

    def once(pattern: str, text: str) -> None:
        nonlocal page
        page, found = re.subn(pattern, lambda _: text, page, flags=re.DOTALL)
        if found != 1:
            raise BuildError(f"web/index.html: expected {pattern} once, found it {found} times")

    style_path = out / scripts["style.css"]
    style = style_path.read_text(encoding="utf-8")
    style_path.unlink()
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    once('<link rel="stylesheet" href="style.css" />', f"<style>{style}</style>")
    once("style-src 'self'", f"style-src 'sha256-{style_hash}'")
    once('<script type="module" src="app.js">', '<script defer src="app.js">')
    page = re.sub(r'\b(href|src)="([\w-]+\.\w+)"', url, page)
    data = json.dumps(assets).replace("<", "\\u003c")
    once(f"{ASSETS_BLOCK}.*?</script>", f"{ASSETS_BLOCK}{data}</script>")
    (out / "index.html").write_text(page, encoding="utf-8")


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
    # Pyodide's files were once named by their folder alone.
    pattern = r"index\.html|LICENSES\.txt|pyodide-[\d.]+/pyodide(\.asm)?\.(mjs|wasm)"
    return re.fullmatch(pattern, name) is not None or (name.startswith("assets/") and f'"{name}"' in index)


def swap(new: Path, out: Path) -> None:
    """Put a finished folder in the place of an older one, which is never seen half written."""
    check_out(out)
    new.chmod(0o755)
    old = new.with_name(f"{new.name}-old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
