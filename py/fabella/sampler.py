"""Picking the next token: temperature, then top-k, then top-p, then a draw.

Temperature divides the logits before the softmax: below 1 the likely becomes likelier, above 1 everything evens out,
and 0 always takes the likeliest token. Top-k keeps the k likeliest tokens, top-p the fewest likeliest tokens whose
probabilities add up to more than p (https://arxiv.org/abs/1904.09751); after each, what is kept is scaled to add up
to 1 again. Then one random number, the coin, picks a token.

So it is a chain. It begins with a source, which tells the candidates one by one, likeliest first; each step takes as
many from the one before it as it needs and hands on what it keeps. The C side holds the logits and finds the best of
them, few at first and more when a step asks for more. All exponentials are C's: Python only adds, compares and
divides here, and those give the same bits on every machine.

With the same logits, seed, temperature and top-p this picks the same tokens as llama2.c's `run`
(https://github.com/karpathy/llama2.c): its generator, one coin per token, its order of candidates.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

from fabella.errors import EngineError, SettingsError

SMALLEST_TEMPERATURE = 1e-6  # above 0; below it, logits divided by it would overflow float32
SHORTLIST = 16  # candidates asked for at first: enough for most tokens of a story
MASK64 = (1 << 64) - 1
NOTHING_TO_PICK = "no token can be picked: none of the model's logits is a finite number"
LARGEST_RANDOM_SEED = 10**18 - 1  # what the page's field takes, too, so that a seed can be carried there


@dataclass(frozen=True)
class Settings:
    """How to pick tokens.

    Raises
    ------
    SettingsError
        If a value is outside its range; `field` is its name.
    """

    temperature: float = 1.0  # 0 (always the likeliest token), or at least 0.000001
    top_p: float = 0.9  # from 0 to 1; both ends switch it off, as in llama2.c
    top_k: int = 0  # 0 switches it off
    seed: int = 0  # from 1 to 2⁶⁴-1; 0 means "choose one for me": whoever makes the Sampler must do that first

    def __post_init__(self) -> None:
        for field in ("temperature", "top_p"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise SettingsError(field, f"must be a finite number, not {value!r}")
        for field in ("top_k", "seed"):
            value = getattr(self, field)
            if type(value) is not int:
                raise SettingsError(field, f"must be a whole number, not {value!r}")
        if self.temperature != 0 and self.temperature < SMALLEST_TEMPERATURE:
            raise SettingsError("temperature", f"is {self.temperature:g}, but must be 0 or at least 0.000001")
        if not 0 <= self.top_p <= 1:
            raise SettingsError("top_p", f"is {self.top_p:g}, but must be from 0 to 1")
        if self.top_k < 0:
            raise SettingsError("top_k", f"is {self.top_k}, but must be 0 (off) or more")
        if not 0 <= self.seed <= MASK64:
            raise SettingsError("seed", f"is {self.seed}, but must be from 0 to {MASK64}")


Candidate = tuple[int, float]  # a token that may be picked, and its probability
Step = Callable[[Iterable[Candidate]], list[Candidate]]  # from candidates, likeliest first, to those that it keeps


class Logits(Protocol):
    """The model's raw scores for the next token, wherever they are kept. Logits that are not finite do not count.

    All three methods raise EngineError, or the first two return nothing, if no logit is finite.
    """

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""

    def shortlist(self, k: int) -> list[tuple[int, float]]:
        """Return the `k` highest (token, logit), highest first and of equals the lower token; fewer if all are told."""

    def candidates(self, k: int, temperature: float) -> list[Candidate]:
        """Return the same tokens with their probabilities, softmax(logits / temperature)."""

    def draw(self, temperature: float, coin: float) -> int:
        """Return the first token, by number, at which the running sum of probabilities exceeds `coin` in [0, 1)."""


class Sampler:
    """Picks one token after the other; the same seed and logits give the same tokens.

    Attributes
    ----------
    trace : list or None
        If it is a list, each step appends its name and what it keeps, so that one can look.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.random = Xorshift(settings.seed)
        self.trace: list[tuple[str, list[Candidate]]] | None = None

    def sample(self, logits: Logits) -> int:
        """Pick a token. Temperature 0 uses up no random number, everything else exactly one.

        Raises EngineError if no logit is a finite number.
        """
        if self.settings.temperature == 0:
            return likeliest(logits)
        coin = self.random.coin()
        steps = self.steps(logits.vocab_size)
        if not steps:
            return logits.draw(self.settings.temperature, coin)
        candidates: Iterable[Candidate] = ranked(logits, self.settings)
        for name, step in steps:
            candidates = step(candidates)
            if self.trace is not None:
                self.trace.append((name, candidates))
        return draw(candidates, coin)

    def steps(self, vocab_size: int) -> list[tuple[str, Step]]:
        """Return the steps of the chain that are switched on, by name and in their order."""
        steps: list[tuple[str, Step]] = []
        if 0 < self.settings.top_k < vocab_size:
            steps.append(("top-k", partial(keep_top_k, k=self.settings.top_k)))
        if 0 < self.settings.top_p < 1:
            steps.append(("top-p", partial(keep_top_p, p=self.settings.top_p)))
        return steps


def likeliest(logits: Logits) -> int:
    """Return the token with the highest logit, the lower token of equals."""
    shortlist = logits.shortlist(1)
    if not shortlist:
        raise EngineError(NOTHING_TO_PICK)
    return shortlist[0][0]


def ranked(logits: Logits, settings: Settings) -> Iterator[Candidate]:
    """Yield all tokens with their probabilities, likeliest first; the logits are asked only for as many as are taken.

    llama2.c first drops every token less likely than (1 - p) / (vocabulary - 1), to sort fewer. No such token can be
    part of top-p's result, so nothing of the kind is needed here.
    """
    k, told = max(SHORTLIST, settings.top_k), 0
    while True:
        candidates = logits.candidates(k, settings.temperature)
        if not candidates:
            raise EngineError(NOTHING_TO_PICK)
        yield from candidates[told:]
        if len(candidates) < k or k >= logits.vocab_size:
            return
        k, told = 4 * k, len(candidates)


def keep_top_k(candidates: Iterable[Candidate], k: int) -> list[Candidate]:
    """Keep the k likeliest candidates."""
    return scaled(list(islice(candidates, k)))


def keep_top_p(candidates: Iterable[Candidate], p: float) -> list[Candidate]:
    """Cut after the candidate at which the running sum of probabilities first exceeds p."""
    kept: list[Candidate] = []
    reached = 0.0
    for token, probability in candidates:
        kept.append((token, probability))
        reached += probability
        if reached > p:
            break
    return scaled(kept)


def scaled(candidates: list[Candidate]) -> list[Candidate]:
    """Scale probabilities to add up to 1."""
    total = math.fsum([probability for _, probability in candidates])
    return [(token, probability / total) for token, probability in candidates]


def draw(candidates: Iterable[Candidate], coin: float) -> int:
    """Return the first candidate at which the running sum of probabilities exceeds the coin."""
    reached = 0.0
    for token, probability in candidates:
        reached += probability
        if coin < reached:
            return token
    return token  # the last: rounding kept the sum just below 1


def random_seed() -> int:
    """Choose a seed: any from 1 to `LARGEST_RANDOM_SEED`."""
    return int.from_bytes(os.urandom(16), "little") % LARGEST_RANDOM_SEED + 1


class Xorshift:
    """Marsaglia's xorshift64*, as in llama2.c (https://doi.org/10.18637/jss.v008.i14, https://arxiv.org/abs/1402.6246).

    The seed, from 1 to 2⁶⁴-1, is its first state. From 0 it would never get away.
    """

    def __init__(self, seed: int) -> None:
        self.state = seed

    def coin(self) -> float:
        """Return the next random number, from 0 to just below 1 in steps of 2⁻²⁴. Raises SettingsError for seed 0."""
        if not 1 <= self.state <= MASK64:
            raise SettingsError("seed", f"must be from 1 to {MASK64} for a draw, not {self.state}; choose one")
        x = self.state
        x ^= x >> 12
        x ^= (x << 25) & MASK64
        x ^= x >> 27
        self.state = x
        return ((x * 0x2545F4914F6CDD1D & MASK64) >> 40) / (1 << 24)
