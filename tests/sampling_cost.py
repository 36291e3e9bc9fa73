"""How long choosing a token takes in Pyodide, step by step: run by tests/in_pyodide.mjs, for tests/figures.py.

The logits are those of a language model's shape: a few likely tokens above very many unlikely ones. Prints JSON: for
each step that is switched on, the microseconds of several rounds, interleaved. What lies ready after each token (16
candidates) is ready here as well.
"""

import json
import random
import struct
import time
from typing import Any

from fabella.engine import READY, Logits
from fabella.hosts import new_host
from fabella.sampler import Sampler, Settings

VOCABULARY = 49_152
ROUNDS, CALLS = 9, 300

chance = random.Random(1)
unlikely = [chance.gauss(0, 2.5) for _ in range(VOCABULARY - 40)]
likely = [chance.gauss(14, 2) for _ in range(40)]
values = unlikely + likely
chance.shuffle(values)
said = [chance.choice((chance.randrange(VOCABULARY), values.index(max(values)))) for _ in range(64)]

host = new_host()
pointers = host.put(struct.pack(f"<{VOCABULARY}f", *values)), host.allocate(16 * VOCABULARY)
logits = Logits(host, host.put(struct.pack("<IiIi2d", pointers[0], VOCABULARY, pointers[1], 0, 0, 0)), VOCABULARY)

PAGE: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9}
STEPS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature alone": {"temperature": 0.8, "top_p": 1},
    "top-k 40": {"temperature": 0.8, "top_p": 1, "top_k": 40},
    "top-p 0.9": PAGE,
    "top-p 0.9, min-p 0.05": PAGE | {"min_p": 0.05},
    "top-p 0.9, typical 0.95": PAGE | {"typical_p": 0.95},
    "top-p 0.9, bias of a token": PAGE | {"logit_bias": {5: 1.0}},
    "top-p 0.9, presence and frequency penalties": PAGE | {"presence_penalty": 0.5, "frequency_penalty": 0.1},
    "top-p 0.9, repetition penalty": PAGE | {"repetition_penalty": 1.1},
}
samplers = {name: Sampler(Settings(**settings, seed=7), (0, 2)) for name, settings in STEPS.items()}
took: dict[str, list[float]] = {name: [] for name in STEPS}
for _ in range(ROUNDS + 3):  # the first ones compile
    for name, sampler in samplers.items():
        logits.shortlist(READY)
        began = time.perf_counter()
        for _ in range(CALLS):
            logits.ready = max(logits.ready, READY)
            sampler.sample(logits, said)
            if logits.ready < READY:
                pause = time.perf_counter()
                logits.shortlist(READY)  # as after a token
                began += time.perf_counter() - pause
        took[name].append((time.perf_counter() - began) / CALLS * 1e6)
print(json.dumps({name: times[3:] for name, times in took.items()}))
