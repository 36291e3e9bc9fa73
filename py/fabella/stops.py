"""Stop strings: texts before the first of which a text ends."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Looks for stop strings in a text that arrives piece by piece; what may be the beginning of one is held back.

    Parameters
    ----------
    strings
        None of them empty.
    told
        The text before, which is not taken back, and with whose end one may begin.

    Attributes
    ----------
    found : bool
        Whether one has come: the text has ended before it.
    """

    def __init__(self, strings: Sequence[str], told: str = "") -> None:
        self.found = False
        self._strings = tuple(strings)
        self._longest = max(map(len, self._strings), default=0)
        self._held = ""
        self._told = told[max(0, len(told) - self._longest + 1) :]

    def push(self, text: str) -> str:
        """Return what is certain to belong to the text, now that this has come."""
        if not self._strings:
            return text
        text = self._told + self._held + text
        before, self._held = len(self._told), ""
        ends = [at for string in self._strings if (at := text.find(string)) >= 0]
        if ends:
            self.found = True
            return text[before : min(ends)]
        for begin in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(string.startswith(text[begin:]) for string in self._strings):
                self._held = text[max(begin, before) :]
                break
        told = text[: len(text) - len(self._held)]
        self._told = told[max(0, len(told) - self._longest + 1) :]
        return told[before:]

    def flush(self) -> str:
        """Return what is held back, now that no more comes."""
        text, self._held = self._held, ""
        return text
