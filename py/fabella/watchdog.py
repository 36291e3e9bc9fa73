"""Stops Python code that takes too long, where nothing else can: a page's only thread is the one that is busy.

Python itself tells of each step that could be one of an endless loop: a jump back, a branch, a function begun or gone
on with (:mod:`sys.monitoring`). When its time is over each such step raises `TookTooLong`, also where the code has
caught it before. Code that is made on the way, by exec() or a lambda, is watched from its first step on.

What a single call of C does cannot be stopped so: ``9**9**9``, a regular expression that tries everything, a long
sleep. Whoever needs an end to these, too, has to run all of Python in a worker and end that.

Before Python 3.12 there is no sys.monitoring, and nothing is watched.
"""

from __future__ import annotations

import codecs
import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

monitoring: Any = getattr(sys, "monitoring", None)
clock = time.perf_counter  # whatever watched code puts in its place there


def _file(code: CodeType) -> str:
    return code.co_filename


# Whose code is never interrupted, because it ends and has to leave things in order: the driver's, but for functions
# that work on what they are given, and what it calls of Python's own.
DRIVER = str(Path(_file(_file.__code__)).parent)
INTERRUPTED = (f"{DRIVER}/sampler.py", f"{DRIVER}/constraint.py")
IN_ORDER = (f"{DRIVER}/", _file(contextlib.contextmanager.__code__), _file(codecs.IncrementalDecoder.decode.__code__))


STALL = 0.1  # seconds: if more pass between two steps, the machine had something else to do


class TookTooLong(BaseException):
    """The time is over. No Exception, which code often catches without a look."""


class Watchdog:
    """Ends what runs too long in a ``with watchdog.limit(seconds):`` statement, by `TookTooLong`.

    Only one can be used at a time; it costs a little for each function that begins, watched or not, until `close`.
    """

    def __init__(self) -> None:
        self._left: float | None = None  # seconds
        self._last = 0.0
        if monitoring is None:
            return
        events = monitoring.events
        both = getattr(events, "BRANCH_LEFT", 0) | getattr(events, "BRANCH_RIGHT", 0)  # from Python 3.14 on
        self._steps = events.JUMP | (both or events.BRANCH) | events.PY_RESUME
        self._tool = next(tool for tool in range(6) if monitoring.get_tool(tool) is None)
        monitoring.use_tool_id(self._tool, "fabella.watchdog")
        monitoring.register_callback(self._tool, events.PY_START, self._begin)
        for event in (events.JUMP, *_single(both or events.BRANCH), events.PY_RESUME):
            monitoring.register_callback(self._tool, event, self._step)
        monitoring.set_events(self._tool, events.PY_START)

    def close(self) -> None:
        """Watch nothing any more."""
        if monitoring is not None:
            monitoring.set_events(self._tool, 0)
            monitoring.free_tool_id(self._tool)

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Let what is done meanwhile take so long at most."""
        self._left, self._last = seconds, clock()
        try:
            yield
        finally:
            self._left = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Within what is limited: what is done meanwhile does not count."""
        left, self._left = self._left, None
        try:
            yield
        finally:
            self._left, self._last = left, clock()

    def _begin(self, code: CodeType, _offset: int) -> Any:
        """Called when a function begins: any there is."""
        file = _file(code)
        if file.startswith(IN_ORDER) and file not in INTERRUPTED:
            return monitoring.DISABLE
        if self._left is not None:
            if monitoring.get_local_events(self._tool, code) != self._steps:
                monitoring.set_local_events(self._tool, code, self._steps)
            self._step()
        return None

    def _step(self, *_: object) -> None:
        if self._left is not None:
            now = clock()
            self._left -= min(now - self._last, STALL)
            self._last = now
            if self._left < 0:
                raise TookTooLong


def _single(events: int) -> Iterator[int]:
    """The events of a set."""
    return (1 << bit for bit in range(events.bit_length()) if events >> bit & 1)
