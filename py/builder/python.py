"""Python for the page: our package and what it needs, Pyodide and its standard library, all as bytecode."""

from __future__ import annotations

import ast
import json
import shutil
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from builder import stdlib
from builder.assets import part
from builder.stdlib import UNUSED_STDLIB
from builder.tools import NODE_MODULES, PYTHON, ROOT, BuildError, cached, digest, run, say

PYODIDE_FILES = ("pyodide.asm.mjs", "pyodide.asm.wasm")  # beside pyodide.mjs, which is bundled with web/worker.js


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


def build_program() -> Path:
    """Build the wheel of those of our modules that the page runs to tell a story, as bytecode."""
    wheel = build_wheel()
    used = modules_of("fabella.page")
    all_modules = (path.relative_to(ROOT / "py").as_posix() for path in (ROOT / "py/fabella").glob("*.py"))
    unused = [name.removesuffix(".py") for name in sorted(all_modules) if name not in used]

    def make(target: Path) -> None:
        compile_zip(wheel, target, SITE_PACKAGES, unused, optimize=2)

    return compiled("program.whl", make, wheel, " ".join(unused))


def project_version() -> str:
    """Return the version in pyproject.toml."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def build_chat() -> Path:
    """Compile what conversations need besides: other modules of ours, and Jinja with what that needs."""
    files = dict.fromkeys(modules_of("fabella.chat") - modules_of("fabella.page"), ROOT / "py")
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
    return compiled("chat.zip", make, *texts)


def modules_of(entry: str) -> set[str]:
    """Return the files, within py/, of our modules that one of them needs, at once or later.

    But for what `fabella.chat` needs, unless it is the one.
    """
    found, wanted = {"fabella/__init__.py"}, {entry}
    while wanted:
        name = wanted.pop()
        file = f"{name.replace('.', '/')}.py"
        if file in found or not (ROOT / "py" / file).is_file():
            continue
        found.add(file)
        for node in ast.walk(ast.parse((ROOT / "py" / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        wanted -= {"fabella.chat"}
    return found


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
