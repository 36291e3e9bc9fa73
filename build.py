#!/usr/bin/env python3
"""Build Fabella's static page; serve it; test everything.

    python build.py                 bundle the page into dist/
    python build.py serve           bundle, then serve it on this machine
    python build.py test            bundle, then run every check and test, a real browser's included
    python build.py bench           bundle, then measure it beside its peers; --help says more
    python build.py setup           only install: .venv/ then has all that training and the command line need
    python build.py --model FILE    bundle the page around another model

What is missing is installed on the way (into .venv/ and node_modules/; on Debian as root also with apt-get), and what
has not changed since the last run is reused. The same inputs make the same dist/, byte for byte.
"""

from __future__ import annotations

import argparse
import base64
import errno
import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
WEB = ROOT / "web"
CACHE = ROOT / "build"
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
NODE_MODULES = ROOT / "node_modules"
PYODIDE_FILES = ("pyodide.asm.mjs", "pyodide.asm.wasm")  # beside pyodide.mjs, which is bundled with web/worker.js
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NODE_VERSION = 20
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FIREFOXES = ("firefox-esr", "firefox")
FIREFOX_PACKAGES = ("firefox-esr",)  # Debian's names
WEBKIT_PACKAGES = ("webkit2gtk-driver", "xvfb")

# The headers with which a host allows the page threads; its clock is finer, too.
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}

HASHED_BLOCK = 1 << 20  # bytes: the page compares the files it downloads block by block (web/download.js)
SCRATCH = ".building-"  # begins the names of folders in which something is made
ASSETS_BLOCK = '<script type="application/json" id="assets">'  # in index.html; what follows it, the build fills in

# The builds of wasm/run.c, and what each is compiled with on top of COMPILE_FLAGS. No name begins with another's.
RELAXED = ("-mrelaxed-simd", "-mbulk-memory")
THREADS = ("-matomics", "-mbulk-memory", "-mmutable-globals")
ENGINES = {
    "simd": (),
    "relaxed": RELAXED,
    "threads-simd": THREADS,
    "threads-relaxed": (*RELAXED, *THREADS),
}
RELAXED_CLANG = 19  # the first one whose relaxed SIMD is the standard's
COMPILE_FLAGS = (
    *("-std=c11", "-O3", "-msimd128", "-Wall", "-Wextra", "-Werror"),
    "-ffp-contract=off",  # the same bits everywhere: a*b+c is never fused
)
# A .wasm without JavaScript, for wasmtime and browsers alike. Memory grows from 16 MB up to 4 GB; the stack has 64 KB.
EMCC_LINK = (
    *("-sSTANDALONE_WASM", "--no-entry", "-sTOTAL_STACK=64KB"),
    *("-sALLOW_MEMORY_GROWTH", "-sINITIAL_MEMORY=16MB", "-sMAXIMUM_MEMORY=4GB"),
)
# What an older emcc passes to its own linker for these; that linker does not know relaxed SIMD.
WASM_LD_LINK = (
    *("-lstandalonewasm-memgrow", "-lstubs", "-lnoexit", "-lc", "-ldlmalloc", "-lcompiler_rt"),
    *("--entry=_initialize", "--import-undefined", "--strip-all", "--initial-memory=16777216"),
    *("--max-memory=4294967296", "--global-base=1024", "-z", "stack-size=65536"),
)
# Threads have one memory, which JavaScript makes and hands to each, and a stack each (web/engine.js).
EMCC_LINK_THREADS = ("-sIMPORTED_MEMORY", "-Wl,--shared-memory,--export=__stack_pointer")
WASM_LD_LINK_THREADS = ("--import-memory", "--shared-memory", "--export=__stack_pointer")

C_SOURCES = ("wasm/*.[ch]", "tests/*.c", "tests/bench/*.c")

# Modules of Python's standard library that a page has no use for: half of its bytes. "/*" takes the whole package.
UNUSED_STDLIB = """
    */__main__ __hello__ __phello__/* _pyio _pydatetime _pyrepl/* antigravity this
    bdb cProfile compileall doctest modulefinder pdb profile pstats pyclbr pydoc tabnanny trace unittest/*
    asyncio/proactor_events asyncio/windows_* concurrent/futures/process multiprocessing/* pty tty
    email/* ftplib http/* imaplib mailbox mimetypes netrc poplib smtplib socketserver webbrowser wsgiref/* xmlrpc/*
    configparser ctypes/* logging/config logging/handlers optparse pickletools plistlib sqlite3/* wave xml/* zipapp
    encodings/big5* encodings/cp[0235-9]* encodings/cp424 encodings/cp1[01]* encodings/cp125[013-8] encodings/euc_*
    encodings/gb* encodings/hp_* encodings/hz encodings/iso* encodings/johab encodings/koi8* encodings/kz*
    encodings/mac_* encodings/mbcs encodings/oem encodings/palmos encodings/ptcp* encodings/shift_* encodings/tis_*
    encodings/_win* nturl2path
""".split()


class BuildError(Exception):
    """The build cannot go on; the message says why and what to do."""


# ---- Small tools -----------------------------------------------------------------------------------------------------


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
    """Hold a folder's lock until this process ends; yield whether it is to be had, None where there are no locks."""
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

    A new one takes the place of those with other keys.
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


# ---- Installing what is missing --------------------------------------------------------------------------------------


# What apt-get, pip and npm say when nothing can be reached.
NO_NETWORK = re.compile(
    "Could not resolve|Temporary failure resolving|Could not connect|Cannot initiate the connection|Failed to fetch"
    "|NewConnectionError|ConnectTimeoutError|Name or service not known|Failed to establish a new connection|ProxyError"
    "|ReadTimeoutError|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|network request|ERR_SOCKET"
)


def install(what: str, *command: str | Path, **variables: str) -> None:
    """Run a command that downloads something; where it cannot, say that the network is needed, and for what."""
    try:
        run(*command, **variables)
    except BuildError as error:
        if not NO_NETWORK.search(str(error)):
            raise
        said = str(error).splitlines()[-1]
        raise BuildError(
            f"{what} must be downloaded, and the network cannot be reached. Connect to it and run the same command "
            f"again.\n({said})"
        ) from error


def apt_install(what: str, *packages: str) -> bool:
    """Install Debian packages where that is possible: on Debian and its kin, as root."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return False
    say(f"Installing {what} with apt-get ({' '.join(packages)}) ...")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    install(what, "apt-get", "update", "-q")
    install(what, "apt-get", "install", "-q", "-y", "--no-install-recommends", *packages)
    return True


def install_by_hand(packages: Sequence[str]) -> str:
    """Return what to do where `apt_install` does nothing."""
    return f"On Debian: sudo apt-get install --no-install-recommends {' '.join(packages)}"


def install_for_tests(what: str, *packages: str) -> None:
    """Install Debian packages that some tests need where that is possible, or say why these will be skipped."""
    try:
        if not apt_install(f"{what} for the tests", *packages):
            say(f"{what} is missing, and its tests will be skipped. {install_by_hand(packages)}")
    except BuildError as error:  # kin of Debian need not have these packages
        say(f"{what} cannot be installed, and its tests will be skipped: {error}")


def ensure_python(lock: str) -> None:
    """Make .venv and install the pinned packages of a requirements file, unless that is done already."""
    if not PYTHON.exists():
        if not importlib.util.find_spec("ensurepip") and not apt_install("Python's venv", "python3-venv"):
            raise BuildError("Python's venv module is missing: sudo apt-get install python3-venv")
        say("Making a virtual environment in .venv ...")
        run(sys.executable, "-m", "venv", VENV)
    try:
        packages = run(PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    except (BuildError, OSError) as error:
        raise BuildError(f"the Python in {VENV} does not run: delete that folder and try again\n({error})") from error
    stamp = VENV / f"{Path(lock).name}.installed"
    wanted = digest(*(ROOT / name for name in ("requirements.txt", lock)))
    if not stamp.exists() or stamp.read_text() != wanted:
        say(f"Installing Python packages with pip ({lock}) ...")
        if torch := re.search(r"^torch==\S+", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE):
            install_torch(torch[0])
        pip_install("-r", lock)
        stamp.write_text(wanted)
    # The package itself, as it stands in py/: what is edited there is what runs.
    link, place = Path(packages) / "fabella.pth", f"{ROOT / 'py'}\n"
    if not link.exists() or link.read_text(encoding="utf-8") != place:  # or else the folder has been moved
        link.write_text(place, encoding="utf-8")


def pip_install(*arguments: str) -> None:
    """Let pip install something into .venv."""
    what = f"Python packages ({' '.join(arguments[-1:])})"
    install(what, PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments)


def install_torch(requirement: str) -> None:
    """Install PyTorch alone: on Linux the packages on PyPI are made for CUDA, ten times as large as those for the CPU.

    Where PyTorch's own index cannot be reached, pip passes over it and takes what it finds elsewhere.
    """
    say(f"    {requirement} is large: about 200 MB (3 GB, with CUDA, if {TORCH_CPU_INDEX} cannot be reached)")
    index = ("--extra-index-url", TORCH_CPU_INDEX) if sys.platform == "linux" else ()
    pip_install("--no-deps", "--retries", "1", *index, requirement)


def ensure_node_packages() -> None:
    """Install the pinned npm packages, unless that is done already. None of their install scripts is run."""
    advice = f"install version {NODE_VERSION} or later (https://nodejs.org) and try again"
    for program, name in {"node": "Node.js", "npm": "Node.js's npm"}.items():
        if not shutil.which(program):
            raise BuildError(f"{name} is missing: {advice}")
    version = run("node", "--version").strip()
    if int(version.removeprefix("v").split(".")[0]) < NODE_VERSION:
        raise BuildError(f"Node.js {version} is too old: {advice}")
    stamp = NODE_MODULES / "package-lock.installed"
    wanted = digest(ROOT / "package-lock.json")
    if not stamp.exists() or stamp.read_text() != wanted:
        say("Installing npm packages (package-lock.json) ...")
        what = "npm packages (package-lock.json)"
        install(what, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1")
        stamp.write_text(wanted)


def ensure_emcc() -> str:
    """Return the path of Emscripten's compiler."""
    found = shutil.which("emcc") or (apt_install("Emscripten", "emscripten") and shutil.which("emcc"))
    if not found:
        raise BuildError(
            "Emscripten's compiler, emcc, is missing.\n"
            f"{install_by_hand(['emscripten'])}\n"
            "Elsewhere (https://emscripten.org/docs/getting_started):\n"
            "    git clone https://github.com/emscripten-core/emsdk && cd emsdk\n"
            "    ./emsdk install latest && ./emsdk activate latest && source ./emsdk_env.sh"
        )
    return found


def ensure_clang() -> str:
    """Return the path of a clang that knows relaxed SIMD, for an emcc that does not; its linker is there as well."""
    packages = (f"clang-{RELAXED_CLANG}", f"lld-{RELAXED_CLANG}")
    programs = (f"clang-{RELAXED_CLANG}", f"wasm-ld-{RELAXED_CLANG}")
    if not all(map(shutil.which, programs)):
        apt_install(f"Clang {RELAXED_CLANG}, which knows relaxed SIMD,", *packages)
    found, linker = map(shutil.which, programs)
    if not found or not linker:
        raise BuildError(
            f"this emcc is older than LLVM {RELAXED_CLANG} and cannot compile relaxed SIMD, and "
            f"{' and '.join(programs)} are missing.\n"
            f"{install_by_hand(packages)}\n"
            "Elsewhere: install a newer Emscripten (https://emscripten.org/docs/getting_started)"
        )
    return found


def find_browser() -> str | None:
    """Return the path of the machine's own Chromium or Chrome, or else of the one that Playwright installed."""
    if found := next(filter(None, map(shutil.which, BROWSERS)), None):
        return found
    ask = "from playwright.sync_api import sync_playwright as p\nwith p() as p: print(p.chromium.executable_path)"
    path = run(PYTHON, "-c", ask).strip()
    return path if Path(path).exists() else None


def find_firefox() -> str | None:
    """Return the path of the machine's own Firefox."""
    return next(filter(None, map(shutil.which, FIREFOXES)), None)


def find_webkit() -> tuple[str, str, str] | None:
    """Return the paths of WebKitGTK's driver, of its browser, and of the X server that gives it a screen."""
    driver, xvfb = shutil.which("WebKitWebDriver"), shutil.which("Xvfb")
    browser = max(Path("/usr").glob("lib*/*/webkit2gtk-4.*/MiniBrowser"), default=None)
    return (driver, str(browser), xvfb) if driver and browser and xvfb else None


def ensure_chromium() -> None:
    """Make sure that there is a browser to test the page in."""
    if not find_browser() and not apt_install("a browser for the tests", "chromium"):
        raise BuildError(f"no Chromium or Chrome to test the page in: {PYTHON} -m playwright install chromium")


def ensure_browsers() -> None:
    """Make sure that there is a browser to test the page in; install others to compare with where that is possible."""
    ensure_chromium()
    for name, find, packages in (("Firefox", find_firefox, FIREFOX_PACKAGES), ("WebKit", find_webkit, WEBKIT_PACKAGES)):
        if not find():
            install_for_tests(name, *packages)


# ---- The parts of the page -------------------------------------------------------------------------------------------


def build_engines() -> dict[str, Path]:
    """Compile wasm/run.c in all builds; return the module of each, and put the plain one in the Python package."""
    emcc = ensure_emcc()
    macros = run(emcc, "-dM", "-E", "-x", "c", os.devnull)
    emcc_knows_relaxed = int(re.findall(r"__clang_major__ (\d+)", macros)[0]) >= RELAXED_CLANG
    clang = None if emcc_knows_relaxed else ensure_clang()
    versions = run(emcc, "--version") + (run(clang, "--version") if clang else "")
    key = digest(versions, Path(__file__), *sorted((ROOT / "wasm").glob("*.[ch]")))
    engines = {}
    for name, flags in ENGINES.items():
        make = partial(compile_with_emcc, emcc, flags)
        if clang and "-mrelaxed-simd" in flags:
            make = partial(compile_with_clang, clang, emcc, flags)
        engines[name] = cached(f"run-{name}.wasm", key, make)
    installed = ROOT / "py/fabella/run.wasm"
    if not installed.exists() or installed.read_bytes() != engines["simd"].read_bytes():
        shutil.copyfile(engines["simd"], installed)
    installed.chmod(0o644)  # the wheel keeps it
    return engines


def compile_with_emcc(emcc: str, flags: tuple[str, ...], target: Path) -> None:
    """Compile and link one build of the engine."""
    link = (*EMCC_LINK, *(EMCC_LINK_THREADS if "-matomics" in flags else ()))
    run(emcc, *COMPILE_FLAGS, *flags, ROOT / "wasm/run.c", *link, "-o", target)


def compile_with_clang(clang: str, emcc: str, flags: tuple[str, ...], target: Path) -> None:
    """Compile and link one build of the engine with a newer LLVM than emcc's, against the C library of emcc."""
    sysroot = Path(run(Path(emcc).with_name("em-config"), "CACHE").strip()) / "sysroot"
    library = sysroot / "lib/wasm32-emscripten"
    with scratch(target.parent) as folder:
        compiled = folder / "run.o"
        platform = ("--target=wasm32-unknown-emscripten", f"--sysroot={sysroot}")
        run(clang, *platform, *COMPILE_FLAGS, *flags, "-c", ROOT / "wasm/run.c", "-o", compiled)
        link = (*WASM_LD_LINK, *(WASM_LD_LINK_THREADS if "-matomics" in flags else ()))
        run(f"wasm-ld-{RELAXED_CLANG}", compiled, library / "crt1_reactor.o", f"-L{library}", *link, "-o", target)


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
    import tomllib  # from Python 3.11 on: an older one gets as far as main's message

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
            sys.path.append("/fabella")
            from build import repack_stdlib`);
        python.globals.get("repack_stdlib")("/fabella/" + source, "/fabella/" + target);
    """

    def make(target: Path) -> None:
        say("Compiling Python's standard library for the page ...")
        inside = (path.relative_to(ROOT).as_posix() for path in (source, target))
        run("node", "--input-type=module", "--eval", script, ROOT, *inside)

    return cached("python-stdlib.zip", digest(ROOT / "package-lock.json", Path(__file__)), make)


def repack_stdlib(source: str, target: str) -> None:
    """Write a zip file's modules as bytecode into another; runs inside Pyodide, whose Python will load them."""
    from importlib._bootstrap_external import _code_to_hash_pyc  # type: ignore[attr-defined]

    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in sorted(old.namelist()):
            if not name.endswith(".py") or any(fnmatch(name.removesuffix(".py"), unused) for unused in UNUSED_STDLIB):
                continue
            text = old.read(name)
            code = compile(
                text, f"/lib/python{sys.version_info[0]}{sys.version_info[1]}.zip/{name}", "exec", dont_inherit=True
            )
            entry = zipfile.ZipInfo(name + "c")  # dated 1980, so that the same input makes the same file
            entry.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(entry, _code_to_hash_pyc(code, importlib.util.source_hash(text), False), compresslevel=9)


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


# ---- The page --------------------------------------------------------------------------------------------------------


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


def bundle(model: Path, tokenizer: Path | None, out: Path) -> None:
    """Build everything that has changed and write the static page into `out`."""
    out = out.resolve()
    check_out(out)
    ensure_python("requirements.txt")
    ensure_node_packages()
    engines, stdlib = build_engines(), build_stdlib()
    wheel = build_wheel()
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
                "wheel": part(new, publish(wheel, new, f"fabella-{project_version()}-0{{hash}}-py3-none-any.whl")),
            },
            "engines": {
                name: part(new, publish(path, new, f"run-{name}-{{hash}}.wasm")) for name, path in engines.items()
            },
            "model": {**part(new, publish(gguf, new, "{stem}-{hash}.gguf")), "name": gguf.name},
        }
        write_index(new, scripts, assets)
        shutil.copyfile(WEB / "LICENSES.txt", new / "LICENSES.txt")
        swap(new, out)
    say(f"Built {os.path.relpath(out)} around {model.name}: {size(out) / 1e6:.1f} MB.")


# ---- Serving and testing ---------------------------------------------------------------------------------------------


class PageHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a built page as a good static host would: right types, and names that carry a hash kept for ever."""

    protocol_version = "HTTP/1.1"
    extensions_map = {  # noqa: RUF012 (as in the base class)
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        **{".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"},
        **{".gguf": "application/octet-stream", ".whl": "application/zip"},
    }

    def __init__(self, *arguments: Any, directory: str, policy: str) -> None:
        self.policy = policy
        self.status = 0
        super().__init__(*arguments, directory=directory)

    def send_head(self) -> Any:
        """Find the file that is asked for; a path that no file can have is not found either."""
        try:
            return super().send_head()
        except ValueError:  # a null byte
            self.send_error(http.HTTPStatus.NOT_FOUND)
            return None

    def list_directory(self, path: Any) -> None:
        """Answer as hosts do that list no folders."""
        self.send_error(http.HTTPStatus.NOT_FOUND)

    def send_response(self, code: int, message: str | None = None) -> None:
        """Begin an answer, and note its status for the headers."""
        self.status = int(code)
        super().send_response(code, message)

    def end_headers(self) -> None:
        """Add the page's own Content-Security-Policy as a header, so that the worker is under it as well."""
        self.send_header("Content-Security-Policy", self.policy)
        for name, value in ISOLATION.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "max-age=31536000, immutable" if self.sends_hashed_file() else "no-cache")
        super().end_headers()

    def sends_hashed_file(self) -> bool:
        """Whether the answer is a file that changes its name with its content: no listing, and no error."""
        if self.status not in (200, 304):
            return False
        file = Path(self.translate_path(self.path))
        return file.is_file() and re.match(r"assets$|pyodide-", file.relative_to(self.directory).parts[0]) is not None

    def handle(self) -> None:
        """Answer one connection; that the browser closes it when it likes is no error."""
        with suppress(ConnectionError):
            super().handle()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Say nothing of requests that went well; errors are logged all the same."""


def content_security_policy(index: str) -> str:
    """Return the policy that index.html sets for itself."""
    found = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]+)"', index)
    if not found:
        raise BuildError("web/index.html: its Content-Security-Policy is missing")
    return " ".join(found[1].split())


class PageServer(http.server.ThreadingHTTPServer):
    """Serves on an address of either family; a client that does something unheard of disturbs nobody."""

    def __init__(self, family: socket.AddressFamily, *arguments: Any) -> None:
        self.address_family = family
        super().__init__(*arguments)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong in one line."""
        say(f"A request from {client_address[0]} could not be answered: {sys.exception()}")


def find_address(host: str, port: int | None) -> socket.AddressFamily:
    """Check that a page could be served at an address, before it is built; return the address's family."""
    if port is not None and not 0 <= port <= 65535:
        raise BuildError(f"--port {port}: a port is a number from 0 to 65535")
    try:
        family: socket.AddressFamily = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as trial:
            trial.bind((host, 0))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BuildError(f"--host {host}: this machine cannot listen at that address ({reason})") from error
    return family


def listen(directory: Path, port: int | None, host: str = "127.0.0.1") -> http.server.ThreadingHTTPServer:
    """Open the given port of this machine, or the first free one from 8000 on."""
    family = find_address(host, port)
    policy = content_security_policy((directory / "index.html").read_text(encoding="utf-8"))
    handler = partial(PageHandler, directory=str(directory), policy=policy)
    for candidate in [port] if port is not None else range(8000, 8100):
        try:
            return PageServer(family, (host, candidate), handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise BuildError(f"cannot serve at {host}, port {candidate}: {error.strerror}") from error
    raise BuildError(f"port {port} is taken: choose another with --port" if port else "ports 8000 to 8099 are taken")


def serve(directory: Path, port: int | None, host: str) -> None:
    """Serve the built page until Ctrl-C."""
    with listen(directory, port, host) as server:
        name = {"127.0.0.1": "localhost", "0.0.0.0": socket.gethostname()}.get(host, host)
        say(f"Serving at http://{name}:{server.server_port}/ (Ctrl-C stops)")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    say("")


def check() -> None:
    """Check the form and the types of the sources."""
    say("Checking the sources with ruff, mypy, tsc and clang-format ...")
    run(PYTHON, "-m", "ruff", "check")
    run(PYTHON, "-m", "ruff", "format", "--check")
    run(PYTHON, "-m", "mypy")
    run("node", NODE_MODULES / "typescript/bin/tsc", "--project", "web/jsconfig.json")
    sources = [file for pattern in C_SOURCES for file in ROOT.glob(pattern)]
    run(PYTHON.parent / "clang-format", "--dry-run", "--Werror", *sources)


def ensure_fuzzer() -> None:
    """Install libFuzzer and Valgrind where that is possible; without them their tests are skipped."""
    packages = ("libclang-rt-19-dev", "valgrind")
    found = shutil.which("valgrind") and list(Path("/usr/lib").glob("llvm-19/lib/clang/19/lib/linux/*fuzzer*"))
    if sys.platform == "linux" and not found:
        install_for_tests("libFuzzer or Valgrind", "clang-19", *packages)


def test(pytest_arguments: list[str]) -> int:
    """Install what testing needs, check the sources and run the tests; return pytest's exit status."""
    ensure_python("requirements-dev.txt")
    ensure_browsers()
    ensure_fuzzer()
    if not pytest_arguments:
        check()
        # Each of the processes has browsers of its own.
        pytest_arguments = ["--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"]
    return subprocess.run([PYTHON, "-m", "pytest", *pytest_arguments], cwd=ROOT, check=False).returncode


def bench(bench_arguments: list[str], dist: Path) -> int:
    """Install what the benchmark needs and run it on the built page; return its exit status."""
    ensure_python("requirements-dev.txt")
    ensure_chromium()
    try:
        ensure_python("tests/bench/requirements-bench.txt")
    except BuildError as error:
        say(f"Going on without what cannot be installed: {error}")
    command = [str(PYTHON), "-m", "tests.bench", "--dist", str(dist.resolve()), *bench_arguments]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while True:
            with suppress(KeyboardInterrupt):  # the benchmark hears Ctrl-C as well, and comes to its own end
                return process.wait()


# ---- The command line ------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    page = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    page.add_argument(
        "--model", type=Path, metavar="FILE", help="GGUF, or llama2.c's .bin (default web/models/stories.gguf)"
    )
    page.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.bin, for a .bin model")
    page.add_argument("--out", type=Path, metavar="DIR", help="folder of the built page (default dist)")

    main = argparse.ArgumentParser(
        description="Bundle Fabella's static page. What is missing is installed, what is unchanged is reused.",
        parents=[page],
        allow_abbrev=False,
    )
    main.set_defaults(command="bundle", model=WEB / "models/stories.gguf", tokenizer=None, out=ROOT / "dist")
    commands = main.add_subparsers(title="more commands", metavar="command")
    text = "bundle the page, then serve it on this machine"
    serving = commands.add_parser("serve", help=text, description=text.capitalize() + ".", parents=[page])
    serving.set_defaults(command="serve")
    serving.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default 127.0.0.1; 0.0.0.0 lets other machines visit)",
    )
    serving.add_argument("--port", type=int, help="port to listen on (default: the first free one from 8000 on)")
    text = "install what training, the command line and the tests need into .venv/, and compile the engine"
    commands.add_parser("setup", help=text, description=text.capitalize() + ".").set_defaults(command="setup")
    text = "bundle the page, then run every check and test; arguments are handed to pytest, and only its tests run then"
    testing = commands.add_parser("test", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    testing.usage = "build.py test [-h] [pytest arguments ...]"
    testing.set_defaults(command="test")
    text = "bundle the page, then measure it beside its peers in one browser; takes half an hour, --quick two minutes"
    measuring = commands.add_parser("bench", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    measuring.usage = "build.py bench [-h] [--quick] [--models MODEL ...] [--rounds N] [--threads N]"
    measuring.set_defaults(command="bench")
    return main


def main() -> int:
    """Run the command line; return the exit status."""
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit("build.py: Python 3.11 or later is needed")
    sys.path.insert(0, str(ROOT / "py"))
    from fabella.console import run_command

    return run_command("build.py", command, errors=(BuildError, OSError))


def command() -> int:
    """Do what the command line says; return the exit status."""
    arguments, others = parser().parse_known_args()
    if others and arguments.command not in ("test", "bench"):
        parser().error(f"unrecognized arguments: {' '.join(others)}")
    if arguments.command == "setup":
        ensure_python("requirements-dev.txt")
        build_engines()
        say("Ready: source .venv/bin/activate")
        return 0
    if arguments.command == "serve":
        find_address(arguments.host, arguments.port)
    bundle(arguments.model, arguments.tokenizer, arguments.out)
    if arguments.command == "serve":
        serve(arguments.out, arguments.port, arguments.host)
    if arguments.command == "test":
        return test(others)
    if arguments.command == "bench":
        return bench(others, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
