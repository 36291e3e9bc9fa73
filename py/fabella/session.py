"""A session: the tokens that a model has computed, and how to go on from them, or from any of them in another way.

A story, an answer in a conversation, a second try from the fifth word on: each is a list of tokens, of which a model
computes what is new. What it has computed already stays in its KV cache, to the bit as if it were computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fabella.errors import EngineError
from fabella.sampler import Logits

if TYPE_CHECKING:
    from fabella.engine import Inside

# Many tokens are read in parts, so that whoever drives the session may stop it in between. A model gives the same bits
# however they are cut.
PREFILL_TOKENS = 128


class Model(Protocol):
    """A language model that computes one token after the other, wherever it runs: in WebAssembly, in PyTorch."""

    @property
    def context(self) -> int:
        """How many positions there are."""

    @property
    def position(self) -> int:
        """How many are computed."""

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Compute these tokens at the next positions and return the logits after the last."""

    def forward(self, token: int) -> Logits:
        """Compute one token at the next position and return the logits after it."""

    def rewind(self, position: int) -> None:
        """Forget all tokens from `position` on."""


@runtime_checkable
class Glass(Model, Protocol):
    """A model that one can look into, as into the engine's."""

    logits: Logits

    def revisit(self, token: int, position: int) -> Logits:
        """Compute a token once more, where it was computed, and return the logits after it: nothing is forgotten."""

    def probe(self, token: int, position: int, top: int) -> Inside:
        """The same, and return what it is like inside."""


class Session:
    """The tokens that a model has computed.

    Parameters
    ----------
    model
        The model, which from now on is the session's alone.

    Attributes
    ----------
    tokens : list of int
        Those computed so far, of which the last one's logits are known. To be read only.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.model.rewind(0)
        self.tokens: list[int] = []
        self._logits: Logits | None = None
        self._visited: int | None = None  # where the model's logits are those of another token than the last
        self._changes = 0

    @property
    def logits(self) -> Logits:
        """The logits after the last token. Raises EngineError if there is none, or the session was rewound to it."""
        if self._logits is None:
            raise EngineError("there are no logits yet: compute a token first")
        if self._visited is not None:  # the model has others meanwhile
            self.repeat()
        return self._logits

    def visit(self, position: int) -> Logits:
        """Return the logits after the token at a position, which is computed once more unless it was the last visited.

        All tokens stay computed, and a story that is going on goes on. Raises EngineError if there is no such token, or
        the model cannot be looked into.
        """
        glass = self._glass(position)
        if self._visited != position:
            glass.revisit(self.tokens[position], position)
            self._visited = position
        return glass.logits

    def inside(self, position: int, top: int = 3) -> Inside:
        """Return what the token at a position is like inside the model (Engine.probe). Raises as `visit` does."""
        inside = self._glass(position).probe(self.tokens[position], position, top)
        self._visited = position
        return inside

    def _glass(self, position: int) -> Glass:
        if not isinstance(self.model, Glass):
            raise EngineError("this model cannot be looked into: only the engine's can")
        if not 0 <= position < len(self.tokens):
            raise EngineError(f"position {position} cannot be looked into: {len(self.tokens)} are computed")
        return self.model

    def read(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Make `tokens`, at least one, the session's.

        The longest beginning that is computed already is kept, but for the last token, whose logits are wanted.

        Yields
        ------
        The tokens in parts, each once it is computed.

        Raises
        ------
        EngineError
            As the model's `prefill` does; or if the session is used for something else between two parts.
        """
        kept = common_length(self.tokens, tokens[:-1])
        self.rewind(kept)
        if kept:
            yield from self._pause(tokens[:kept])
        for start in range(kept, len(tokens), PREFILL_TOKENS):
            part = tokens[start : start + PREFILL_TOKENS]
            self._add(self.model.prefill(part), part)
            yield from self._pause(part)

    def _pause(self, part: Sequence[int]) -> Iterator[Sequence[int]]:
        mark = self.mark
        yield part
        self.check(mark)

    def forward(self, token: int) -> Logits:
        """Go on with this token, whoever chose it, and return the logits after it. Raises as the model's does."""
        logits = self.model.forward(token)
        self._add(logits, (token,))
        return logits

    def rewind(self, position: int) -> None:
        """Forget all tokens from `position` on."""
        self.model.rewind(position)
        del self.tokens[position:]
        self._logits = self._visited = None
        self._changes += 1

    def forget(self) -> None:
        """Forget all tokens, also where the model has done so itself: what it was, it is no more."""
        self.rewind(0)

    def repeat(self) -> None:
        """Compute the last token once more, which changes nothing and takes a token's time.

        A session without tokens computes any, and forgets it.
        """
        position = len(self.tokens)
        self.model.rewind(max(position - 1, 0))
        logits = self.model.forward(self.tokens[-1] if self.tokens else 0)
        self.model.rewind(position)
        self._logits = logits if position else None
        self._visited = None

    @property
    def mark(self) -> tuple[int, int]:
        """Something that is another after each change of the session."""
        return self._changes, self.model.position

    def check(self, mark: tuple[int, int]) -> None:
        """Raise EngineError if the session is not as it was at this mark."""
        if self.mark != mark:
            raise EngineError("another story was begun with this engine: this one cannot go on")

    def _add(self, logits: Logits, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        self._logits = logits
        self._visited = None
        self._changes += 1


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def newest_half(tokens: Sequence[int], begin: int) -> list[int]:
    """The newest half of the tokens, behind the one that begins every text if they begin with it."""
    kept = list(tokens[:1]) if tokens[0] == begin else []
    return kept + list(tokens[len(tokens) // 2 + len(kept) :])
