"""The report: a comparison of models as one HTML file that needs nothing else, in daylight, in the dark, on a phone.

What models tell and what files are called is somebody's text. Jinja escapes all of it, and the page's own policy lets
nothing be loaded, nothing run and nothing be sent: all that it allows is its one sheet of style, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from fabella.errors import short_text
from fabella.sampler import Settings

from . import explain
from .compare import COPIED, LENGTH, MODES, Comparison, Told, sizes_of
from .measures import distinct, interval, repeated, shared, words

HERE = Path(__file__).parent
REPEATED = 4  # words in a row that are looked for in the same story
NOTHING = "–"
ENDS = {
    "": "to its end",
    "end": "to its end",
    "length": f"cut after {LENGTH} tokens",
    "context": "cut where its context is full",
    "loop": "stopped, as it went round and round",
    "unfit": "not told: the prompt is too long for its context",
}
LONGEST_NAME = 40  # characters of a name in a plot
WIDTH = 360  # of a plot, in its own units: about pixels on a phone
ROW = 38  # the height of a plot's line
# Characters that would be drawn as nothing, as what stands for them. (Newlines and tabs are drawn.)
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


class Cell(NamedTuple):
    """A number, and below it how far it can be trusted."""

    value: str = NOTHING
    range: str = ""


class Row(NamedTuple):
    """A measure of all columns."""

    name: str
    cells: list[Cell]


class Group(NamedTuple):
    """Rows under a heading."""

    name: str
    rows: list[Row]


class Bar(NamedTuple):
    """A line of a plot: a mean and its interval, in the plot's units."""

    name: str
    label: str
    y: float
    x: float
    low: float | None
    high: float | None


class Tick(NamedTuple):
    """A number on a plot's axis."""

    x: float
    label: str


@dataclass(frozen=True)
class Plot:
    """Means and their intervals, one below the other."""

    title: str
    note: str
    bars: list[Bar]
    ticks: list[Tick]
    bottom: int  # where the axis is
    width: int = WIDTH

    @property
    def height(self) -> int:
        """Of the whole, the axis's numbers included."""
        return self.bottom + 20


class Mean(NamedTuple):
    """A ratio of sums over documents, and its 95 % interval if there are enough of them."""

    value: float
    range: tuple[float, float] | None


def mean_of(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> Mean | None:
    """The mean of ``sums`` per unit of ``sizes``, both [documents]; None if there is nothing."""
    return Mean(float(sums.sum() / sizes.sum()), interval(sums, sizes)) if sizes.sum() else None


# --- The table ---


def number(mean: Mean | None, digits: int = 3) -> Cell:
    """A mean as it is shown."""
    if mean is None:
        return Cell()
    return Cell(f"{mean.value:.{digits}f}", "{:.{d}f} to {:.{d}f}".format(*mean.range, d=digits) if mean.range else "")


def difference(mean: Mean | None) -> Cell:
    """The same of a difference, with its sign."""
    if mean is None:
        return Cell()

    def signed(value: float) -> str:
        text = f"{value:+.4f}"
        return text.replace("-", "−") if float(text) else "0.0000"

    return Cell(signed(mean.value), " to ".join(map(signed, mean.range)) if mean.range else "")


def share(value: float | None) -> Cell:
    """A share in percent."""
    return Cell() if value is None else Cell(f"{100 * value:.1f} %")


def groups_of(comparison: Comparison) -> list[Group]:
    """The table: models in columns, and as the last the held-out text itself."""
    models, sizes = comparison.models, comparison.documents
    first = models[0]
    held_out = [Row("Bits per byte", [number(mean_of(model.bits, sizes)) for model in models] + [Cell()])]
    if len(models) > 1:
        differences = [difference(mean_of(model.bits - first.bits, sizes)) for model in models[1:]]
        held_out.append(Row("Difference to the first", [Cell(), *differences, Cell()]))
    groups = [
        Group("Models", [Row(fact, [Cell(m.facts[fact]) for m in models] + [Cell()]) for fact in first.facts]),
        Group("Held-out text", held_out),
    ]
    for mode in MODES:
        groups.append(Group(f"Stories, {mode}", _story_rows(comparison, mode)))
    return groups


def _story_rows(comparison: Comparison, mode: str) -> list[Row]:
    columns = [model.stories[mode] for model in comparison.models] + [comparison.own]
    in_words = [[words(told.text) for told in stories] for stories in columns]
    counts = [sum(map(len, texts)) for texts in in_words]
    # Distinct-n is comparable at one number of words: that of the model that told the fewest.
    compared = min((count for count in counts[:-1] if count), default=0)

    def row(name: str, measure: Callable[[list[list[str]]], float | None]) -> Row:
        return Row(name, [share(measure(texts)) for texts in in_words])

    def ended(end: str) -> list[Cell]:
        of_models = [Cell(str(sum(told.end == end for told in stories))) for stories in columns[:-1]]
        return [*of_models, Cell()]

    rows = [
        Row("Stories", [Cell(str(sum(told.end != "unfit" for told in stories))) for stories in columns]),
        Row("of these, told to their end", ended("end")),
        Row("of these, going round and round", ended("loop")),
        Row("Words", [Cell(f"{count:,}") for count in counts]),
    ]
    for n in (1, 2, 3):
        cells = [
            share(distinct(texts, n, compared)) if count >= compared else Cell()
            for texts, count in zip(in_words, counts, strict=True)
        ]
        rows.append(Row(f"Distinct-{n}", cells))
    rows.append(row(f"Repeated {REPEATED}-grams", lambda texts: repeated(texts, REPEATED)))
    if (there := comparison.training_ngrams) is not None:
        rows.append(row(f"Copied {COPIED}-grams", lambda texts: shared(texts, COPIED, there)))
    if comparison.judge:
        judged = [number(mean) for _, mean in _judged(comparison, mode)]
        rows.append(Row(f"Bits per byte under {comparison.judge}", judged))
    return rows


def _judged(comparison: Comparison, mode: str) -> list[tuple[str, Mean | None]]:
    """What the judge needs per byte of the stories of each model, and of the held-out text, by name."""
    assert comparison.own_judged is not None
    found = [(m.name, mean_of(m.judged[mode], _sizes(m.stories[mode]))) for m in comparison.models]
    return [*found, (_itself(comparison), mean_of(comparison.own_judged, _sizes(comparison.own)))]


def _sizes(stories: Sequence[Told]) -> NDArray[np.float64]:
    return sizes_of([told.text for told in stories])


def _itself(comparison: Comparison) -> str:
    return f"{comparison.text} itself"


# --- Plots ---


def plot_of(title: str, note: str, means: Sequence[tuple[str, Mean | None]]) -> Plot:
    """Draw means and their intervals, by name, on an axis that begins where they begin."""
    known = [(name, mean) for name, mean in means if mean is not None]
    ends = [end for _, mean in known for end in (mean.value, *(mean.range or ()))]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return round(10 + (WIDTH - 20) * (value - low) / (high - low), 2)

    bars = [
        Bar(
            short_text(name, LONGEST_NAME),
            number(mean).value,
            ROW * line + 28,
            place(mean.value),
            *(map(place, mean.range) if mean.range else (None, None)),
        )
        for line, (name, mean) in enumerate(known)
    ]
    ticks = [
        Tick(place(value), f"{value:.{digits}f}") for values, digits in [round_numbers(low, high)] for value in values
    ]
    return Plot(title, note, bars, ticks, ROW * len(known) + 6)


def round_numbers(low: float, high: float) -> tuple[list[float], int]:
    """Three to seven numbers in steps of 1, 2 or 5 x 10^k from ``low`` to ``high``, and the decimals that they need."""
    rough = (high - low) / 6
    power = math.floor(math.log10(rough))
    step = next(factor * 10.0**power for factor in (1, 2, 5, 10) if factor * 10.0**power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(first + number) * step for number in range(count)], digits


# --- The page ---


def render(comparison: Comparison) -> str:
    """The report as HTML."""
    models = comparison.models
    n_documents, n_bytes = len(comparison.documents), int(comparison.documents.sum())
    style = (HERE / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    template = environment.from_string((HERE / "report.html").read_text(encoding="utf-8"))
    names = ", ".join(model.name for model in models)
    title = f"{names} on {comparison.text}" if len(names) <= 60 else f"{len(models)} models on {comparison.text}"
    judged = _judged(comparison, "sampled") if comparison.judge else []
    return template.render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),  # ours; escaped, it would be another one
        title=title,
        introduction=f"Measured on {n_documents:,} document{'s' * (n_documents != 1)} of {comparison.text}, "
        f"{n_bytes:,} bytes, and by {len(models[0].stories['greedy'])} stories of each model in each of two ways.",
        bits_plot=plot_of(
            "Bits per byte of the held-out text: lower is better",
            "The line is the 95 % interval." if n_documents > 1 else "Of one document there is no interval.",
            [(model.name, mean_of(model.bits, comparison.documents)) for model in models],
        ),
        judge=comparison.judge,
        judge_plot=plot_of(
            f"Bits per byte of the sampled stories under {comparison.judge}",
            "Like the text's own is good; far above is incoherent, far below is likely to repeat itself.",
            judged,
        )
        if judged
        else None,
        columns=[*(model.name for model in models), _itself(comparison)],
        groups=groups_of(comparison),
        meanings=meanings(comparison),
        telling=f"Each goes on from the same beginnings, for {LENGTH} tokens at most. Sampled is as a page tells, with "
        f"the settings that the model itself names ({_settings_of(comparison)}) and the seed that is said; greedy "
        "always takes the likeliest token.",
        prompts=[_prompt(comparison, number) for number in range(len(models[0].stories["greedy"]))],
    )


def _prompt(comparison: Comparison, number: int) -> dict[str, object]:
    prompt = comparison.models[0].stories["greedy"][number].prompt
    shown = [
        {
            "name": model.name,
            "stories": [
                {
                    "mode": f"Sampled, seed {number + 1}" if mode == "sampled" else "Greedy",
                    "text": visible(model.stories[mode][number].text).strip() or NOTHING,
                    "end": f"({ENDS[model.stories[mode][number].end]})",
                }
                for mode in MODES
            ],
        }
        for model in comparison.models
    ]
    return {"text": visible(prompt), "short": short_text(prompt), "models": shown}


def visible(text: str) -> str:
    """A text without characters that are no text to a browser."""
    return text.translate(CONTROLS)


def _settings_of(comparison: Comparison) -> str:
    by_words: dict[str, list[str]] = {}
    for model in comparison.models:
        by_words.setdefault(_settings(model.settings), []).append(model.name)
    if len(by_words) == 1:
        return next(iter(by_words))
    return "; ".join(f"{', '.join(names)}: {settings}" for settings, names in by_words.items())


def _settings(settings: Settings) -> str:
    plain = Settings()
    own = [f"temperature {settings.temperature:g}", f"top-p {settings.top_p:g}"]
    for name in ("top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        if (value := getattr(settings, name)) != getattr(plain, name):
            own.append(f"{name.replace('_', ' ')} {value:g}")
    return ", ".join(own)


def meanings(comparison: Comparison) -> list[tuple[str, str]]:
    """What each measure is, for those who meet it for the first time."""
    found = [
        (
            "Bits per byte",
            "How many bits the model needs, on average, to tell the next byte of a text that it was not trained on: "
            "-log2 of the probability that it gave each token, summed over whole documents, each told from its "
            "beginning on, divided by their bytes. Of a document longer than the context each token is foretold from "
            "half a context of what precedes it, or more. Lower is better; models with other vocabularies compare. "
            "Of a quantised model these are the weights' losses; the page rounds what goes through them, too.",
        ),
        (
            "The range below a number",
            "The 95 % interval over documents, by the bootstrap: documents are drawn anew 2,000 times, and so far go "
            "the numbers that these give. It says what another choice of documents might change, not what another "
            "training would.",
        ),
    ]
    if len(comparison.models) > 1:
        found.append(
            (
                "Difference to the first",
                "The difference to the first model's bits per byte, measured on the same documents: its range is "
                "often much smaller than that of the numbers themselves. One that does not hold 0 is a difference.",
            )
        )
    found += [
        (
            "Going round and round",
            "A story that says one sequence of up to 32 tokens four times over or more; the page stops there.",
        ),
        (
            "Distinct-n",
            "Of all sequences of n words, how many are different ones: higher is more varied. Of each model as many "
            "words are looked at, since longer texts have fewer new ones.",
        ),
        (
            f"Repeated {REPEATED}-grams",
            f"How many of the sequences of {REPEATED} words a story has said before.",
        ),
    ]
    if comparison.training_ngrams is not None:
        found.append(
            (
                f"Copied {COPIED}-grams",
                f"How many of the sequences of {COPIED} words stand in {comparison.training_text}, the training text, "
                "too. Far above the held-out text's own share, the model knows its text by heart.",
            )
        )
    if comparison.judge:
        found.append(
            (
                f"Bits per byte under {comparison.judge}",
                "How much the stories surprise another, stronger model, each given its beginning. Stories that hold "
                "together surprise it less; but so do those that repeat themselves, and all greedy ones. Read it "
                "beside the repeated sequences and the number of the held-out text itself.",
            )
        )
    own = "The held-out text's first documents, with their first words in the place of a prompt, for comparison."
    return [*found, (_itself(comparison), own)]


if __name__ == "__main__":
    explain(__doc__)
