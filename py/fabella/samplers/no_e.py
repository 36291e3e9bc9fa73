"""No letter e: whatever has one is left out, and a story must do without."""

from fabella.sampler import draw, keep_top_p, ranked

TEMPERATURE = 0.8
TOP_P = 0.9
LETTER = "e"


def choose(logits):
    """Return the next token."""

    def fits(candidate):
        return LETTER not in logits.decode(candidate[0]).lower()

    return draw(keep_top_p(filter(fits, ranked(logits, TEMPERATURE)), TOP_P), logits.coin)
