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


def rates(run: Run, what: str) -> list[float]:
    """Tokens/s of each story but the first (told by code that the browser has not optimised yet), decode or prefill."""
    stories = run["stories"][1:] or run["stories"]
    if what == "prefill":
        return [1000 * PROMPT_TOKENS / story["prefill_ms"] for story in stories]
    return [1000 * story["decoded"] / story["decode_ms"] for story in stories]


def runs_of(results: Results, model: str, engine: str) -> list[Run]:
    """The successful measurements of an engine with a model, by round."""
    runs = [run for run in results["runs"] if (run["model"], run["engine"]) == (model, engine)]
    return sorted((run for run in runs if "error" not in run), key=lambda run: run["round"])


def paired_ratios(results: Results, model: str, peer: str, what: str) -> list[float]:
    """Our rate divided by a peer's, in each round that both have."""
    theirs = {run["round"]: run for run in runs_of(results, model, peer)}
    return [
        statistics.median(rates(run, what)) / statistics.median(rates(theirs[run["round"]], what))
        for run in runs_of(results, model, OURS)
        if run["round"] in theirs
    ]


def roofline_shares(results: Results, model: str) -> list[float]:
    """Bytes of packed weights that decoding reads each second, as a part of what a bare loop read in the same round."""
    bandwidth = {run["round"]: run for run in runs_of(results, model, "roofline")}
    return [
        statistics.median(rates(run, "decode")) * bandwidth[run["round"]]["bytes"]
        / (1e9 * statistics.median(bandwidth[run["round"]]["gb_per_s"]))
        for run in runs_of(results, model, OURS)
        if run["round"] in bandwidth
    ]  # fmt: skip


def agreement(results: Results, model: str, engine: str) -> tuple[int, int] | None:
    """How many of its first tokens an engine picks as we do, and of how many; fewest over the rounds."""
    ours = {run["round"]: run["tokens"] for run in runs_of(results, model, OURS)}
    counts = []
    for run in runs_of(results, model, engine):
        pairs = list(zip(run.get("tokens", []), ours.get(run["round"], []), strict=False))
        if pairs:
            counts.append((next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs)), len(pairs)))
    return min(counts, default=None)


# ---- Markdown --------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits of a positive number, thousands set apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


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
            if errors := [r for r in results["runs"] if (r["model"], r["engine"]) == (model, engine) and "error" in r]:
                return "failed" if len(errors) == results["rounds"] else "–"
            values = [value for run in runs_of(results, model, engine) for value in rates(run, what)]
            if not values:
                return ""
            best, low = number(max(values)), number(min(values))
            return f"{number(statistics.median(values))} ({low} – {best})"

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
    lines = [
        f"{results['date']}, {results['machine']}, {results['browser']}, {results['rounds']} rounds, "
        f"{'one thread' if results['threads'] == 1 else str(results['threads']) + ' threads'}. "
        f"{PROMPT_TOKENS} tokens of prompt, then one by one, greedily. Median (lowest – best).",
        "",
        *_grid(results, "decode, tokens/s", engines, rate("decode")),
        *_grid(results, "prefill, tokens/s", engines, rate("prefill")),
        "Fabella's rate divided by the other's in the same round, median of the rounds; and the bytes of weights it "
        "reads each second, as a share of what a bare loop of loads reads.",
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
    errors = {(r["engine"], r["model"]): r["error"] for r in results["runs"] if "error" in r}
    lines += [f"Failed: {engine} with {model}: {error}." for (engine, model), error in errors.items()]
    lines += [f"Versions: {', '.join(f'{ENGINES[name].title} {v}' for name, v in results['versions'].items())}."]
    return "\n".join(lines) + "\n"


# ---- The chart -------------------------------------------------------------------------------------------------------


def chart(results: Results, path: Path) -> None:
    """Draw the median decode rates, a group of bars for each model, from lowest to best by a line."""
    from matplotlib.figure import Figure

    models = [name for name in MODELS if any(run["model"] == name for run in results["runs"])]
    engines = [name for name in ENGINES if any(runs_of(results, model, name) for model in models)]
    figure = Figure(figsize=(10, 0.9 + 0.22 * (len(engines) + 1.5) * len(models)), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(ENGINES, ("C3", "C0", "C1", "C8", "C2", "0.45", "0.7"), strict=True))
    ticks = []
    row = 0.0
    for model in models:
        shown = [name for name in engines if runs_of(results, model, name)]
        ticks.append(row + (len(shown) - 1) / 2)
        for name in shown:
            values = [value for run in runs_of(results, model, name) for value in rates(run, "decode")]
            middle = statistics.median(values)
            label = ENGINES[name].title if not axes.get_legend_handles_labels()[1].count(ENGINES[name].title) else None
            axes.barh(row, middle, 0.85, color=colours[name], label=label)
            axes.plot([min(values), max(values)], [row, row], color="black", linewidth=1)
            axes.text(max(values) * 1.06, row, number(middle), va="center", fontsize=8)
            row += 1
        row += 1.5
    axes.set_xscale("log")
    axes.set_yticks(ticks, models)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("decode, tokens/s (median; the line from lowest to best; logarithmic)")
    axes.set_title(f"{results['browser']}, {results['date']}, threads: {results['threads']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.04), ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
