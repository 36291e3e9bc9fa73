"""Small random models as GGUF files, in every shape that the engine must cope with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fabella.engine import Engine
from fabella.gguf import read_gguf, write_gguf
from fabella.hosts import WasmtimeHost
from fabella.modelfile import BytesSource, Config, ModelFile, expected_shapes
from train.export import quantize_q8_0


def vocabulary(size: int) -> dict[str, Any]:
    """Tokenizer metadata: <unk>, <s>, </s>, the 256 bytes if there is room, then made-up words."""
    tokens = ["<unk>", "<s>", "</s>"][:size]
    types = [2, 3, 3][:size]
    if size >= 259:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [6] * 256
    words = size - len(tokens)
    tokens += [f"▁w{number}" if number else "▁" for number in range(words)]
    types += [1] * words
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(size)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def write_random_model(path: Path, config: Config, *, tied: bool = True, type: str = "F32", seed: int = 0) -> Path:
    """Writes a model whose logits have a spread of about 1, as a trained one's have.

    `type` is that of the matrices: F32, Q8_0, or mixed, which is F32 for every other one.
    """
    random = np.random.default_rng(seed)
    metadata = {
        "general.architecture": "llama",
        "general.name": f"random {seed}",
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.block_count": config.n_layers,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.context_length": config.seq_len,
        "llama.rope.freq_base": float(config.rope_base),
        "llama.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        **vocabulary(config.vocab_size),
    }
    tensors: list[tuple[str, str, tuple[int, ...], bytes]] = []
    for name, shape in expected_shapes(config, tied).items():
        if len(shape) == 1:
            values = random.uniform(0.5, 1.5, shape).astype(np.float32)
            tensors.append((name, "F32", shape, values.tobytes()))
        else:
            stored = type if type != "mixed" else ("F32" if len(tensors) % 2 or shape[1] % 32 else "Q8_0")
            values = (random.standard_normal(shape) / math.sqrt(shape[1])).astype(np.float32)
            data = values.tobytes() if stored == "F32" else quantize_q8_0(values)
            tensors.append((name, stored, shape, data))
    write_gguf(path, metadata, tensors)
    return path


def load(path: Path) -> tuple[Engine, ModelFile]:
    """The model of a GGUF file in an engine of its own, under wasmtime."""
    data = path.read_bytes()
    model = read_gguf(BytesSource(data))
    host = WasmtimeHost()
    file = host.put(data)
    engine = Engine(host, model, file)
    host.release(file.pointer)
    return engine, model
