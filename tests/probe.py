"""Hashes of a model's logits and of what the sampler makes of logits, for comparing hosts to the bit.

The very text of this file also runs in the page's worker: it needs nothing but the driver and the standard library.
"""

from __future__ import annotations

import hashlib
import random
from array import array

from fabella.adapter import read_adapter
from fabella.engine import Engine, Logits
from fabella.gguf import read_gguf
from fabella.hosts import Host
from fabella.modelfile import ModelFile
from fabella.sampler import Sampler, Settings, Trace
from fabella.sources import BytesSource

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
        A model (GGUF), or what `adapted` returns.
    """
    engine, model = load(host, file)
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


ADAPTED = b"with an adapter"


def adapted(model: bytes, adapter: bytes) -> bytes:
    """A model's file and an adapter's in one, for tests that ask for the hashes of a single file."""
    return model + adapter + len(model).to_bytes(8, "little") + ADAPTED


def load(host: Host, file: bytes) -> tuple[Engine, ModelFile]:
    """The model of a file in an engine, with its adapter, if it has one, in use."""
    adapter = b""
    if file.endswith(ADAPTED):
        end = len(file) - len(ADAPTED) - 8
        size = int.from_bytes(file[end : end + 8], "little")
        file, adapter = file[:size], file[size:end]
    source = BytesSource(file)
    model = read_gguf(source)
    engine = Engine(host, model, source)
    if adapter:
        engine.adapt(read_adapter(BytesSource(adapter)), BytesSource(adapter))
    return engine, model


def hash_of(logits: Logits) -> str:
    """A hash that one other bit in any logit changes."""
    probabilities = repr(logits.candidates(20, 0.8))
    return hashlib.sha256(logits.to_array().tobytes() + probabilities.encode()).hexdigest()[:12]


def sampler_hash(host: Host, file: bytes, sets: int) -> str:
    """A hash of the tokens that are drawn from so many sets of random logits, and of every probability on the way.

    All come from integers, so that they are the same wherever this runs.
    """
    source = BytesSource(file)
    model = read_gguf(source)
    engine = Engine(host, model, source)
    logits = engine.logits
    numbers = random.Random(1)
    samplers = [
        Sampler(Settings(temperature, top_p, top_k, seed=7))
        for temperature, top_p, top_k in ((0.8, 0.9, 0), (1.3, 0.99, 0), (0.3, 1, 10), (1, 0.7, 40), (1, 0, 0))
    ]
    hash = hashlib.sha256()
    for number in range(sets):
        bits = array("i", numbers.randbytes(4 * logits.vocab_size))
        host.write(logits.values, array("f", [number / (1 << 28) for number in bits]).tobytes())  # from -8 to 8
        logits.ready = 0
        sampler = samplers[number % len(samplers)]
        sampler.trace = Trace()
        hash.update(b"%d" % sampler.sample(logits))
        for _, kept in sampler.trace.steps:
            hash.update(array("d", [number for candidate in kept for number in candidate]))
    engine.close()
    return hash.hexdigest()
