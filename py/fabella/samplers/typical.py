"""Typical: tokens as surprising as is usual here, neither dull nor wild (https://arxiv.org/abs/2202.00666)."""

from fabella.sampler import draw, scaled

TEMPERATURE = 1.0
TYPICAL_P = 0.5  # the most typical tokens, which together are so likely


def choose(logits):
    """Return the next token."""
    usual = logits.mean(TEMPERATURE)  # a logit is minus the surprise, but for a constant
    candidates = logits.candidates(400, TEMPERATURE)
    candidates.sort(key=lambda candidate: abs(candidate[1] - usual))
    kept, reached = [], 0.0
    for candidate in candidates:
        kept.append(candidate)
        reached += candidate[2]
        if reached > TYPICAL_P:
            break
    return draw(scaled(kept), logits.coin)
