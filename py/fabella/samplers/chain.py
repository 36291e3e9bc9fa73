"""How the next token is chosen. Change anything: from the next token on, it is chosen so."""

from collections import Counter

from fabella.sampler import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    likeliest,
    penalised,
    ranked,
)


def choose(logits):
    """Return the next token: this is called before each."""
    settings = logits.settings  # as the sliders stand
    last = logits.tokens[-settings.penalty_window :]
    counts = Counter(token for token in last if token not in logits.ends)

    def penalties(before):
        return penalised(before, counts.values(), settings)

    with logits.changed(list(counts), penalties):
        return pick(logits, settings)


def pick(logits, settings):
    """Return a token, once the penalties are taken off."""
    temperature = settings.temperature
    if temperature == 0:
        return likeliest(logits)
    candidates = everything = ranked(logits, temperature, settings.top_k)
    if 0 < settings.typical_p < 1:
        candidates = keep_typical(candidates, logits.mean(temperature), settings.typical_p)
    if 0 < settings.top_k < logits.vocab_size:
        candidates = keep_top_k(candidates, settings.top_k)
    if 0 < settings.top_p < 1:
        candidates = keep_top_p(candidates, settings.top_p)
    if settings.min_p:
        candidates = keep_min_p(candidates, settings.min_p)
    if candidates is everything:
        return logits.draw(temperature, logits.coin)
    return draw(candidates, logits.coin)
