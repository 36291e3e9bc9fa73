"""llama.cpp as a reference: a program on the libraries that node-llama-cpp brings, which the benchmark installs."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.tools import CACHE, ROOT, cached, digest

MODULES = ROOT / "tests/bench/node_modules"
BUNDLE = MODULES / "node-llama-cpp/llama/gitRelease.bundle"  # llama.cpp's source, of which the headers are needed
SOURCE = Path(__file__).with_name("llama_cpp.c")
MACHINES = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}


class LlamaCpp:
    """The program; skips the test where it cannot be had."""

    def __init__(self) -> None:
        name = MACHINES.get(platform.machine(), "")
        self.libraries = MODULES / f"@node-llama-cpp/{name}/bins/{name}"
        compiler = shutil.which("gcc") or shutil.which("clang")
        if not (self.libraries.is_dir() and BUNDLE.is_file() and compiler and shutil.which("git")):
            pytest.skip("needs llama.cpp, which `python build.py bench --quick` installs, a C compiler and git")
        self.compiler = compiler
        self.program = cached("llama_cpp", digest(SOURCE, Path(__file__)), self._compile)

    def _compile(self, target: Path) -> None:
        source = target.parent / "llama.cpp"
        subprocess.run(["git", "clone", "-q", BUNDLE, source], check=True)
        include = [f"-I{source / folder}" for folder in ("include", "ggml/include")]
        (llama,) = self.libraries.glob("libllama.v*.so")
        (ggml,) = self.libraries.glob("libggml.v*.so")
        link: list[Path | str] = [llama, ggml, self.libraries / "libggml-base.so", f"-Wl,-rpath,{self.libraries}"]
        subprocess.run([self.compiler, "-O2", *include, SOURCE, *link, "-o", target], check=True)

    def _run(self, task: str, model: Path, *arguments: object, **options: Any) -> bytes:
        command = [str(part) for part in (self.program, self.libraries, task, model, *arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, **options).stdout

    def as_f32(self, model: Path) -> Path:
        """The same model with its weights as F32, kept for the next time."""
        name = f"{model.stem}-f32.gguf"
        return cached(name, digest(model.name, str(model.stat().st_size)), lambda to: self._run("f32", model, to))

    def tokens(self, model: Path, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """The tokens of each text."""
        data = [text.encode() for text in texts]
        given = b"".join(struct.pack("<I", len(text)) + text for text in data)
        lines = self._run("tokens", model, int(special), input=given).decode().splitlines()
        return [[int(token) for token in line.split()] for line in lines]

    def logits(
        self, model: Path, tokens: Sequence[int], adapter: Path | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The logits after each token, (n, vocabulary)."""
        out = CACHE / "llama_cpp.logits"
        self._run("logits", model, out, adapter or "", *tokens)
        return np.fromfile(out, np.float32).reshape(len(tokens), -1)

    def greedy(
        self, model: Path, tokens: Sequence[int], count: int, adapter: Path | None = None
    ) -> list[tuple[int, float]]:
        """The likeliest tokens that follow, each with its lead over the second."""
        lines = self._run("greedy", model, count, adapter or "", *tokens).decode().splitlines()
        return [(int(token), float(lead)) for token, lead in map(str.split, lines)]
