"""The engine: wasm/run.c, compiled in four builds."""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path

from builder.install import RELAXED_CLANG, ensure_clang, ensure_emcc
from builder.tools import ROOT, cached, digest, run, scratch

# The builds of wasm/run.c, and what each is compiled with on top of COMPILE_FLAGS. No name may begin with
# another's: `cached` tells their files apart by that.
RELAXED = ("-mrelaxed-simd", "-mbulk-memory")
THREADS = ("-matomics", "-mbulk-memory", "-mmutable-globals")
ENGINES = {
    "simd": (),
    "relaxed": RELAXED,
    "threads-simd": THREADS,
    "threads-relaxed": (*RELAXED, *THREADS),
}
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
