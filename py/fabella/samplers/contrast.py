"""Contrast: what the prompt makes likelier, beside the same model without it (https://arxiv.org/abs/2305.14739)."""

from math import exp

from fabella.sampler import draw, scaled

STRENGTH = 1.0  # how much what would be said without the prompt counts against a token
AT_LEAST = 0.05  # beside the likeliest, of what may be said at all


def choose(logits):
    """Return the next token."""
    candidates = logits.candidates(50)
    kept = [one for one in candidates if one[2] >= AT_LEAST * candidates[0][2]]
    anyway = logits.without_prompt([token for token, _, _ in kept])
    weighed = [
        (token, logit, probability * exp(-STRENGTH * max(without, -20)))
        for (token, logit, probability), without in zip(kept, anyway, strict=True)
    ]
    return draw(scaled(weighed), logits.coin)
