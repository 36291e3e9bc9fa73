"""The learning curve of a run: curve.csv and curve.png in its folder."""

from __future__ import annotations

import csv
import io
from typing import Any

from fabella.console import words

from . import explain
from .progress import say
from .run import RunFolder

CURVE_COLUMNS = ("step", "tokens", "learning_rate", "train_loss", "valid_bits_per_byte", "seconds")


def keep_curve(curve: list[tuple[Any, ...]], folder: RunFolder) -> None:
    """Write ``curve.csv`` and ``curve.png``. What goes wrong is said and ends nothing: both can be had again."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(CURVE_COLUMNS)
    writer.writerows(curve)
    try:
        folder.write_curve_table(table.getvalue())
        folder.write_curve_picture(draw_curve(curve))
    except Exception as error:  # whatever matplotlib, or a missing one, may raise
        say(f"The curve could not be written ({words(error)}); the same command with --resume writes it anew.")


def draw_curve(curve: list[tuple[Any, ...]]) -> bytes:
    """A PNG: loss per token and bits per byte over the tokens learned from."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    millions = [row[1] / 1e6 for row in curve]
    figure, left = pyplot.subplots(figsize=(7, 4), dpi=100)
    left.plot(millions, [row[3] for row in curve], color="tab:blue", linewidth=1)
    left.set_xlabel("tokens (millions)")
    left.set_ylabel("training loss (nats per token)", color="tab:blue")
    right = left.twinx()
    measured = [(row[1] / 1e6, row[4]) for row in curve if row[4] is not None]
    right.plot([x for x, _ in measured], [y for _, y in measured], "o-", color="tab:red", linewidth=1, markersize=3)
    right.set_ylabel("held-out bits per byte", color="tab:red")
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    pyplot.close(figure)
    return picture.getvalue()


if __name__ == "__main__":
    explain(__doc__)
