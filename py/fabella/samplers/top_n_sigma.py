"""Top-nσ: tokens whose logits stand out of the noise of all the others (https://arxiv.org/abs/2411.07641)."""

from math import fsum, sqrt

from fabella.sampler import draw, scaled

TEMPERATURE = 1.5
N = 1.0  # standard deviations below the highest logit


def choose(logits):
    """Return the next token."""
    values = logits.array()  # of the whole vocabulary
    mean = fsum(values) / len(values)
    deviation = sqrt(fsum((value - mean) ** 2 for value in values) / len(values))
    least = max(values) - N * deviation
    kept = [one for one in logits.candidates(200, TEMPERATURE) if one[1] >= least]
    return draw(scaled(kept), logits.coin)
