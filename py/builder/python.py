"""Python for the page: our package as a wheel, Pyodide and its standard library."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

from builder import stdlib
from builder.assets import part
from builder.tools import NODE_MODULES, PYTHON, ROOT, BuildError, cached, digest, run, say

PYODIDE_FILES = ("pyodide.asm.mjs", "pyodide.asm.wasm")  # beside pyodide.mjs, which is bundled with web/worker.js


def build_wheel() -> Path:
    """Build the Python package, the engine inside."""

    def make(target: Path) -> None:
        date = "1580601600"  # the files in it are dated 2020-02-02, whatever the environment says
        run(PYTHON, "-m", "hatchling", "build", "-t", "wheel", "-d", target.parent, SOURCE_DATE_EPOCH=date)
        next(target.parent.glob("*.whl")).rename(target)

    sources = [path for path in sorted((ROOT / "py/fabella").rglob("*")) if path.suffix in (".py", ".typed", ".wasm")]
    names = " ".join(str(path.relative_to(ROOT)) for path in sources)
    about = [ROOT / name for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", ".gitignore")]
    return cached("fabella.whl", digest(Path(__file__), names, *sources, *about), make)


def project_version() -> str:
    """Return the version in pyproject.toml."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def build_stdlib() -> Path:
    """Repack Pyodide's standard library as bytecode: not compiling it, the page starts in a quarter of the time."""
    source = NODE_MODULES / "pyodide/python_stdlib.zip"
    script = """
        import { loadPyodide } from "pyodide";
        const [root, source, target] = process.argv.slice(1);
        const python = await loadPyodide();
        python.mountNodeFS("/fabella", root);
        python.runPython(`
            import sys
            sys.dont_write_bytecode = True
            sys.path.append("/fabella/py")
            from builder.stdlib import repack_stdlib`);
        python.globals.get("repack_stdlib")("/fabella/" + source, "/fabella/" + target);
    """

    def make(target: Path) -> None:
        say("Compiling Python's standard library for the page ...")
        inside = (path.relative_to(ROOT).as_posix() for path in (source, target))
        run("node", "--input-type=module", "--eval", script, ROOT, *inside)

    return cached("python-stdlib.zip", digest(ROOT / "package-lock.json", script, Path(stdlib.__file__)), make)


def pyodide_loader() -> Path:
    """Write a copy of Pyodide's loader that gets pyodide.asm.mjs from web/python.js; return its path.

    It would import it by its URL, for which a server must give it a JavaScript type, and many do not know ".mjs".
    """
    importing = "async e=>await import(e)"
    text = (NODE_MODULES / "pyodide/pyodide.mjs").read_text(encoding="utf-8")
    if text.count(importing) != 1:
        raise BuildError(f"Pyodide's loader has changed: pyodide.mjs does not have {importing!r} once")
    text = text.replace(importing, "async()=>await pyodideScript")
    return cached("pyodide.mjs", digest(text), lambda target: target.write_text(text, encoding="utf-8"))


def copy_pyodide(out: Path) -> dict[str, Any]:
    """Copy the few files of Pyodide that the page loads; return what the page knows of them, and Pyodide's versions.

    The versions are those in pyodide-lock.json, which is not copied: the page has no use for its packages.
    """
    package = NODE_MODULES / "pyodide"
    version = json.loads((package / "package.json").read_text())["version"]
    info = json.loads((package / "pyodide-lock.json").read_text())["info"]
    folder = out / f"pyodide-{version}"
    folder.mkdir()
    for name in PYODIDE_FILES:
        shutil.copyfile(package / name, folder / name)
    script, wasm = (part(out, f"{folder.name}/{name}") for name in PYODIDE_FILES)
    return {"info": info, "script": script, "wasm": wasm}
