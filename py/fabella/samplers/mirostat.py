"""Mirostat: a text that stays equally surprising, by feedback (https://arxiv.org/abs/2007.14966)."""

from math import log2

from fabella.sampler import draw, scaled

SURPRISE = 1.2  # bits that a token shall surprise by
RATE = 0.1  # how fast the bound follows


def choose(logits):
    """Return the next token."""
    bound = logits.memory.get("bound", 2 * SURPRISE)
    candidates = logits.candidates(400)
    kept = [one for one in candidates if one[2] > 0 and -log2(one[2]) <= bound] or candidates[:1]
    token = draw(scaled(kept), logits.coin)
    surprise = -log2(logits.probability(token))
    logits.memory["bound"] = bound - RATE * (surprise - SURPRISE)
    print(f"{logits.decode(token)!r} surprises by {surprise:.1f} bits")
    return token
