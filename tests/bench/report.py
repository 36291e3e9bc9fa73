"""What the benchmark's results say: Markdown tables and a chart, from a results file alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .engines import ENGINES
from .models import MODELS, PROMPT_TOKENS

OURS = "fabella"
Run = dict[str, Any]
Results = dict[str, Any]


# ---- Figures ---------------------------------------------------------------------------------------------------------


def runs_of(results: Results, model: str, engine: str) -> list[Run]:
    """The successful measurements of an engine with a model, by round."""
    runs = [run for run in results["runs"] if (run["model"], run["engine"]) == (model, engine)]
    return sorted((run for run in runs if "error" not in run), key=lambda run: run["round"])


def spread(runs: list[Run], what: str) -> tuple[float, float, float]:
    """Tokens/s of decode or prefill over all rounds: the lowest, the median of the rounds' medians, the best."""
    rates = [run[what] for run in runs]
    return (
        min(rate["lowest"] for rate in rates),
        statistics.median(rate["median"] for rate in rates),
        max(rate["best"] for rate in rates),
    )


def paired_ratios(results: Results, model: str, peer: str, what: str) -> list[float]:
    """Our rate divided by a peer's, in each round that both have."""
    theirs = {run["round"]: run for run in runs_of(results, model, peer)}
    return [
        run[what]["median"] / theirs[run["round"]][what]["median"]
        for run in runs_of(results, model, OURS)
        if run["round"] in theirs
    ]


def roofline_shares(results: Results, model: str) -> list[float]:
    """Bytes of packed weights that decoding reads each second, as a part of what a bare loop read in the same round."""
    bandwidth = {run["round"]: run for run in runs_of(results, model, "roofline")}
    return [
        run["decode"]["median"] * bandwidth[run["round"]]["bytes"] / (1e9 * bandwidth[run["round"]]["gb_per_s"])
        for run in runs_of(results, model, OURS)
        if run["round"] in bandwidth
    ]


def agreement(results: Results, model: str, engine: str) -> tuple[int, int] | None:
    """How many of its first tokens an engine picks as we do, and of how many; fewest over the rounds."""
    ours = {run["round"]: run["tokens"].split() for run in runs_of(results, model, OURS)}
    counts = []
    for run in runs_of(results, model, engine):
        pairs = list(zip(run.get("tokens", "").split(), ours.get(run["round"], []), strict=False))
        if pairs:
            counts.append((next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs)), len(pairs)))
    return min(counts, default=None)


# ---- Markdown --------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits of a positive number, thousands set apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def threads(count: int) -> str:
    """So many threads, in words."""
    return "1 thread" if count == 1 else f"{count} threads"


def builds(results: Results) -> str:
    """The builds of itself that Fabella chose, and with how many threads."""
    ours = {(run["simd"], run["threads"]) for run in results["runs"] if run["engine"] == OURS and "error" not in run}
    return " or ".join(
        f"{'relaxed SIMD' if simd == 'relaxed' else 'SIMD'}, {threads(count)}" for simd, count in sorted(ours)
    )


def notes(results: Results) -> list[str]:
    """What one must know of the peers that ran, a paragraph each."""
    ran = {(run["engine"], run["model"]) for run in results["runs"]}
    lines = []
    if any(engine == "llamacpp" for engine, _ in ran):
        lines += [
            "Native llama.cpp is timed by its own counters, prompt evaluation and evaluation, without sampling and "
            "without the JavaScript that calls it; all others are timed as their caller waits for them.",
            "",
        ]
    q4 = {model for engine, model in ran if engine in ("onnxruntime", "transformers") and MODELS[model].type == "Q4_1"}
    if q4:
        lines += [
            f"{', '.join(sorted(q4))}: transformers.js and ONNX Runtime run it with 8-bit weights, not 4-bit.",
            "",
        ]
    return lines


def _grid(results: Results, first: str, engines: list[str], cell: Callable[[str, str], str]) -> list[str]:
    models = [name for name in MODELS if any(run["model"] == name for run in results["runs"])]
    lines = [f"| {first} | {' | '.join(models)} |", f"|---|{'---:|' * len(models)}"]
    for engine in engines:
        cells = [cell(model, engine) for model in models]
        if any(cells):
            title = "share of the read roofline" if engine == "roofline" else ENGINES[engine].title
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return [*lines, ""]


def tables(results: Results) -> str:
    """All tables, with what one must know to read them."""

    def rate(what: str) -> Callable[[str, str], str]:
        def cell(model: str, engine: str) -> str:
            runs = runs_of(results, model, engine)
            if not runs:
                return "failed" if any((r["model"], r["engine"]) == (model, engine) for r in results["runs"]) else ""
            lowest, middle, best = map(number, spread(runs, what))
            return f"{middle} ({lowest} – {best})"

        return cell

    def ratio(what: str) -> Callable[[str, str], str]:
        def cell(model: str, engine: str) -> str:
            if engine == "roofline":
                shares = roofline_shares(results, model)
                return f"{statistics.median(shares):.0%}" if shares else ""
            values = paired_ratios(results, model, engine, what)
            return f"{number(statistics.median(values))} ×" if values else ""

        return cell

    def middle(key: str, scale: float, digits: int = 0) -> Callable[[str, str], str]:
        def cell(model: str, engine: str) -> str:
            values = [run[key] for run in runs_of(results, model, engine) if run.get(key) is not None]
            return f"{statistics.median(values) / scale:,.{digits}f}" if values else ""

        return cell

    def agrees(model: str, engine: str) -> str:
        found = agreement(results, model, engine)
        return f"{found[0]} of {found[1]}" if found else ""

    engines, peers = list(ENGINES), [name for name in ENGINES if name != OURS]
    several = results["threads"] > 1
    roofline = "; and the bytes of weights it reads each second, as a share of what a bare loop of loads reads"
    lines = [
        f"{results['date']}, {results['machine']}, {results['browser']}, {results['rounds']} rounds, "
        f"{'up to ' if several else ''}{threads(results['threads'])}. Fabella's build: {builds(results)}. "
        f"{PROMPT_TOKENS} tokens of prompt, then one by one, greedily. "
        "Median of the rounds' medians (lowest – best of all).",
        "",
        *_grid(results, "decode, tokens/s", engines, rate("decode")),
        *_grid(results, "prefill, tokens/s", engines, rate("prefill")),
        *notes(results),
        f"Fabella's rate divided by the other's in the same round, median of the rounds{'' if several else roofline}.",
        "",
        *_grid(results, "decode, Fabella ÷", [*peers, "roofline"], ratio("decode")),
        *_grid(results, "prefill, Fabella ÷", peers, ratio("prefill")),
        *_grid(results, "load, ms", engines, middle("load_ms", 1)),
        *_grid(results, "code to download, MB uncompressed", engines, middle("code_bytes", 1e6, 1)),
        *_grid(results, "model to download, MB", engines, middle("model_bytes", 1e6, 1)),
        *_grid(results, "peak memory of the page above an empty one, MB", engines, middle("memory_bytes", 1e6)),
        *_grid(results, "leading tokens that are Fabella's too", peers, agrees),
    ]
    lines += [f"Left out: {ENGINES[name].title}: {why}." for name, why in results["left_out"].items()]
    failed: dict[tuple[str, str, str], list[int]] = {}
    for run in results["runs"]:
        if "error" in run:
            failed.setdefault((run["engine"], run["model"], run["error"]), []).append(run["round"] + 1)
    for (engine, model, error), rounds in failed.items():
        title = ENGINES[engine].title if engine in ENGINES else engine
        lines.append(f"Failed: {title} with {model} in round {', '.join(map(str, rounds))}: {error}.")
    lines += [f"Versions: {', '.join(f'{ENGINES[name].title} {v}' for name, v in results['versions'].items())}."]
    return "\n".join(lines) + "\n"


# ---- The chart -------------------------------------------------------------------------------------------------------


# One strong colour, for us; the references outside the browser are grey.
COLOURS = {
    "fabella": "#c8102e",
    "wllama": "#8fb5d8",
    "transformers": "#f1c78f",
    "onnxruntime": "#dcd58c",
    "plain": "#a9cfa4",
    "llamacpp": "0.6",
    "native": "0.8",
}


def chart(results: Results, path: Path) -> None:
    """Draw the median decode rates, a group of bars for each model, from lowest to best by a line."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    models = [name for name in MODELS if any(run["model"] == name for run in results["runs"])]
    engines = [name for name in ENGINES if any(runs_of(results, model, name) for model in models)]
    figure = Figure(figsize=(10, 0.9 + 0.22 * (len(engines) + 1.5) * len(models)), layout="constrained")
    axes = figure.subplots()
    ticks = []
    row = 0.0
    for model in models:
        shown = [name for name in engines if runs_of(results, model, name)]
        ticks.append(row + (len(shown) - 1) / 2)
        for name in shown:
            lowest, middle, best = spread(runs_of(results, model, name), "decode")
            axes.barh(row, middle, 0.85, color=COLOURS[name])
            axes.plot([lowest, best], [row, row], color="black", linewidth=1)
            axes.text(best * 1.06, row, number(middle), va="center", fontsize=8)
            row += 1
        row += 1.5
    axes.set_xscale("log")
    axes.set_yticks(ticks, models)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("decode, tokens/s (median; the line from lowest to best; logarithmic)")
    axes.set_title(f"{results['browser']}, {results['date']}; Fabella: {builds(results)}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    legend = [Patch(color=COLOURS[name], label=ENGINES[name].title) for name in engines]
    axes.legend(handles=legend, loc="lower left", bbox_to_anchor=(0, 1.04), ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
