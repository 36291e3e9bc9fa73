"""The same token under other settings: what they would have made of it, without computing a token.

A page that moves the temperature asks `again_from`, which needs only what was kept of the token and says where that is
not enough; then `again` tells exactly, from the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from fabella.choice import KEEP_ALL, Choice, Left, Visible, look, place_of
from fabella.errors import FabellaError
from fabella.sampler import SHORTLIST, Allowed, Candidate, Logits, Sampler, Settings, draw

EXACT = 1e-6  # so near are probabilities that were added up in float32


class Again(NamedTuple):
    """What other settings would have made of a token.

    Attributes
    ----------
    choice
        How it would have been chosen, with the same coin. Its token is -1 where that is not certain.
    exact
        Of each of its steps, whether it is certain: always if it was made of logits.
    """

    choice: Choice
    exact: list[bool]


class _Coin:
    """In the place of random numbers: one that is known."""

    def __init__(self, coin: float | None) -> None:
        self._coin = coin or 0.0

    def coin(self) -> float:
        return self._coin


def again(
    logits: Visible,
    settings: Settings,
    coin: float | None,
    said: Sequence[int] = (),
    allowed: Allowed | None = None,
    spared: Iterable[int] = (),
) -> Again:
    """Return what other settings make of a token's logits, exactly. No token is computed for that.

    Parameters
    ----------
    logits
        Those that it was chosen from, as `Session.visit` returns them.
    settings
        The others; their seed does not matter.
    coin
        The random number that it was chosen with; None, as after temperature 0, counts as 0.
    said, allowed, spared
        As for `Sampler`.
    """
    sampler = Sampler(settings, spared)
    sampler.random = cast(Any, _Coin(coin))
    choice = look(sampler, logits, said, allowed)
    return Again(choice, [True] * len(choice.steps))


def again_from(
    choice: Choice,
    settings: Settings,
    vocab_size: int,
    exp: Callable[[float], float],
    log: Callable[[float], float],
) -> Again:
    """Return what other settings would have made of a token, from what was kept of it alone.

    Temperature, top-k, top-p and min-p are those of the settings; penalties and bias stay as they were. Of the tokens
    that were not kept only their sum is known, and at another temperature only between which bounds it lies. Each step
    is taken with both bounds, and is exact if it keeps the same with either, and has not asked for more than what was
    kept: then what it leaves does not depend on the others, since it is scaled to 1. Where it is not exact, it is shown
    for a sum in between, and `again` says exactly what it is.

    Parameters
    ----------
    choice
        What was kept of the token.
    settings
        The others; their seed does not matter.
    vocab_size
        How many tokens there are.
    exp, log
        The engine's: Python's own are not the same on all machines.

    Raises
    ------
    FabellaError
        If a step of the settings, or of the token's own, needs more than what was kept: typical_p, a constraint.
    """
    if 0 < settings.typical_p < 1 or any(step.name == "constraint" for step in choice.steps):
        raise FabellaError("typical_p and constraints need all logits: what was kept of the token does not suffice")
    before = [step for step in choice.steps if step.name == "penalties"]
    kept = (before[0].kept if before else choice.candidates)[:SHORTLIST]
    if settings.temperature == 0:
        token = kept[0][0]
        changes: dict[str, Any] = {"token": token, "picked": token, "coin": None, "begin": 0.0, "end": 1.0}
        return Again(choice._replace(steps=before, **changes), [True] * len(before))
    others = vocab_size - len(kept) if len(kept) == SHORTLIST else 0
    bounds = _others_weight(kept, others, 1 / settings.temperature, exp, log)
    sums = (*bounds, math.sqrt(bounds[0] * bounds[1]))
    chains = [_chain(kept, others, weight, settings, exp) for weight in sums]
    exact = [True] * len(before)
    for low, high, left in zip(*(steps for steps, _ in chains), strict=True):
        if left.name in KEEP_ALL:
            rest = [1 - sum(probability for _, _, probability in step.kept) for step in (low, high)]
            exact.append(abs(rest[1] - rest[0]) < EXACT)
        else:
            same = [id for id, _, _ in low.kept] == [id for id, _, _ in high.kept]
            exact.append(same and not any(asked for _, asked in chains))
    steps, coin = before + chains[-1][0], choice.coin or 0.0
    last = steps[-1]
    if last.name in KEEP_ALL or not exact[-1]:  # the sum runs over tokens that were not kept
        return Again(choice._replace(token=-1, picked=-1, steps=steps, coin=coin, begin=coin, end=coin), exact)
    token = draw(last.kept, coin)
    begin, end = place_of(token, last.kept)
    return Again(choice._replace(token=token, picked=token, steps=steps, coin=coin, begin=begin, end=end), exact)


def _others_weight(
    kept: Sequence[Candidate],
    others: int,
    power: float,
    exp: Callable[[float], float],
    log: Callable[[float], float],
) -> tuple[float, float]:
    """Bounds of the weight of the tokens that were not kept, at a temperature of 1 / `power`; the likeliest weighs 1.

    Each weighs w ** power, where at temperature 1 it weighs w, no more than the last one kept, and all together as much
    as the probability that is left. A sum of powers lies between that of equal parts and that of as few as possible.
    """
    if not others:
        return 0.0, 0.0
    (_, first, probability), (_, last, _) = kept[0], kept[-1]
    rest = 1 - sum(probability for _, _, probability in kept)
    sums = [max(rest + error, 1e-12) / probability for error in (-EXACT / 4, EXACT / 4)]
    equal = [exp(_within((1 - power) * log(float(others)) + power * log(sum))) for sum in sums]
    few = [sum * exp(_within((last - first) * (power - 1))) for sum in sums]
    return (equal[0], few[1]) if power >= 1 else (few[0], equal[1])


def _within(exponent: float) -> float:
    """An exponent whose power is a number."""
    return max(-700.0, min(exponent, 700.0))


class _Size(NamedTuple):
    vocab_size: int


def _chain(
    kept: Sequence[Candidate], others: int, weight: float, settings: Settings, exp: Callable[[float], float]
) -> tuple[list[Left], bool]:
    """The sampler's steps if the others weigh so much, and whether one asked for more candidates than there are."""
    weights = [exp(_within((logit - kept[0][1]) / settings.temperature)) for _, logit, _ in kept]
    total = sum(weights) + weight
    candidates = [(id, logit, own / total) for (id, logit, _), own in zip(kept, weights, strict=True)]
    asked_for_more = False

    def told() -> Iterator[Candidate]:
        nonlocal asked_for_more
        yield from candidates
        asked_for_more = others > 0

    steps = [Left("temperature", candidates, len(kept) + others)]
    left: Iterable[Candidate] = told()
    for name, step in Sampler(settings).steps(cast(Logits, _Size(len(kept) + others))):
        left = step(left)
        steps.append(Left(name, left, len(left)))
    return steps, asked_for_more
