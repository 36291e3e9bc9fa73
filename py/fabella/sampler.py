"""Picking the next token: from logits to probabilities, from many candidates to few, and a draw.

It is a chain, each link of which is a small function below, and each may be switched off:

    logits ─► bias, penalties ─► temperature ─► typical ─► top-k ─► top-p ─► min-p ─► constraint ─► draw

Bias and penalties change the logits of some tokens. Temperature divides all logits before the softmax: below 1 the
likely becomes likelier, above 1 everything evens out, and 0 always takes the likeliest token. Now the candidates are
told one by one, likeliest first; each step takes as many from the one before it as it needs, hands on what it keeps,
and scales that to add up to 1 again. Last, one random number, the coin, picks a token.

The C side holds the logits and finds the best of them, few at first and more when a step asks for more. All
exponentials are C's: Python only adds, multiplies, divides and compares here, and those give the same bits on every
machine.

With the same logits, seed, temperature and top-p, and all else off, this picks the same tokens as llama2.c's `run`
(https://github.com/karpathy/llama2.c): its generator, one coin per token, its order of candidates.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Protocol

from fabella.errors import ConstraintError, EngineError, SettingsError, short_text

SMALLEST_TEMPERATURE = 1e-6  # above 0; below it, logits divided by it would overflow float32
SHORTLIST = 16  # candidates asked for at first: enough for most tokens of a story
MASK64 = (1 << 64) - 1
NOTHING_TO_PICK = "no token can be picked: none of the model's logits is a finite number"
LARGEST_SEED = 10**18 - 1  # that a person gives, in the page and in the terminal: programs may take all of 64 bits
LARGEST_RANDOM_SEED = (1 << 32) - 1  # short enough to be copied by hand

# What a setting may be: the least and the most.
REALS = {
    "temperature": (0, math.inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
}
WHOLES = {"top_k": (0, math.inf), "seed": (0, MASK64), "penalty_window": (1, math.inf)}


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
    min_p: float = 0.0  # from 0 to 1; 0 switches it off
    typical_p: float = 1.0  # from 0 to 1; both ends switch it off
    repetition_penalty: float = 1.0  # 1 switches it off; above 1 a token that was said is less likely to be said again
    presence_penalty: float = 0.0  # 0 switches it off
    frequency_penalty: float = 0.0  # 0 switches it off
    penalty_window: int = 64  # how many tokens, the last ones, the three penalties look at
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # of a token, what its logit gains; -inf forbids it

    def __post_init__(self) -> None:
        for name, (least, most) in REALS.items():
            value = getattr(self, name)
            if not _is_real(value) or not abs(value) <= sys.float_info.max:  # a whole number may be larger
                raise SettingsError(name, f"must be a finite number, not {short_text(repr(value), longest=40)}")
            if not least <= value <= most:
                raise SettingsError(name, f"is {value:g}, but must be {_range(least, most)}")
        for name, (least, most) in WHOLES.items():
            value = getattr(self, name)
            if type(value) is not int:
                raise SettingsError(name, f"must be a whole number, not {short_text(repr(value), longest=40)}")
            if not least <= value <= most:
                shown = short_text(str(value), longest=40)
                raise SettingsError(name, f"is {shown}, but must be {_range(least, most)}")
        if 0 < self.temperature < SMALLEST_TEMPERATURE:
            raise SettingsError("temperature", f"is {self.temperature:g}, but must be 0 or at least 0.000001")
        if not isinstance(self.logit_bias, Mapping):
            raise SettingsError("logit_bias", "must map tokens to what their logits gain")
        for token, bias in self.logit_bias.items():
            if type(token) is not int or token < 0:
                raise SettingsError("logit_bias", f"{token!r} is not the number of a token")
            if not _is_real(bias) or not (-100 <= bias <= 100 or bias == -math.inf):
                raise SettingsError(
                    "logit_bias", f"of token {token} is {bias!r}, but must be from -100 to 100, or -inf"
                )

    def check(self, vocab_size: int) -> None:
        """Raise SettingsError unless they are for a vocabulary of this size."""
        if self.logit_bias and max(self.logit_bias) >= vocab_size:
            raise SettingsError("logit_bias", f"there is no token {max(self.logit_bias)}, only {vocab_size}")


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _range(least: float, most: float) -> str:
    return f"{least:g} or more" if most == math.inf else f"from {least:g} to {most}"


Candidate = tuple[int, float, float]  # a token that may be picked, its logit and its probability
Step = Callable[[Iterable[Candidate]], list[Candidate]]  # from candidates, likeliest first, to those that it keeps
Allowed = Callable[[int], bool]  # whether a token may be picked
Change = Callable[[list[float]], list[float]]  # from the logits of some tokens to others


class Logits(Protocol):
    """The model's raw scores for the next token, wherever they are kept. Logits that are not finite do not count.

    If none is finite, `draw` and perhaps others raise EngineError, and lists are empty.
    """

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""

    def shortlist(self, k: int) -> list[tuple[int, float]]:
        """Return the `k` highest (token, logit), highest first and of equals the lower token; fewer if all are told."""

    def candidates(self, k: int, temperature: float) -> list[Candidate]:
        """Return the same tokens and logits with their probabilities, softmax(logits / temperature)."""

    def draw(self, temperature: float, coin: float) -> int:
        """Return the first token, by number, at which the running sum of probabilities exceeds `coin` in [0, 1)."""

    def mean(self, temperature: float) -> float:
        """Return the mean of the logits, each with its token's probability."""

    def changed(self, tokens: Sequence[int], change: Change) -> AbstractContextManager[Logits]:
        """Return, for a `with` statement, these logits, but for some tokens what `change` makes of theirs."""


@dataclass
class Trace:
    """What a sampler notes while it picks a token, so that one can look (choice.py).

    Attributes
    ----------
    steps
        Of each step that is switched on, its name and what it leaves, likeliest first; of penalties and temperature,
        which leave all, the first. After the penalties the probabilities are those at temperature 1.
    coin
        The random number; None at temperature 0.
    """

    steps: list[tuple[str, list[Candidate]]] = field(default_factory=list)
    coin: float | None = None


class Sampler:
    """Picks one token after the other; the same seed and logits give the same tokens.

    Parameters
    ----------
    settings
        How.
    spared
        Tokens that no penalty is for: those that end a text, which would otherwise go on and on.

    Attributes
    ----------
    trace : Trace or None
        Where the next token's steps are noted, if one wants to look.
    """

    def __init__(self, settings: Settings, spared: Iterable[int] = ()) -> None:
        self.settings = settings
        self.spared = frozenset(spared)
        self.random = Xorshift(settings.seed)
        self.trace: Trace | None = None
        self._penalises = (
            settings.repetition_penalty != 1 or settings.presence_penalty != 0 or settings.frequency_penalty != 0
        )

    def sample(self, logits: Logits, said: Sequence[int] = (), allowed: Allowed | None = None) -> int:
        """Pick a token. Temperature 0 uses up no random number, everything else exactly one.

        Parameters
        ----------
        logits
            Those after the last token.
        said
            All tokens so far, for the penalties.
        allowed
            What may be picked; None: everything.

        Raises
        ------
        EngineError
            If no logit is a finite number.
        ConstraintError
            If nothing is allowed.
        """
        settings, bias = self.settings, self.settings.logit_bias
        counts = self._counts(said) if self._penalises else {}
        if not counts and not bias:
            return self._pick(logits, allowed)
        tokens = [*counts, *(bias.keys() - counts.keys())]

        def change(before: list[float]) -> list[float]:
            after = (
                [logit + bias.get(token, 0) for token, logit in zip(tokens, before, strict=True)] if bias else before
            )
            return penalised(after[: len(counts)], counts.values(), settings) + after[len(counts) :]

        with logits.changed(tokens, change) as others:
            if self.trace:
                self.trace.steps.append(("penalties", others.candidates(SHORTLIST, 1)))
            return self._pick(others, allowed)

    def skip(self, count: int) -> None:
        """Let the random numbers of so many tokens pass, that were picked with these settings before."""
        for _ in range(count if self.settings.temperature else 0):
            self.random.coin()

    def _counts(self, said: Sequence[int]) -> dict[int, int]:
        """How often each token was said that is to be penalised."""
        window = said[-self.settings.penalty_window :]
        counts = Counter(window) if self.settings.frequency_penalty else dict.fromkeys(window, 1)
        for token in self.spared:
            counts.pop(token, None)
        return counts

    def _pick(self, logits: Logits, allowed: Allowed | None) -> int:
        temperature, trace = self.settings.temperature, self.trace
        if temperature == 0:
            return likeliest(logits) if allowed is None else first_allowed(ranked(logits, 1), allowed)[0]
        coin = self.random.coin()
        steps = self.steps(logits, allowed)
        candidates: Iterable[Candidate] = ranked(logits, temperature, self.settings.top_k)
        if trace:
            first = list(islice(candidates, SHORTLIST))
            trace.steps.append(("temperature", first))
            trace.coin, candidates = coin, chain(first, candidates)
        if not steps:
            return logits.draw(temperature, coin)
        for name, step in steps:
            candidates = step(candidates)
            if trace:
                trace.steps.append((name, candidates))
        return draw(candidates, coin)

    def steps(self, logits: Logits, allowed: Allowed | None = None) -> list[tuple[str, Step]]:
        """Return the steps of the chain that are switched on, by name and in their order."""
        settings = self.settings
        steps: list[tuple[str, Step]] = []
        if 0 < settings.typical_p < 1:
            mean = logits.mean(settings.temperature)
            steps.append(("typical", partial(keep_typical, mean=mean, p=settings.typical_p)))
        if 0 < settings.top_k < logits.vocab_size:
            steps.append(("top-k", partial(keep_top_k, k=settings.top_k)))
        if 0 < settings.top_p < 1:
            steps.append(("top-p", partial(keep_top_p, p=settings.top_p)))
        if settings.min_p:
            steps.append(("min-p", partial(keep_min_p, p=settings.min_p)))
        if allowed:
            rest = ranked(logits, settings.temperature)
            steps.append(("constraint", partial(keep_allowed, allowed=allowed, rest=rest)))
        return steps


def likeliest(logits: Logits) -> int:
    """Return the token with the highest logit, the lower token of equals."""
    shortlist = logits.shortlist(1)
    if not shortlist:
        raise EngineError(NOTHING_TO_PICK)
    return shortlist[0][0]


def ranked(logits: Logits, temperature: float, at_least: int = 0) -> Iterator[Candidate]:
    """Yield all candidates, likeliest first; the logits are asked only for as many as are taken, or for `at_least`.

    llama2.c first drops every token less likely than (1 - p) / (vocabulary - 1), to sort fewer. No such token can be
    part of top-p's result, so nothing of the kind is needed here.
    """
    k, told = max(SHORTLIST, at_least), 0
    while True:
        candidates = logits.candidates(k, temperature)
        if not candidates:
            raise EngineError(NOTHING_TO_PICK)
        yield from candidates[told:]
        if len(candidates) < k or k >= logits.vocab_size:
            return
        k, told = 4 * k, len(candidates)


def penalised(logits: Iterable[float], counts: Iterable[int], settings: Settings) -> list[float]:
    """Lower the logits of tokens that were said, so and so often each.

    The repetition penalty makes each less likely (https://arxiv.org/abs/1909.05858): a positive logit is divided by it,
    a negative one multiplied. The presence penalty is taken off each, the frequency penalty as often as it was said.
    """
    repetition, presence, frequency = (
        settings.repetition_penalty,
        settings.presence_penalty,
        settings.frequency_penalty,
    )
    lower = [logit / repetition if logit > 0 else logit * repetition for logit in logits]
    if presence or frequency:
        lower = [logit - presence - frequency * count for logit, count in zip(lower, counts, strict=True)]
    return lower


def keep_typical(candidates: Iterable[Candidate], mean: float, p: float) -> list[Candidate]:
    """Keep the candidates that are as surprising as is usual here (https://arxiv.org/abs/2202.00666).

    A token's surprise is the negative logarithm of its probability, so the difference of its surprise and the mean one
    is that of the mean logit and its own. The nearest are kept, until the sum of their probabilities exceeds p.
    """
    ranks = enumerate(candidates)
    above: list[tuple[int, Candidate]] = []  # whose logits are above the mean, the nearest last
    below = next(ranks, None)
    while below and below[1][1] > mean:
        above.append(below)
        below = next(ranks, None)
    kept: list[tuple[int, Candidate]] = []
    reached = 0.0
    while reached <= p:
        if above and (below is None or above[-1][1][1] - mean <= mean - below[1][1]):
            nearest = above.pop()
        elif below:
            nearest, below = below, next(ranks, None)
        else:
            break
        kept.append(nearest)
        reached += nearest[1][2]
    return scaled([candidate for _, candidate in sorted(kept)])


def keep_top_k(candidates: Iterable[Candidate], k: int) -> list[Candidate]:
    """Keep the k likeliest candidates."""
    return scaled(list(islice(candidates, k)))


def keep_top_p(candidates: Iterable[Candidate], p: float) -> list[Candidate]:
    """Cut after the candidate at which the running sum of probabilities first exceeds p.

    (https://arxiv.org/abs/1904.09751)
    """
    kept: list[Candidate] = []
    reached = 0.0
    for candidate in candidates:
        kept.append(candidate)
        reached += candidate[2]
        if reached > p:
            break
    return scaled(kept)


def keep_min_p(candidates: Iterable[Candidate], p: float) -> list[Candidate]:
    """Keep the candidates that are at least p times as likely as the likeliest (https://arxiv.org/abs/2407.01082)."""
    kept: list[Candidate] = []
    for candidate in candidates:
        if kept and candidate[2] < p * kept[0][2]:
            break
        kept.append(candidate)
    return scaled(kept)


def keep_allowed(candidates: Iterable[Candidate], allowed: Allowed, rest: Iterable[Candidate]) -> list[Candidate]:
    """Keep the candidates that are allowed; if none is, the likeliest one that is, whatever the other steps kept."""
    kept = [candidate for candidate in candidates if candidate[2] > 0 and allowed(candidate[0])]
    if kept:
        return scaled(kept)
    token, logit, _ = first_allowed(rest, allowed)
    return [(token, logit, 1.0)]


def first_allowed(candidates: Iterable[Candidate], allowed: Allowed) -> Candidate:
    """Return the first candidate that is allowed. Raises ConstraintError if there is none."""
    for candidate in candidates:
        if allowed(candidate[0]):
            return candidate
    raise ConstraintError("the constraint forbids every token of the vocabulary here, even to end")


def scaled(candidates: list[Candidate]) -> list[Candidate]:
    """Scale probabilities to add up to 1."""
    total = math.fsum([probability for _, _, probability in candidates])
    return [(token, logit, probability / total) for token, logit, probability in candidates]


def draw(candidates: Iterable[Candidate], coin: float) -> int:
    """Return the first candidate at which the running sum of probabilities exceeds the coin."""
    reached = 0.0
    for token, _, probability in candidates:
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
