"""Loops: a text has begun to loop if its last 64 tokens or more are one sequence of at most 32 tokens, four times over.

Of 570 stories of the shipped model none of the 517 that came to their end was one, and 27 of the 53 that ran
to the edge of the context were (wasm/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 32  # tokens of the sequence
TIMES = 4  # that it is said, at least
FEWEST = 64  # tokens that all of these are, at least
EVERY = 8  # tokens are looked at: each time would cost eight times as much


class Loops:
    """Looks for a loop in tokens that arrive one by one."""

    def __init__(self, told: Sequence[int] = ()) -> None:
        """Begin with the tokens before; if these end in a loop already, whoever goes on knows that, and it is none."""
        self._tokens: list[int] = []
        for token in told:
            if self.push(token):
                self._tokens.clear()

    def push(self, token: int) -> bool:
        """Return whether the tokens so far are seen to end in a loop, now that this has come."""
        self._tokens.append(token)
        return len(self._tokens) % EVERY == 0 and _end_in_loop(self._tokens)


def _end_in_loop(tokens: Sequence[int]) -> bool:
    for length in range(1, min(LONGEST, len(tokens) - 1) + 1):
        if tokens[-1] == tokens[-1 - length]:  # or else it costs too much to look
            end = tokens[-max(FEWEST, TIMES * length) :]
            if len(end) >= FEWEST and len(end) >= TIMES * length and end[length:] == end[:-length]:
                return True
    return False
