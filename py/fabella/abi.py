"""What the driver and C agree on beside the functions: error codes, and how structs lie in memory.

C's side is wasm/abi.h, and Config and Candidate in wasm/run.c and wasm/logits.h; tests/test_abi.py compares the two.
"""

from __future__ import annotations

import struct

E_MEMORY, E_CONFIG, E_TENSOR, E_NOT_FINITE, E_INCOMPLETE, E_TOKEN, E_POSITION, E_LOGITS, E_RANGE = range(-1, -10, -1)
ERRORS = {
    E_MEMORY: "out of memory",
    E_CONFIG: "these sizes cannot be a model",
    E_TENSOR: "not the tensor that the model's sizes ask for",
    E_NOT_FINITE: "holds a value that is not a finite number",
    E_INCOMPLETE: "not every tensor is loaded",
    E_TOKEN: "a token is outside the vocabulary",
    E_POSITION: "a position is outside the context",
    E_LOGITS: "no logit is a finite number: the model's weights are broken",
    E_RANGE: "holds an 8-bit weight of -128, which no quantiser writes: the file is damaged",
}

# Fields by the codes of Python's struct: i is an int32, f a float, d a double.
CONFIG = dict.fromkeys(
    """
    dim hidden_dim n_layers repeats n_heads n_kv_heads head_size rope_size vocab_size seq_len
    tied halves joint_norm gelu
    """.split(),
    "i",
) | dict.fromkeys(
    """
    norm_eps embedding_scale attention_scale residual_scale logit_scale attention_cap logit_cap
    """.split(),
    "f",
)
CANDIDATE = {"id": "i", "logit": "f", "probability": "d"}


def struct_of(fields: dict[str, str]) -> struct.Struct:
    """Return the struct as it lies in C's memory; each field is aligned by itself."""
    return struct.Struct("<" + "".join(fields.values()))
