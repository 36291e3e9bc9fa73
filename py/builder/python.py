"""Python for the page: our package and what it needs, Pyodide and its standard library, all as bytecode."""

from __future__ import annotations

import ast
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from builder import stdlib
from builder.assets import part
from builder.stdlib import UNUSED_STDLIB
from builder.tools import NODE_MODULES, PYTHON, ROOT, WEB, BuildError, cached, digest, run, say

PYODIDE_FILES = ("pyodide.asm.mjs", "pyodide.asm.wasm")  # beside pyodide.mjs, which is bundled with web/worker.js

# What the page has otherwise in pyodide.asm.mjs: it starts in two thirds of the time.
PYODIDE_CHANGES = {
    # Put before the worker's script, it is no module of its own; in brackets, browsers compile it in one go.
    "async function _createPyodideModule(": "globalThis.createPyodideModule=(async function(",
    "}export default _createPyodideModule;": "});",
    # Gives an address only to functions that Python asks for, not to all 8,500 that an extension module could.
    "for(var symName in exports){if(isInternalSym(symName))": "for(var symName in GOT){if(!exports[symName])",
}


# Compiles modules in Pyodide, whose Python will run them.
IN_PYODIDE = """
    import { loadPyodide } from "pyodide";
    const [root, ...parameters] = process.argv.slice(1);
    const env = { HOME: "/", PYTHONNODEBUGRANGES: "1" }; // bytecode without columns of lines: a quarter less
    const python = await loadPyodide({ env });
    python.mountNodeFS("/fabella", root);
    python.runPython(`
        import sys
        sys.dont_write_bytecode = True
        sys.path.append("/fabella/py")
        from builder.stdlib import compile_zip`);
    const [source, target, folder, unused, optimize] = parameters;
    const patterns = unused.split(" ");
    python.globals.get("compile_zip")("/fabella/" + source, "/fabella/" + target, folder, patterns, Number(optimize));
"""
SITE_PACKAGES = "/lib/python3.14/site-packages"
FURTHER = {f"fabella.{name}" for name in ("choice", "constraint", "glass", "live", "selftest")}  # not in the snapshot
# Codecs, which Python imports when they are used: by Jinja for strings, by filetype.py.
LATE = ("encodings.unicode_escape", "encodings.utf_8_sig")
SNAPSHOT = Path(__file__).with_name("snapshot.mjs")


def compile_zip(source: Path, target: Path, folder: str, unused: Sequence[str] = (), optimize: int = 0) -> None:
    """Write the modules of a zip file as bytecode into another; both are within the repository's folder."""
    inside = (path.relative_to(ROOT).as_posix() for path in (source, target))
    run("node", "--input-type=module", "--eval", IN_PYODIDE, ROOT, *inside, folder, " ".join(unused), str(optimize))


def compiled(name: str, make: Callable[[Path], object], *sources: Path | str) -> Path:
    """Return a file of bytecode, made anew when its sources or what compiles them are others."""
    return cached(name, digest(ROOT / "package-lock.json", IN_PYODIDE, Path(stdlib.__file__), *sources), make)


def build_stdlib() -> Path:
    """Repack Pyodide's standard library as bytecode: not compiling it, the page starts in a quarter of the time."""
    source = NODE_MODULES / "pyodide/python_stdlib.zip"

    def make(target: Path) -> None:
        say("Compiling Python's standard library for the page ...")
        compile_zip(source, target, "/lib/python314.zip", UNUSED_STDLIB)

    return compiled("python-stdlib.zip", make)


def build_program() -> Path:
    """Compile our modules that tell stories and converse, and Jinja with what that needs."""
    files = dict.fromkeys(modules_of("fabella.page"), ROOT / "py")
    packages = Path(run(PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for name in ("jinja2", "markupsafe"):  # MarkupSafe does without its part in C
        files |= dict.fromkeys((f"{name}/{path.name}" for path in (packages / name).glob("*.py")), packages)

    def make(target: Path) -> None:
        sources = target.with_name("sources.zip")
        with zipfile.ZipFile(sources, "w") as archive:
            for file, folder in files.items():
                archive.write(folder / file, file)
        compile_zip(sources, target, SITE_PACKAGES, optimize=2)

    texts = [part for file, folder in sorted(files.items()) for part in (file, folder / file)]
    return compiled("program.zip", make, *texts)


def build_further() -> Path:
    """Compile our modules that few visitors want: the page fetches them when one does."""
    files = sorted(set().union(*map(modules_of, FURTHER)) - modules_of("fabella.page"))

    def make(target: Path) -> None:
        sources = target.with_name("further-sources.zip")
        with zipfile.ZipFile(sources, "w") as archive:
            for file in files:
                archive.write(ROOT / "py" / file, file)
        compile_zip(sources, target, SITE_PACKAGES, optimize=2)

    return compiled("further.zip", make, *(part for file in files for part in (file, ROOT / "py" / file)))


def build_snapshot(stdlib_zip: Path, program: Path) -> Path:
    """Take a snapshot of Python's memory with the program in it: the page only has to put it back."""

    def make(target: Path) -> None:
        say("Taking a snapshot of Python for the page ...")
        take_snapshot(stdlib_zip, program, target)

    sources = (ROOT / "package-lock.json", SNAPSHOT, WEB / "snapshot.js", pyodide_script(), stdlib_zip, program, *LATE)
    return cached("snapshot.bin", digest(*sources), make)


def take_snapshot(stdlib_zip: Path, program: Path, target: Path) -> None:
    """Start Python in Node, import the modules of ours that are in the program and LATE, and write what that left."""
    with zipfile.ZipFile(program) as archive:
        names = sorted(name.partition(".")[0] for name in archive.namelist() if name.startswith("fabella/"))
    modules = ",".join([*(name.removesuffix("/__init__").replace("/", ".") for name in names), *LATE])
    run("node", SNAPSHOT, pyodide_script(), stdlib_zip, program, modules, target, TZ="UTC")


def modules_of(entry: str) -> set[str]:
    """Return the files, within py/, of our modules that one of them needs, at once or later, but for FURTHER."""
    found, wanted = {"fabella/__init__.py"}, {entry}
    while wanted:
        name = wanted.pop()
        file = f"{name.replace('.', '/')}.py"
        if file in found or not (ROOT / "py" / file).is_file():
            continue
        found.add(file)
        wanted |= imported((ROOT / "py" / file).read_text(encoding="utf-8")) - FURTHER
    return found


@cache
def imported(source: str) -> frozenset[str]:
    """Return the names of what a module imports by ``from``, which may be modules and what is in them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def pyodide_script() -> Path:
    """Write a copy of pyodide.asm.mjs with our changes; return its path."""
    text = (NODE_MODULES / "pyodide/pyodide.asm.mjs").read_text(encoding="utf-8")
    for old, new in PYODIDE_CHANGES.items():
        if text.count(old) != 1:
            raise BuildError(f"Pyodide has changed: pyodide.asm.mjs does not have {old!r} once")
        text = text.replace(old, new)
    return cached("pyodide.asm.mjs", digest(text), lambda target: target.write_text(text, encoding="utf-8"))


def copy_pyodide(out: Path) -> dict[str, Any]:
    """Copy the few files of Pyodide that the page loads; return what the page knows of them, and Pyodide's versions.

    The versions are those in pyodide-lock.json, which is not copied: the page has no use for its packages.
    """
    package = NODE_MODULES / "pyodide"
    version = json.loads((package / "package.json").read_text())["version"]
    info = json.loads((package / "pyodide-lock.json").read_text())["info"]
    folder = out / f"pyodide-{version}"
    folder.mkdir()
    for name, file in zip(PYODIDE_FILES, (pyodide_script(), package / PYODIDE_FILES[1]), strict=True):
        shutil.copyfile(file, folder / name)
    script, wasm = (part(out, f"{folder.name}/{name}") for name in PYODIDE_FILES)
    return {"info": info, "script": script, "wasm": wasm}
