"""Top-nσ: tokens whose logits stand out of the noise of all the others (https://arxiv.org/abs/2411.07641)."""

from statistics import pstdev

from fabella.sampler import draw, scaled

TEMPERATURE = 1.5
N = 1.0  # standard deviations below the highest logit


def choose(logits):
    """Return the next token."""
    values = logits.array()  # of the whole vocabulary
    least = max(values) - N * pstdev(values)
    kept = [one for one in logits.candidates(200, TEMPERATURE) if one[1] >= least]
    return draw(scaled(kept), logits.coin)
