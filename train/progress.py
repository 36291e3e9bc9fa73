"""Progress bars with rate and time left, on standard error. What cannot be shown ends no work."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm  # type: ignore[import-untyped]

from . import explain

tqdm.monitor_interval = 0  # a thread that draws for bars seldom updated; here an error in it could not be caught


class _StandardError:
    """Standard error as bars use it: a full disk or a closed terminal is passed over, a reader that left is noted."""

    def __init__(self) -> None:
        self.left = False
        self.silent = False  # in all processes of a training but the first

    def write(self, text: str) -> None:
        self._try(sys.stderr.write, text)

    def flush(self) -> None:
        self._try(sys.stderr.flush)

    def _try(self, call: Any, *arguments: str) -> None:
        if self.silent:
            return
        try:
            call(*arguments)
        except BrokenPipeError:
            self.left = True
        except OSError:
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


STREAM = _StandardError()  # one for all: a line is printed above the bars of the same stream


class Progress:
    """A bar from ``done`` to ``total``; use it in a ``with`` statement. One of short work (``brief``) is not kept.

    `update` raises ``BrokenPipeError`` when nobody reads standard error any more, but not in short work, which is to be
    whole: the next to print something hears of it.
    """

    def __init__(self, name: str, total: int, unit: str, done: int = 0, brief: bool = True) -> None:
        STREAM.left = False
        self.brief = brief
        self.bar = tqdm(
            desc=name,
            total=total,
            initial=done,
            unit=unit,
            unit_scale=True,
            smoothing=0.1 if brief else 0.02,
            mininterval=0.5,
            delay=0.5 if brief else 0,
            leave=not brief,
            file=STREAM,
        )

    def update(self, count: int, note: str = "") -> None:
        """Go on by ``count``, and show ``note`` behind the bar."""
        if note:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(count)
        if STREAM.left and not self.brief:
            raise BrokenPipeError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()


def say(text: str) -> None:
    """Print a line on standard error, above the bars."""
    with suppress(ValueError):  # standard error is closed
        tqdm.write(text, file=STREAM)


if __name__ == "__main__":
    explain(__doc__)
