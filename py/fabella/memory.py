"""How much memory a model takes, told by its file's header: what the engine (wasm/run.c) will make room for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from fabella.architectures import ROPE_TENSORS
from fabella.config import Config, Tensor
from fabella.formats import FORMATS, GROUP, LAYOUTS

BATCH = 32  # tokens that the engine computes together
SCORES = 64  # rows of attention's weights: of up to eight threads, for eight queries each
BASE = 1 << 20  # bytes of the engine without a model


def weights_size(tensors: Iterable[Tensor]) -> int:
    """Bytes that weights take, as they are packed."""
    return sum(map(_packed_size, (tensor for tensor in tensors if tensor.name not in ROPE_TENSORS)))


def _packed_size(tensor: Tensor) -> int:
    if len(tensor.shape) == 1:
        return 4 * _padded(tensor.columns)
    unfit = tensor.group and (tensor.columns % GROUP or tensor.group % GROUP)  # for groups of 32
    layout = "F32" if unfit else FORMATS[tensor.type].layout
    return _padded(tensor.rows) * tensor.columns * LAYOUTS[layout] // GROUP


def cache_size(config: Config) -> int:
    """Bytes that the KV cache takes for each token."""
    return config.n_layers * config.repeats * 2 * 4 * config.n_kv_heads * _padded(config.head_size)


def model_size(config: Config, tensors: Mapping[str, Tensor]) -> int:
    """Bytes that running a model takes in all, once its context is full."""
    widths = (config.dim, config.q_dim, config.hidden_dim)
    activations = BATCH * (4 * (2 * sum(widths) + 2 * config.kv_dim) + 2 * max(widths))
    logits = (4 + 16) * config.vocab_size
    angles = 4 * config.rope_size * (2 if config.local_rope_base else 1)
    token = cache_size(config) + angles + 4 * SCORES * max(1, config.n_heads // config.n_kv_heads // 8)
    return BASE + weights_size(tensors.values()) + activations + logits + config.seq_len * token


def _padded(count: int) -> int:
    return 4 * math.ceil(count / 4)
