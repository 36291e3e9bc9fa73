"""Runs the benchmark: ``python build.py bench``, which installs and builds what this needs and then starts it.

In every round each model is run by each engine in turn, so that what else the machine does falls on all alike. Each
measurement is kept at once in ``results/DATE-KEY.json``, where KEY is a hash of all that the figures depend on (see
`results_file`); after Ctrl-C, or with more rounds, a rerun goes on from there. Tables (.md) and a chart (.png) are
written beside it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from builder.offers import hashes_of
from builder.tools import ROOT, WEB, BuildError, digest
from fabella.console import run_command
from fabella.errors import FabellaError

from . import native
from .browser import Bench, Failure, opened
from .engines import ENGINES, HERE, build_all, engines_for, install_peers, versions
from .models import MODELS, PROMPT_TOKENS, QUICK, make_model, packed_bytes
from .report import chart, tables

STORIES = 3  # told at least; the first only warms up
SECONDS = 2.0  # and for at least so long
ROOFLINE_SECONDS = 0.5
CONTEXT = 512  # tokens that peers make room for


def machine() -> str:
    """The processor and how many of its cores there are."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        if found := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
            name = found[1]
    return f"{name}, {os.cpu_count()} cores"


def results_file(dist: Path, browser: str, quick: bool, threads: int) -> Path:
    """Where the results belong: to the newest file of the same key, or to a new one of today.

    The key stands for the machine, the browser's version, the page, the models, and the benchmark's own sources with
    the lock file of the peers, so that no file mixes figures that cannot be compared. `report` measures nothing.
    """
    page = (path for path in dist.rglob("*") if path.is_file() and path.suffix != ".gguf")
    own = (path for folder in (HERE, HERE / "web") for path in folder.iterdir() if path.is_file())
    engine = (ROOT / "wasm").glob("*.[ch]")  # compiled for this machine as well
    sources = (path for path in (*own, *engine) if path.name != "report.py")
    key = digest(machine(), browser, WEB / "models/stories.gguf", *sorted(page), *sorted(sources))[:6]
    name = f"{key}{f'-{threads}-threads' if threads > 1 else ''}{'-quick' if quick else ''}.json"
    earlier = sorted((HERE / "results").glob(f"*-{name}"))
    return earlier[-1] if earlier else HERE / f"results/{datetime.date.today()}-{name}"


def save(path: Path, results: dict[str, Any]) -> None:
    """Write the results in the place of what was there; never half."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def spread(values: list[float]) -> dict[str, float]:
    """What is kept of many values."""
    return {"lowest": min(values), "median": statistics.median(values), "best": max(values)}


def rates(stories: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Tokens/s, decode and prefill, over all stories but the first (told by code that is not optimised yet)."""
    return {
        "decode": spread([1000 * story["decoded"] / story["decode_ms"] for story in stories[1:]]),
        "prefill": spread([1000 * PROMPT_TOKENS / story["prefill_ms"] for story in stories[1:]]),
    }


def measure(bench: Bench, folder: Path, model: str, engine: str, threads: int = 1) -> dict[str, Any]:
    """One measurement, as the report wants it, or the error that it ended with."""
    asked = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    spec = {
        "engine": engine,
        **asked,
        **{"tokens": MODELS[model].tokens, "context": CONTEXT, "threads": threads},
        **{"stories": STORIES, "seconds": SECONDS},
    }
    try:
        if engine == "roofline":
            size = packed_bytes(MODELS[model])
            spec = {"engine": engine, "bytes": size, "seconds": ROOFLINE_SECONDS, "threads": 1}
            answer = bench.measure(model, spec)
            return {"bytes": answer["bytes"], "gb_per_s": statistics.median(answer["gb_per_s"])}
        if engine == "llamacpp":
            answer = native.llamacpp(folder, spec)
        elif engine == "native":
            answer = native.native(folder, spec)
        else:
            if engine == "fabella":
                spec["part"] = hashes_of(folder / "model.gguf")
            answer = bench.measure(model, spec)
    except Failure as error:
        return {"error": str(error)}
    if not MODELS[model].is_real and "text" in answer:  # one character is one token
        pieces = token_numbers(folder)
        answer["tokens"] = [pieces[character] for character in answer["text"]]
    answer |= rates(answer.pop("stories"))
    answer.pop("text", None)
    if "tokens" in answer:
        answer["tokens"] = " ".join(map(str, answer["tokens"]))  # one line of the file
    return answer


def token_numbers(folder: Path) -> dict[str, int]:
    """The id of each of a model's tokens."""
    from fabella.gguf import read_gguf
    from fabella.sources import FileSource

    with FileSource(folder / "model.gguf") as source:
        return {piece: number for number, piece in enumerate(read_gguf(source).tokenizer.pieces)}


def run(models: list[str], rounds: int, dist: Path, quick: bool, threads: int) -> Path:
    """Measure all that is still missing; return the results file."""
    left_out = install_peers()
    build_all(left_out)
    folders = {model: make_model(model) for model in tqdm(models, desc="models", unit="model")}
    wanted = [
        (number, model, engine)
        for number in range(rounds)
        for model in models
        for engine in [*engines_for(model, left_out, threads), *(["roofline"] if threads == 1 else [])]
    ]
    with opened(dist, folders, threads > 1) as bench:
        path = results_file(dist, bench.version, quick, threads)
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}
        kept = [entry for entry in results["runs"] if "error" not in entry]
        done = {(entry["round"], entry["model"], entry["engine"]) for entry in kept}
        missing = [one for one in wanted if one not in done]
        results = {
            "date": results.get("date", str(datetime.date.today())),
            "machine": machine(),
            "browser": f"Chromium {bench.version}",
            "threads": threads,
            "rounds": max([rounds, *(entry["round"] + 1 for entry in kept)]),
            "versions": versions(),
            "left_out": left_out,
            "runs": kept,
        }
        progress = tqdm(missing, unit="run", initial=len(wanted) - len(missing), total=len(wanted))
        for number, model, engine in progress:
            title = ENGINES[engine].title if engine in ENGINES else engine
            progress.set_description(f"round {number + 1}, {model}, {title}")
            entry = {"round": number, "model": model, "engine": engine}
            entry |= measure(bench, folders[model], model, engine, threads)
            if "error" in entry:
                progress.write(f"{title} with {model} failed: {entry['error']}")
            results["runs"].append(entry)
            save(path, results)
    save(path, results)
    return path


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="build.py bench", description="Measure Fabella beside its peers.")
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}, two rounds")
    parser.add_argument("--models", nargs="+", choices=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, help="how often each engine runs each model (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="that each engine may use, if it can (default 1)")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads: must be at least 1, not {arguments.threads}")
    models = arguments.models or list(QUICK if arguments.quick else MODELS)
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    try:
        path = run(models, rounds, arguments.dist.resolve(), arguments.quick, arguments.threads)
    except KeyboardInterrupt:
        print("\nStopped. What was measured is kept; the same command goes on.", file=sys.stderr)
        return 130
    results = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(tables(results), encoding="utf-8")
    chart(results, path.with_suffix(".png"))
    print(tables(results))
    written = (path.with_suffix(end).relative_to(ROOT) for end in (".json", ".md", ".png"))
    print(f"Written: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("bench", main, (BuildError, FabellaError, OSError)))
