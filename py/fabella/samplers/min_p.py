"""Min-p: only tokens that are not far less likely than the likeliest (https://arxiv.org/abs/2407.01082)."""

from fabella.sampler import draw, scaled

TEMPERATURE = 1.2  # it may be high: what makes no sense is cut off
MIN_P = 0.1  # a token must be a tenth as likely as the likeliest


def choose(logits):
    """Return the next token."""
    candidates = logits.candidates(200, TEMPERATURE)
    least = MIN_P * candidates[0][2]
    kept = [candidate for candidate in candidates if candidate[2] >= least]
    print(len(kept), "to choose from")
    return draw(scaled(kept), logits.coin)
