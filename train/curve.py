"""The learning curve of a run: curve.csv and curve.png in its folder."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from fabella.console import words

from . import explain
from .progress import say
from .run import RunFolder

CURVE_COLUMNS = ("step", "tokens", "learning_rate", "train_loss", "valid_bits_per_byte", "seconds")
TABLE_COLUMNS = tuple(name.replace("train_loss", "train_bits_per_byte") for name in CURVE_COLUMNS)  # of curve.csv
MOST_ROUNDS = 40  # that are marked


def keep_curve(
    curve: list[tuple[Any, ...]], folder: RunFolder, bytes_per_token: float = 1.0, round_tokens: int = 0
) -> None:
    """Write ``curve.csv`` and ``curve.png``. What goes wrong is said and ends nothing: both can be had again.

    A token spells ``bytes_per_token``; one round through the text has ``round_tokens`` (0: not known).
    """
    table = as_table(curve, bytes_per_token)
    try:
        folder.write_curve_table(as_csv(TABLE_COLUMNS, table))
        folder.write_curve_picture(draw_curve(table, folder.path.resolve().name, round_tokens))
    except Exception as error:  # whatever matplotlib, or a missing one, may raise
        say(f"The curve could not be written ({words(error)}); the same command with --resume writes it anew.")


def as_table(curve: list[tuple[Any, ...]], bytes_per_token: float) -> list[tuple[Any, ...]]:
    """Rows of `TABLE_COLUMNS`: the training loss of ``curve``, in nats per token, becomes bits per byte."""
    column = CURVE_COLUMNS.index("train_loss")
    unit = math.log(2) * bytes_per_token
    return [(*row[:column], row[column] / unit, *row[column + 1 :]) for row in curve]


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table, its columns' names first."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(columns)
    writer.writerows(rows)
    return table.getvalue()


def draw_curve(curve: list[tuple[Any, ...]], name: str, round_tokens: int) -> bytes:
    """A PNG: bits per byte of the training text and of the held-out text over the tokens learned from.

    Both are in one unit, so that the gap between them can be seen; thin lines end the rounds through the text.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size, unit = (1e6, "million") if not curve or curve[-1][1] >= 1e6 else (1e3, "thousand")
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=100)
    axes.plot(
        [row[1] / size for row in curve], [row[3] for row in curve], color="tab:blue", linewidth=1, label="training"
    )
    measured = [(row[1] / size, row[4]) for row in curve if row[4] is not None]
    title = name.replace("$", r"\$")  # or matplotlib takes it for mathematics
    if measured:
        axes.plot(*zip(*measured, strict=True), "o-", color="tab:red", linewidth=1, markersize=3, label="held out")
        at, best = min(measured, key=lambda point: point[1])
        axes.plot(
            [at], [best], "*", color="tab:red", markersize=12, label=f"best: {best:.3f} at {at:.3g} {unit} tokens"
        )
        title += f": {best:.3f} bits per byte"
    rounds = curve[-1][1] / round_tokens if curve and round_tokens else 0
    for number in range(1, int(rounds) + 1 if rounds < MOST_ROUNDS else 0):
        axes.axvline(number * round_tokens / size, color="0.85", linewidth=0.8, zorder=0)
    axes.set_title(title)
    axes.set_xlabel(f"tokens ({unit}s)" + (f", {rounds:.1f} rounds through the text" if rounds else ""))
    axes.set_ylabel("bits per byte")
    axes.legend()
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    pyplot.close(figure)
    return picture.getvalue()


if __name__ == "__main__":
    explain(__doc__)
