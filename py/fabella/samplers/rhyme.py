"""A rhyme: a sentence may end only where its last word rhymes with that of the sentence before."""

import re

from fabella.sampler import draw, scaled


def ends(text):
    """Return the last two letters of each sentence."""
    return re.findall(r"(\w\w)\W*?[.!?]", text.lower())


def choose(logits):
    """Return the next token."""
    before = ends(logits.text)

    def weighed(candidate):
        token, logit, probability = candidate
        text = logits.text + logits.decode(token)
        ended = ends(text)[len(before) :]
        rhymes = before and before[-1] == (*ended, text[-2:].lower())[0]
        return token, logit, probability * (100 if rhymes else 0.001 if before and ended else 1)

    return draw(scaled([weighed(candidate) for candidate in logits.candidates(60, 0.7)]), logits.coin)
