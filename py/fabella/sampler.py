"""Picking the next token: temperature, then top-k, then top-p, then a draw.

Temperature divides the logits before the softmax: below 1 the likely becomes likelier, above 1 everything evens out,
and 0 always takes the likeliest token. Top-k keeps the k likeliest tokens, top-p the fewest likeliest tokens whose
probabilities add up to more than p (https://arxiv.org/abs/1904.09751); after each, what is kept is scaled to add up
to 1 again. Then one random number, the coin, picks a token.

The C side holds the logits and hands out only the best of them, sorted. That is enough for all of this, because a
token's true probability needs only its own logit and one number for all: the log of the sum of exp(logit).

With the same logits, seed, temperature and top-p this picks the same tokens as llama2.c's `run`
(https://github.com/karpathy/llama2.c): its generator, one coin per token, its order of candidates.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Protocol

from fabella.errors import EngineError, SettingsError

SMALLEST_TEMPERATURE = 1e-6  # above 0; below it, logits divided by it would overflow float32
SHORTLIST = 16  # candidates asked for at first when only top-p is on: enough for most tokens of a story
MASK64 = (1 << 64) - 1
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


class Logits(Protocol):
    """The model's raw scores for the next token, wherever they are kept. Logits that are not finite do not count.

    All three methods raise EngineError, or `shortlist` returns nothing, if no logit is finite.
    """

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""

    def shortlist(self, k: int) -> list[tuple[int, float]]:
        """Return the `k` highest (token, logit), highest first and of equals the lower token; fewer if all are told."""

    def log_sum_exp(self, temperature: float) -> float:
        """Return log Σ exp(logit / temperature)."""

    def draw(self, temperature: float, coin: float) -> int:
        """Return the first token, by number, at which the running sum of probabilities exceeds `coin` in [0, 1)."""


Candidate = tuple[int, float]  # a token that may be picked, and its probability


class Sampler:
    """Picks one token after the other; the same seed and logits give the same tokens."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.random = Xorshift(settings.seed)

    def sample(self, logits: Logits) -> int:
        """Pick a token. Temperature 0 uses up no random number, everything else exactly one.

        Raises EngineError if no logit is a finite number.
        """
        temperature, top_p, top_k = self.settings.temperature, self.settings.top_p, self.settings.top_k
        if temperature == 0:
            return likeliest(logits)
        top_k_on = 0 < top_k < logits.vocab_size
        top_p_on = 0 < top_p < 1

        coin = self.random.coin()
        if not top_k_on and not top_p_on:
            return logits.draw(temperature, coin)
        if top_k_on:
            candidates = keep_top_k(logits, temperature, top_k)
            if top_p_on:
                candidates = keep_top_p(candidates, top_p)
        else:
            candidates = nucleus(logits, temperature, top_p)
        return draw(candidates, coin)


def likeliest(logits: Logits) -> int:
    """Return the token with the highest logit, the lower token of equals."""
    return _shortlist(logits, 1)[0][0]


def keep_top_k(logits: Logits, temperature: float, k: int) -> list[Candidate]:
    """Return the k likeliest tokens, likeliest first, with probabilities that add up to 1."""
    shortlist = _shortlist(logits, k)
    highest = shortlist[0][1]
    weights = [math.exp((logit - highest) / temperature) for _, logit in shortlist]
    total = math.fsum(weights)
    return [(token, weight / total) for (token, _), weight in zip(shortlist, weights, strict=True)]


def keep_top_p(candidates: list[Candidate], p: float) -> list[Candidate]:
    """Cut sorted candidates after the one at which their running sum first exceeds p, and scale the rest to 1."""
    kept: list[Candidate] = []
    reached = 0.0
    for token, probability in candidates:
        kept.append((token, probability))
        reached += probability
        if reached > p:
            break
    return _scaled(kept)


def nucleus(logits: Logits, temperature: float, p: float) -> list[Candidate]:
    """Return what top-p keeps of the whole vocabulary, likeliest first, with probabilities that add up to 1.

    llama2.c first drops every token less likely than (1 - p) / (vocabulary - 1), to sort fewer. No such token can be
    part of the result, so nothing of the kind is needed here: the shortlist grows until the nucleus fits in it.
    """
    total = logits.log_sum_exp(temperature)
    kept: list[Candidate] = []
    reached = 0.0
    k = SHORTLIST
    while True:
        shortlist = _shortlist(logits, k)
        for token, logit in shortlist[len(kept) :]:
            probability = math.exp(logit / temperature - total)
            kept.append((token, probability))
            reached += probability
            if reached > p:
                return _scaled(kept)
        if len(shortlist) < k or k >= logits.vocab_size:
            return _scaled(kept)
        k *= 4


def draw(candidates: list[Candidate], coin: float) -> int:
    """Return the first candidate at which the running sum of probabilities exceeds the coin."""
    reached = 0.0
    for token, probability in candidates:
        reached += probability
        if coin < reached:
            return token
    return candidates[-1][0]  # rounding kept the sum just below 1


def _shortlist(logits: Logits, k: int) -> list[tuple[int, float]]:
    shortlist = logits.shortlist(k)
    if not shortlist:
        raise EngineError("no token can be picked: none of the model's logits is a finite number")
    return shortlist


def _scaled(candidates: list[Candidate]) -> list[Candidate]:
    total = math.fsum([probability for _, probability in candidates])
    return [(token, probability / total) for token, probability in candidates]


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
