"""What the benchmark compares, where it comes from, and the means to build it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from builder import tools
from builder.install import ensure_emcc
from builder.tools import CACHE, BuildError, digest, run, say

from .models import MODELS

HERE = Path(__file__).resolve().parent
NODE_MODULES = HERE / "node_modules"
BUILT = CACHE / "bench-built"
SCRIPTS = ("bench", "wllama", "onnxruntime", "transformers", "plain", "roofline")

CLANG, WASM_LD = "clang-19", "wasm-ld-19"
# With what each needs to keep a*b+c unfused: the loop vectoriser of gcc 12 fuses it in spite of -ffp-contract=off.
NATIVE_COMPILERS = {"clang-19": (), "clang": (), "gcc": ("-fno-tree-vectorize",)}
NATIVE_FLAGS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=off")


@dataclass(frozen=True)
class Engine:
    """Something that is measured.

    Attributes
    ----------
    title
        As tables call it.
    package
        The npm package that it comes from, or "".
    native
        Whether it runs outside the browser.
    types
        The types of models that it is given.
    threaded
        Whether it can use several threads.
    """

    title: str
    package: str = ""
    native: bool = False
    types: tuple[str, ...] = ("F32", "Q8_0", "Q4_1")
    threaded: bool = True


QUANTIZED = ("Q8_0", "Q4_1")
ENGINES = {
    "fabella": Engine("Fabella"),
    "wllama": Engine("wllama", "@wllama/wllama"),
    "transformers": Engine("transformers.js q8", "@huggingface/transformers", types=QUANTIZED),
    "onnxruntime": Engine("ONNX Runtime Web q8, bare loop", "onnxruntime-web", types=QUANTIZED),
    "plain": Engine("REF: plain C, f32, fast-math", types=("F32", "Q8_0"), threaded=False),
    "llamacpp": Engine("native llama.cpp", "node-llama-cpp", native=True),
    "native": Engine("Fabella's C, native", native=True, threaded=False),
}


def engines_for(model: str, left_out: dict[str, str], threads: int = 1) -> list[str]:
    """The engines that run a model on so many threads, in their order."""
    able = {
        name: engine for name, engine in ENGINES.items() if name not in left_out and (threads == 1 or engine.threaded)
    }
    return [name for name, engine in able.items() if MODELS[model].type in engine.types]


# ---- What is there ---------------------------------------------------------------------------------------------------


def install_peers() -> dict[str, str]:
    """Install the pinned npm packages unless that is done; return the engines that cannot be had, and why."""
    stamp = NODE_MODULES / "package-lock.installed"
    wanted = digest(HERE / "package-lock.json")
    failure = ""
    if not stamp.exists() or stamp.read_text() != wanted:
        say("Installing the peers with npm into tests/bench/node_modules (package-lock.json; 440 MB there) ...")
        try:
            # Not `npm ci`: it wants the lock to hold llama.cpp's binaries for every system that there is.
            run("npm", "install", "--prefix", HERE, "--no-save", "--ignore-scripts", "--no-audit", "--no-fund")
            stamp.write_text(wanted)
        except BuildError as error:
            lines = str(error).splitlines()
            failure = "npm: " + next((line for line in lines[2:] if "npm error" in line), lines[-1])
    left_out = {}
    for name, engine in ENGINES.items():
        if engine.package and (failure or not (NODE_MODULES / engine.package).exists()):
            left_out[name] = failure or f"{engine.package} is not in node_modules"
    if not find_spec("onnx"):
        left_out |= dict.fromkeys(("transformers", "onnxruntime"), "the Python package onnx, which writes their models")
    if not (shutil.which(CLANG) and shutil.which(WASM_LD)):
        left_out["plain"] = f"{CLANG} and {WASM_LD} are not installed"
    if not native_compiler():
        left_out["native"] = f"none of {', '.join(NATIVE_COMPILERS)} is installed"
    for name, why in left_out.items():
        say(f"    left out: {ENGINES[name].title} ({why})")
    return left_out


def native_compiler() -> str | None:
    """The compiler of the native build."""
    return next(filter(shutil.which, NATIVE_COMPILERS), None)


def versions() -> dict[str, str]:
    """The version of each peer that comes from npm."""
    found = {}
    for name, engine in ENGINES.items():
        package = NODE_MODULES / engine.package / "package.json"
        if engine.package and package.exists():
            found[name] = json.loads(package.read_text())["version"]
    return found


# ---- What is built ---------------------------------------------------------------------------------------------------


def build_all(left_out: dict[str, str]) -> None:
    """Bundle the page's scripts and compile the C, all into build/bench-built."""
    BUILT.mkdir(parents=True, exist_ok=True)
    scripts = [HERE / f"web/{name}.js" for name in SCRIPTS if name not in left_out]
    esbuild = ("node", tools.NODE_MODULES / "esbuild/bin/esbuild", "--log-level=error", "--bundle", "--format=esm")
    run(*esbuild, "--minify", "--target=es2022", f"--outdir={BUILT}", *scripts)

    emcc = ensure_emcc()
    flags = ("-O3", "-msimd128", "-sSTANDALONE_WASM", "--no-entry", "-sALLOW_MEMORY_GROWTH", "-sMAXIMUM_MEMORY=4GB")
    run(emcc, *flags, HERE / "roofline.c", "-o", BUILT / "roofline.wasm")
    if "plain" not in left_out:
        compile_plain(emcc, BUILT / "plain.wasm")
    compiler = native_compiler()
    if compiler and "native" not in left_out:
        run(compiler, *NATIVE_FLAGS, *NATIVE_COMPILERS[compiler], HERE / "native.c", "-o", BUILT / "native", "-lm")


def compile_plain(emcc: str, target: Path) -> None:
    """Compile REF with a current LLVM, against the C library of emcc, whose own LLVM may be much older."""
    sysroot = Path(run(Path(emcc).with_name("em-config"), "CACHE").strip()) / "sysroot"
    library = sysroot / "lib/wasm32-emscripten"
    compiled = target.with_suffix(".o")
    platform = ("--target=wasm32-unknown-emscripten", f"--sysroot={sysroot}")
    run(CLANG, *platform, "-O3", "-msimd128", "-ffast-math", "-c", HERE / "plain.c", "-o", compiled)
    libraries = ("-lstandalonewasm-memgrow", "-lstubs", "-lnoexit", "-lc", "-ldlmalloc", "-lcompiler_rt")
    layout = ("--import-undefined", "--entry=_initialize", "--max-memory=4294967296", "--global-base=1024")
    run(WASM_LD, compiled, library / "crt1_reactor.o", f"-L{library}", *libraries, *layout, "-o", target)
