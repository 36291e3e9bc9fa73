"""No letter e: whatever has one is left out, and a story must do without."""

from fabella.sampler import draw, keep_top_p, ranked, scaled

TEMPERATURE = 0.8
TOP_P = 0.9
LETTER = "e"


def choose(logits):
    """Return the next token."""

    def fits(candidate):
        return LETTER not in logits.decode(candidate[0]).lower()

    kept = list(filter(fits, logits.candidates(200, TEMPERATURE)))
    kept = kept or [next(filter(fits, ranked(logits, TEMPERATURE)))]  # of all tokens, which takes its time
    return draw(keep_top_p(scaled(kept), TOP_P), logits.coin)
