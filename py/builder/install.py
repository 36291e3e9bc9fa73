"""What is missing is installed: Python packages, npm packages, compilers, browsers."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from builder.tools import NODE_MODULES, PYTHON, ROOT, VENV, BuildError, digest, run, say

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NODE_VERSION = 20
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FIREFOXES = ("firefox-esr", "firefox")
FIREFOX_PACKAGES = ("firefox-esr",)  # Debian's names
WEBKIT_PACKAGES = ("webkit2gtk-driver", "xvfb")
RELAXED_CLANG = 19  # the first one whose relaxed SIMD is the standard's
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


def ensure_fuzzer() -> None:
    """Install libFuzzer and Valgrind where that is possible; without them their tests are skipped."""
    packages = ("libclang-rt-19-dev", "valgrind")
    found = shutil.which("valgrind") and list(Path("/usr/lib").glob("llvm-19/lib/clang/19/lib/linux/*fuzzer*"))
    if sys.platform == "linux" and not found:
        install_for_tests("libFuzzer or Valgrind", "clang-19", *packages)
