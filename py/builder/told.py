"""A story told before: what stands on the page while its own storyteller wakes."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from builder.tools import PYTHON, ROOT, cached, digest, say

SEEDS = range(1, 13)  # the first whose story comes to its end is taken
LONGEST = 512  # tokens: a longer one is no first sight


class Told(NamedTuple):
    """A story, and the seed that tells it again."""

    prompt: str
    text: str  # the prompt and what the model has added
    seed: int


def told_before(model: Path, prompt: str, adapter: Path | None = None) -> Told | None:
    """Have a model (GGUF) tell a story as the page would; return the first that comes to an end, or None.

    The engine is built already.
    """

    def make(target: Path) -> None:
        say("Telling the story that stands on the page at first ...")
        found = next((told for seed in SEEDS if (told := _tell(model, prompt, seed, adapter))), None)
        target.write_text(json.dumps(found), encoding="utf-8")

    sources = [
        *sorted((ROOT / "py/fabella").glob("*.py")),
        ROOT / "py/fabella/run.wasm",
        *([adapter] if adapter else []),
    ]
    file = cached(f"told-{digest(model)}.json", digest(prompt, *sources), make)
    found = json.loads(file.read_text(encoding="utf-8"))
    return Told(*found) if found else None


def _tell(model: Path, prompt: str, seed: int, adapter: Path | None) -> Told | None:
    command = [str(PYTHON), "-m", "fabella", str(model), f"-i{prompt}", "-s", str(seed), "-n", str(LONGEST)]
    if adapter:
        command += ["--adapter", str(adapter)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "py"), "PYTHONIOENCODING": "utf-8"}
    told = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    text = told.stdout.removesuffix("\n")
    is_whole = told.returncode == 0 and "; the end]" in told.stderr and text.startswith(prompt)
    return Told(prompt, text, seed) if is_whole else None


def as_html(told: Told) -> str:
    """Return the story as the paragraphs that web/views/story.js would make, and a line that says what it is."""
    lines = re.finditer(r"[^\n]+", told.text)
    paragraphs = "".join(f"<p>{_line(line, len(told.prompt))}</p>" for line in lines)
    return f'<p class="hint">Told before, with seed {told.seed}:</p><div data-seed="{told.seed}">{paragraphs}</div>'


def _line(line: re.Match[str], prompt: int) -> str:
    """Return a line as HTML, what of it belongs to the prompt (so many characters) marked as the visitor's."""
    cut = max(prompt - line.start(), 0)
    given, own = (html.escape(part) for part in (line[0][:cut], line[0][cut:]))
    return f'<span class="given">{given}</span>{own}' if given else own
