"""Why this token: what was likely, what each step of the sampler left of it, where the coin fell.

All of it is noted by the sampler itself while it picks (:class:`fabella.sampler.Trace`), so it is what happened, to the
bit. What is kept of a token is bounded: of every step the likeliest candidates and the one taken, of the others how
many they are. An example::

    choice = look(sampler, logits, said)     # picks as sampler.sample(logits, said) does
    choice.candidates[0]                     # the likeliest token, its logit and its probability
    choice.steps[-1].kept                    # what the last step left, scaled to 1
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from fabella.errors import FabellaError
from fabella.sampler import SHORTLIST, Allowed, Candidate, Logits, Sampler, Trace

# The steps' names, by the numbers that they have in bytes.
NAMES = ("penalties", "temperature", "typical", "top-k", "top-p", "min-p", "constraint", "code")
KEEP_ALL = NAMES[:2]
HEAD = struct.Struct("<iiiHH4d")  # position, token, picked, candidates, steps; entropy, coin, begin, end
STEP = struct.Struct("<BBi")  # name, kept, total
CANDIDATE = struct.Struct("<ifd")


class Visible(Logits, Protocol):
    """Logits that show what is likely before a sampler changes anything, as the engine's do."""

    def truth(self) -> tuple[list[Candidate], float]:
        """Return the likeliest tokens with their probabilities at temperature 1, and the entropy there, in nats."""

    def candidate(self, token: int, temperature: float) -> Candidate:
        """Return any one token as (token, logit, probability)."""

    def drawn(self) -> tuple[float, float]:
        """Return between which sums of probabilities, in the order of ids, the token lies that `draw` found last."""


class Left(NamedTuple):
    """What one step of the sampler left.

    Attributes
    ----------
    name
        One of NAMES.
    kept
        The likeliest candidates that it left, SHORTLIST at most, and of those that took some away the token taken, if
        it is there. Their probabilities and those of the others add up to 1. (After the penalties they are those at
        temperature 1.)
    total
        How many it left in all.
    """

    name: str
    kept: list[Candidate]
    total: int


class Choice(NamedTuple):
    """How a token was chosen.

    Attributes
    ----------
    position
        How many tokens are before it: the one before it, of which attention and lens are, is at `position` - 1.
    token
        The one taken.
    picked
        The one that the sampler picked: another, if `token` was given in its place.
    entropy
        How uncertain the model was: the entropy of its distribution over all tokens, in nats.
    candidates
        The likeliest tokens, SHORTLIST at most, and those taken and picked: (token, logit, probability), where the
        probability is the model's own, softmax(logits), before the sampler.
    steps
        What each step left, in their order; none at temperature 0, but for penalties. Where a visitor's code picked in
        the sampler's place there is one alone, "code", which leaves the token that it picked.
    coin
        The random number, from 0 to 1; None at temperature 0, which takes the likeliest, and where code picked.
    begin, end
        Where the picked token's share begins and ends on the running sum: `coin` lies between the two. The sum runs
        over what the last step left, likeliest first; if no step takes any away, over all tokens by their numbers.
    """

    position: int
    token: int
    picked: int
    entropy: float
    candidates: list[Candidate]
    steps: list[Left]
    coin: float | None
    begin: float
    end: float

    @property
    def probability(self) -> float:
        """That of the token taken, before the sampler."""
        return probability_of(self.token, self.candidates)

    @property
    def others(self) -> float:
        """The probability of all tokens that are not among the candidates, before the sampler."""
        return rest_of(self.candidates)

    @property
    def is_given(self) -> bool:
        """Whether the token was given in the place of what the sampler picked."""
        return self.token != self.picked

    def to_bytes(self) -> bytes:
        """Return it in some 600 to 1,000 bytes, exactly; `from_bytes` is the way back."""
        coin = -1.0 if self.coin is None else self.coin
        numbers = (self.position, self.token, self.picked, len(self.candidates), len(self.steps))
        parts = [HEAD.pack(*numbers, self.entropy, coin, self.begin, self.end)]
        parts.append(_packed(self.candidates))
        for name, kept, total in self.steps:
            parts += [STEP.pack(NAMES.index(name), len(kept), total), _packed(kept)]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Choice:
        """Return what `to_bytes` made bytes of. Raises FabellaError if they are none of these."""
        try:
            position, token, picked, candidates, steps, entropy, coin, begin, end = HEAD.unpack_from(data)
            at = HEAD.size
            truth, at = _candidates(data, at, candidates)
            left = []
            for _ in range(steps):
                name, kept, total = STEP.unpack_from(data, at)
                found, at = _candidates(data, at + STEP.size, kept)
                left.append(Left(NAMES[name], found, total))
            if not truth or at != len(data):
                raise IndexError
        except (struct.error, IndexError):
            raise FabellaError("this is not what was kept of a token") from None
        return cls(position, token, picked, entropy, truth, left, None if coin < 0 else coin, begin, end)


def _packed(candidates: Sequence[Candidate]) -> bytes:
    return struct.pack("<" + "ifd" * len(candidates), *chain.from_iterable(candidates))


def _candidates(data: bytes, at: int, count: int) -> tuple[list[Candidate], int]:
    end = at + CANDIDATE.size * count
    if end > len(data):
        raise IndexError
    return list(CANDIDATE.iter_unpack(data[at:end])), end


def probability_of(token: int, candidates: Iterable[Candidate]) -> float:
    """Return a token's probability; 0 if it is not among the candidates."""
    return next((probability for id, _, probability in candidates if id == token), 0.0)


def rest_of(candidates: Iterable[Candidate]) -> float:
    """Return the probability of all tokens that are not among the candidates."""
    return max(0.0, 1.0 - sum([probability for _, _, probability in candidates]))


def look(
    sampler: Sampler,
    logits: Visible,
    said: Sequence[int] = (),
    allowed: Allowed | None = None,
    given: int | None = None,
) -> Choice:
    """Pick a token, as ``sampler.sample`` does, and return how.

    Parameters
    ----------
    sampler, logits, said, allowed
        Those of ``sampler.sample``.
    given
        A token that is taken in the place of the one picked.

    Raises
    ------
    EngineError, ConstraintError
        As ``sampler.sample`` does; EngineError also if the given token is none.
    """
    candidates, entropy = logits.truth()
    sampler.trace = trace = Trace()
    picked = sampler.sample(logits, said, allowed)
    sampler.trace = None
    token = picked if given is None else given
    ids = [id for id, _, _ in candidates]
    candidates += [logits.candidate(id, 1) for id in dict.fromkeys((token, picked)) if id not in ids]
    steps, place = [], (0.0, 1.0)
    for name, kept in trace.steps:
        shown = kept[:SHORTLIST]
        if len(kept) > SHORTLIST:
            shown += [one for one in kept[SHORTLIST:] if one[0] in (token, picked)]
        steps.append(Left(name, shown, logits.vocab_size if name in KEEP_ALL else len(kept)))
    if trace.coin is not None:
        name, kept = trace.steps[-1]
        place = logits.drawn() if name in KEEP_ALL else place_of(picked, kept)
    return Choice(len(said), token, picked, entropy, candidates, steps, trace.coin, *place)


def place_of(token: int, candidates: Iterable[Candidate]) -> tuple[float, float]:
    """Return the running sums of probabilities before and after a token's, as `fabella.sampler.draw` adds them."""
    reached = 0.0
    for id, _, probability in candidates:
        before, reached = reached, reached + probability
        if id == token:
            break
    return before, reached
