"""Rotary position embedding (RoPE): by how much each pair of a head's numbers is turned further at each position.

Pair i of n turns by ``base ** (-i / n)`` radians: the first pairs fast, the last ones slowly. Models for longer
contexts than they were first trained on have these angles changed, in one of a few ways. C only receives the angles;
exp and log come from it, because Python's own differ in the last bit from machine to machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fabella.errors import ModelFileError


@dataclass(frozen=True)
class Scaling:
    """How the angles of a table are changed."""

    factor: float = 1.0  # what they are divided by: linear scaling
    # The context that YaRN (https://arxiv.org/abs/2309.00071) counts turns in; 0: linear scaling. Pairs that turn more
    # than beta_fast times in it keep their angles, those of fewer than beta_slow turns have theirs divided.
    yarn_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float = 1.0  # what cosine and sine are multiplied by,
    whole_magnitude: bool = False  # and whether that is all: or else YaRN has a factor of its own besides
    divisors: str = ""  # the tensor by whose numbers, one for each pair, the angles are divided


NO_SCALING = Scaling()


@dataclass(frozen=True)
class Table:
    """The angles of one table, and what cosine and sine are multiplied by."""

    angles: list[float]
    magnitude: float


def table_of(
    base: float,
    size: int,
    scaling: Scaling,
    divisors: Sequence[float],
    field: str,
    exp: Callable[[float], float],
    log: Callable[[float], float],
) -> Table:
    """Compute a table.

    Parameters
    ----------
    base
        RoPE's base.
    size
        How many numbers of a head are turned; there are half as many pairs.
    scaling
        How the angles are changed.
    divisors
        The numbers of the tensor that `scaling` names, or none.
    field
        Where the base comes from, for messages.
    exp, log
        C's.

    Raises
    ------
    ModelFileError
        If there are other than size / 2 divisors, or one is not above zero; or if YaRN has nothing to scale.
    """
    log_base = log(base)
    angles = [exp(-2.0 * i / size * log_base) for i in range(size // 2)]
    magnitude = scaling.magnitude
    if scaling.divisors:
        if len(divisors) != len(angles) or not all(0 < divisor < math.inf for divisor in divisors):
            raise ModelFileError(scaling.divisors, f"must hold {len(angles)} numbers above zero")
        angles = [angle / divisor for angle, divisor in zip(angles, divisors, strict=True)]
    if not scaling.yarn_context:
        return Table([angle / scaling.factor for angle in angles], magnitude)

    if log_base <= 0:
        raise ModelFileError(field, f"is {base:g}, but YaRN needs one above 1")

    def pair_that_turns(times: float) -> float:
        return size * log(scaling.yarn_context / (2 * math.pi * times)) / (2 * log_base)

    low = max(0, math.floor(pair_that_turns(scaling.beta_fast)))
    high = min(size - 1, math.ceil(pair_that_turns(scaling.beta_slow)))
    for i, angle in enumerate(angles):
        slow = min(max((i - low) / max(high - low, 0.001), 0.0), 1.0)
        angles[i] = angle * (1 - slow) + angle / scaling.factor * slow
    return Table(angles, magnitude if scaling.whole_magnitude else magnitude * (0.1 * log(scaling.factor) + 1))
