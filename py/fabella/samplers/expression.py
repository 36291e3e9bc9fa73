"""A regular expression: nothing is said that cannot become what it matches."""

from fabella.constraint import Regex
from fabella.sampler import draw, keep_top_p, ranked, scaled

PATTERN = Regex(r"[^.!?]{20,60}, and (he|she|they) (was|were) (very )?(happy|sad|tired)[.!]( The end\.)?")


def choose(logits):
    """Return the next token."""

    def fits(candidate):
        token = candidate[0]
        if token in logits.ends:
            return PATTERN(logits.said, None)  # may it end here?
        added = logits.decode(token)
        return added != "" and PATTERN(logits.said, added)  # may it go on so?

    kept = list(filter(fits, logits.candidates(60, 0.8)))
    kept = kept or [next(filter(fits, ranked(logits, 0.8)))]  # of all tokens, which takes its time
    return draw(keep_top_p(scaled(kept), 0.9), logits.coin)
