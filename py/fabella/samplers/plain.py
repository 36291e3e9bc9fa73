"""The plain chain: temperature evens out or sharpens, top-p cuts the tail off, a coin picks."""

TEMPERATURE = 0.8  # below 1 the likely becomes likelier still
TOP_P = 0.9  # only the likeliest tokens, which together are so likely


def choose(logits):
    """Return the next token."""
    kept, total = [], 0.0
    for token, _, probability in logits.candidates(200, TEMPERATURE):
        kept.append((token, probability))
        total += probability
        if total > TOP_P:
            break
    reached = 0.0
    for token, probability in kept:
        reached += probability / total
        if logits.coin < reached:
            return token
    return kept[-1][0]
