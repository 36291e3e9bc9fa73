"""What a Llama is made of: its numbers by GGUF's keys, its tensors with their shapes, and what it does not have.

A family is described here and computed in wasm/run.c, which has the same list of tensors in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fabella.config import Config, Tensor
from fabella.errors import ModelFileError
from fabella.formats import FLOATS, FORMATS
from fabella.metadata import for_all_layers, get, quoted

# Which metadata key each of Config's numbers comes from.
KEYS = {
    "dim": "llama.embedding_length",
    "hidden_dim": "llama.feed_forward_length",
    "n_layers": "llama.block_count",
    "n_heads": "llama.attention.head_count",
    "n_kv_heads": "llama.attention.head_count_kv",
    "vocab_size": "tokenizer.ggml.tokens",
    "seq_len": "llama.context_length",
    "rope_base": "llama.rope.freq_base",
    "norm_eps": "llama.attention.layer_norm_rms_epsilon",
}

# Each tensor's shape, by the names of Config's numbers: (rows, cols), or (n,) for a norm. In the order in which a token
# meets them; in C the tensors' numbers are their places in it.
FIRST_TENSORS = {
    "token_embd": ("vocab_size", "dim"),
}
LAYER_TENSORS = {
    "attn_norm": ("dim",),
    "attn_q": ("dim", "dim"),
    "attn_k": ("kv_dim", "dim"),
    "attn_v": ("kv_dim", "dim"),
    "attn_output": ("dim", "dim"),
    "ffn_norm": ("dim",),
    "ffn_gate": ("hidden_dim", "dim"),
    "ffn_down": ("dim", "hidden_dim"),
    "ffn_up": ("hidden_dim", "dim"),
}
LAST_TENSORS = {
    "output_norm": ("dim",),
    "output": ("vocab_size", "dim"),
}
TENSORS = FIRST_TENSORS | LAYER_TENSORS | LAST_TENSORS
ABSENT_IF_TIED = "output"
NUMBERS = {name: number for number, name in enumerate(TENSORS)}

# What other members of the family have, by a part of the tensor's name, so that the message can say so.
FOREIGN = {
    ".bias": "bias terms",
    "rope_freqs": "rescaled rotary frequencies (long-context models)",
    "_exps": "mixture-of-experts layers",
    "_gate_inp": "mixture-of-experts layers",
    "attn_q_norm": "normalised queries",
    "attn_k_norm": "normalised keys",
    "attn_qkv": "a fused query/key/value matrix",
}


def expected_shapes(config: Config, tied: bool | None = None) -> dict[str, tuple[int, ...]]:
    """Return every tensor's name, as ``blk.3.attn_q.weight``, and shape; ``tied`` as the config says, or as asked."""
    shapes: dict[str, tuple[str, ...]] = {**FIRST_TENSORS}
    for layer in range(config.n_layers):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in LAYER_TENSORS.items()}
    shapes |= LAST_TENSORS
    if config.tied if tied is None else tied:
        del shapes[ABSENT_IF_TIED]
    return {f"{name}.weight": tuple(getattr(config, size) for size in shape) for name, shape in shapes.items()}


def tensor_place(name: str) -> tuple[int, int]:
    """Return a tensor's number in C and its layer: of ``blk.3.attn_q.weight`` that of ``attn_q``, and 3."""
    *block, kind, _weight = name.split(".")
    return NUMBERS[kind], int(block[1]) if block else 0


def parameter_count(tensors: Mapping[str, Tensor]) -> int:
    """How many weights the model has; a tied classifier counts once."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def is_tied(tensors: Mapping[str, Any]) -> bool:
    """Whether the token embedding is the classifier too: then there is no tensor for it."""
    return f"{ABSENT_IF_TIED}.weight" not in tensors


def check_tensors(config: Config, tensors: Mapping[str, Tensor]) -> None:
    """Check that exactly the tensors of this Llama are there, in the right shapes and usable formats.

    Raises
    ------
    ModelFileError
        `field` is the tensor's name.
    """
    shapes = expected_shapes(config)
    for name in tensors:
        if name not in shapes:
            for part, feature in FOREIGN.items():
                if part in name:
                    raise ModelFileError(name, f"models with {feature} are not supported")
            raise ModelFileError(name, "this tensor is not part of a Llama with this many layers")
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelFileError(name, "this tensor is missing from the file")
        if tensor.shape != shape:
            raise ModelFileError(name, f"has shape {tensor.shape}, but the model's numbers ask for {shape}")
        types = FLOATS if len(shape) == 1 else tuple(FORMATS)
        if tensor.type not in types:
            raise ModelFileError(name, f"is of type {tensor.type}, but must be one of {', '.join(types)}")


def check_family(metadata: Mapping[str, Any]) -> None:
    """Raise ModelFileError unless the file says that its model is a Llama."""
    architecture = get(metadata, "general.architecture", str)
    if architecture != "llama":
        raise ModelFileError("general.architecture", f"is {quoted(architecture)}; only 'llama' models can be run")


def config_of(metadata: Mapping[str, Any], tied: bool) -> Config:
    """Return the numbers of a model from the metadata of its file.

    Raises
    ------
    ModelFileError
        If it is not a plain Llama; `field` is the key.
    """
    _refuse_variants(metadata)
    n_layers = get(metadata, KEYS["n_layers"], int)
    n_heads = for_all_layers(metadata, KEYS["n_heads"], n_layers)
    try:
        config = Config(
            dim=get(metadata, KEYS["dim"], int),
            hidden_dim=for_all_layers(metadata, KEYS["hidden_dim"], n_layers),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=for_all_layers(metadata, KEYS["n_kv_heads"], n_layers, default=n_heads),
            vocab_size=len(get(metadata, KEYS["vocab_size"], list)),
            seq_len=get(metadata, KEYS["seq_len"], int),
            rope_base=get(metadata, KEYS["rope_base"], float, default=10000.0),
            norm_eps=get(metadata, KEYS["norm_eps"], float),
            tied=tied,
        )
    except ModelFileError as error:
        raise ModelFileError(KEYS.get(error.field, error.field), error.problem) from None
    for key in ("llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"):
        size = get(metadata, key, int, default=config.head_size)
        if size != config.head_size:
            raise ModelFileError(key, f"is {size}, but only {config.head_size} (width / heads) is supported")
    vocab_size = get(metadata, "llama.vocab_size", int, default=config.vocab_size)
    if vocab_size != config.vocab_size:
        raise ModelFileError("llama.vocab_size", f"is {vocab_size}, but the tokenizer has {config.vocab_size}")
    return config


def describe(config: Config) -> dict[str, Any]:
    """Return the metadata from which `config_of` makes the same numbers."""
    numbers = {key: getattr(config, field) for field, key in KEYS.items() if field != "vocab_size"}
    return {
        "general.architecture": "llama",
        **numbers,
        KEYS["rope_base"]: float(config.rope_base),
        KEYS["norm_eps"]: float(config.norm_eps),
        "llama.vocab_size": config.vocab_size,
        "llama.rope.dimension_count": config.head_size,
    }


def _refuse_variants(metadata: Mapping[str, Any]) -> None:
    """Refuse what would make the model compute something else than the plain Llama we run."""
    scaling = get(metadata, "llama.rope.scaling.type", str, default="")
    factor = get(metadata, "llama.rope.scaling.factor", float, default=1.0)
    linear = get(metadata, "llama.rope.scale_linear", float, default=1.0)  # the older key
    if scaling not in ("", "none"):
        raise ModelFileError("llama.rope.scaling.type", f"{quoted(scaling)} is not supported, only 'none' is")
    # A factor without a type means linear scaling; 0 and 1 both mean none.
    if scaling == "" and factor not in (0.0, 1.0):
        raise ModelFileError("llama.rope.scaling.factor", "scaled rotary positions are not supported")
    if linear not in (0.0, 1.0):
        raise ModelFileError("llama.rope.scale_linear", "scaled rotary positions are not supported")
    if get(metadata, "llama.expert_count", int, default=0) > 0:
        raise ModelFileError("llama.expert_count", "mixture-of-experts models are not supported")
