"""Hashes of a model's logits, for comparing hosts to the bit.

The very text of this file also runs in the page's worker: it needs nothing but the driver and the standard library.
"""

from __future__ import annotations

import hashlib

from fabella.engine import Engine, Logits
from fabella.gguf import read_gguf
from fabella.hosts import Host
from fabella.modelfile import BytesSource

PROMPT = 40  # tokens computed at once
STORY = 50  # tokens computed one by one


def logit_hashes(host: Host, file: bytes) -> list[str]:
    """A hash of all logits, and of what the sampler makes of them, after the prompt and after each greedy token.

    The last one is that after all these tokens, computed at once.

    Parameters
    ----------
    host
        Where ``run.wasm`` lives.
    file
        A model (GGUF).
    """
    source = BytesSource(file)
    model = read_gguf(source)
    engine = Engine(host, model, source)
    tokens = [7 * number % model.config.vocab_size for number in range(PROMPT)]
    logits = engine.prefill(tokens)
    hashes = [hash_of(logits)]
    for _ in range(STORY):
        tokens.append(logits.shortlist(1)[0][0])
        logits = engine.forward(tokens[-1])
        hashes.append(hash_of(logits))
    engine.rewind(0)
    hashes.append(hash_of(engine.prefill(tokens)))
    engine.close()
    return hashes


def hash_of(logits: Logits) -> str:
    """A hash that one other bit in any logit changes."""
    sum_of_all = logits.log_sum_exp(0.8).hex()
    return hashlib.sha256(logits.to_array().tobytes() + sum_of_all.encode()).hexdigest()[:12]
