"""The references outside the browser: llama.cpp, and our own C compiled for this machine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from fabella.gguf import read_gguf
from fabella.sources import FileSource
from tests.records import config_bytes, joined, tensor_records

from .browser import LIMIT, Failure
from .engines import BUILT, HERE


def run(*command: str | Path) -> str:
    """What a program prints, or the Failure that it ended with."""
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise Failure(f"no answer within {LIMIT} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"  # a signal leaves no words
        raise Failure(words.splitlines()[-1])
    return done.stdout


def llamacpp(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Measures native llama.cpp; `spec` and the answer as in web/bench.js."""
    names = ("ids", "tokens", "seconds", "stories", "threads")
    asked = {"model": str(folder / "model.gguf"), **{name: spec[name] for name in names}}
    answer: dict[str, Any] = json.loads(run("node", HERE / "llamacpp.mjs", json.dumps(asked)).splitlines()[-1])
    return answer


def native(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Measures wasm/run.c as a program of this machine."""
    records = folder / "native.bin"
    with FileSource(folder / "model.gguf") as source:
        config = read_gguf(source).config
    records.write_bytes(joined(config_bytes(config), tensor_records(folder / "model.gguf")))
    numbers = [str(spec[name]) for name in ("tokens", "seconds", "stories")]
    loaded, *stories, tokens = run(BUILT / "native", records, folder / "prompt.bin", *numbers).splitlines()
    times = [tuple(map(float, line.split())) for line in stories]
    return {
        "load_ms": float(loaded),
        "stories": [{"prefill_ms": a, "decode_ms": b, "decoded": spec["tokens"]} for a, b in times],
        "tokens": [int(token) for token in tokens.split()],
    }
