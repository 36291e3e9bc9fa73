"""The families of models: what GGUF calls their numbers, which tensors they have, in what they differ from Llama.

This is the only place that knows them by name. A family is described here and computed in wasm/run.c, which knows only
Config's numbers and has the same list of tensors in the same order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fabella.config import LARGEST, Config, Tensor, check_whole
from fabella.errors import ModelFileError
from fabella.formats import FLOATS, FORMATS
from fabella.metadata import for_all_layers, get, quoted
from fabella.rope import Scaling

# ---- Tensors ---------------------------------------------------------------------------------------------------------

# Each tensor's shape, by the names of Config's numbers: (rows, cols), or (n,) for a vector. In the order in which a
# token meets them; in C the tensors' numbers are their places in it.
FIRST_TENSORS = {
    "token_embd": ("vocab_size", "dim"),
}
LAYER_TENSORS = {
    "attn_norm": ("dim",),
    "attn_q": ("q_dim", "dim"),
    "attn_k": ("kv_dim", "dim"),
    "attn_v": ("kv_dim", "dim"),
    "attn_q_bias": ("q_dim",),
    "attn_k_bias": ("kv_dim",),
    "attn_v_bias": ("kv_dim",),
    "attn_q_norm": ("q_norm_size",),
    "attn_k_norm": ("k_norm_size",),
    "attn_output": ("dim", "q_dim"),
    "attn_output_bias": ("dim",),
    "post_attention_norm": ("dim",),
    "ffn_norm": ("dim",),
    "ffn_gate": ("hidden_dim", "dim"),
    "ffn_gate_bias": ("hidden_dim",),
    "ffn_down": ("dim", "hidden_dim"),
    "ffn_down_bias": ("dim",),
    "ffn_up": ("hidden_dim", "dim"),
    "ffn_up_bias": ("hidden_dim",),
    "post_ffw_norm": ("dim",),
}
LAST_TENSORS = {
    "output_norm": ("dim",),
    "output": ("vocab_size", "dim"),
}
TENSORS = FIRST_TENSORS | LAYER_TENSORS | LAST_TENSORS
ABSENT_IF_TIED = "output"
NUMBERS = {name: number for number, name in enumerate(TENSORS)}

INPUT_NORMS = ("attn_norm", "ffn_norm")
PLAIN = (*INPUT_NORMS, "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up")
QKV_BIASES = ("attn_q_bias", "attn_k_bias", "attn_v_bias")
BIASES = (*QKV_BIASES, "attn_output_bias", "ffn_gate_bias", "ffn_down_bias", "ffn_up_bias")  # any family may have them
QK_NORMS = ("attn_q_norm", "attn_k_norm")
OUTPUT_NORMS = ("post_attention_norm", "post_ffw_norm")

# By what RoPE's angles are divided: (rope_size / 2) numbers for the whole model, which C never sees.
DIVISORS = "rope_freqs.weight"
SHORT_DIVISORS, LONG_DIVISORS = "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = (DIVISORS, SHORT_DIVISORS, LONG_DIVISORS)

# Matrices that some files hold as one, and whose rows follow each other in it.
FUSED = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "ffn_up": ("ffn_gate", "ffn_up"),  # where there is no ffn_gate
}

# What other architectures have, by a part of the tensor's name, so that the message can say so.
FOREIGN = {
    "_exps": "mixture-of-experts layers",
    "_gate_inp": "mixture-of-experts layers",
    "norm.bias": "norms that have a bias",
    "_sub_norm": "norms within a block",
    "ssm_": "state-space layers",
}


# ---- Families --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """In what a family differs from the plain Llama."""

    title: str  # what people call it
    has: tuple[str, ...] = ()  # tensors of a layer that Llama has not
    lacks: tuple[str, ...] = ()  # those that it lacks
    halves: bool = False
    joint_norm: bool = False
    gelu: bool = False
    scales_embedding: bool = False  # by the square root of its width
    no_rope_every: int = 0  # every so many layers, the last of them has no RoPE
    window: int = 0  # how many positions a token sees in the others, unless the file says
    window_pattern: int = 0  # the same for those that see all positions, unless the file says; 0: none does
    local_rope_base: float = 0.0  # RoPE's base in layers with a window, unless the file says; 0: all have one table
    whole_magnitude: bool = False  # whether the factor that a file has beside YaRN's is all of it
    attention_cap: float = 0.0  # unless the file says
    logit_cap: float = 0.0


SAME_BASE = -1.0
GEMMA = Family("Gemma", halves=True, gelu=True, scales_embedding=True)
FAMILIES = {
    "llama": Family("Llama"),  # and Mistral, TinyLlama, SmolLM, MobileLLM
    "smollm3": Family("SmolLM3", no_rope_every=4),
    "qwen2": Family("Qwen2", has=QKV_BIASES, halves=True),
    "qwen3": Family("Qwen3", has=QK_NORMS, halves=True),
    "gemma": GEMMA,
    "gemma2": replace(
        GEMMA,
        title="Gemma 2",
        has=OUTPUT_NORMS,
        window=4096,
        window_pattern=2,
        attention_cap=50.0,
        logit_cap=30.0,
    ),
    "gemma3": replace(
        GEMMA, title="Gemma 3", has=(*OUTPUT_NORMS, *QK_NORMS), window_pattern=6, local_rope_base=10000.0
    ),
    "phi3": Family("Phi-3", halves=True),
    "granite": Family("Granite"),
    "olmo2": Family(  # and OLMo 3
        "OLMo 2",
        has=(*OUTPUT_NORMS, *QK_NORMS),
        lacks=INPUT_NORMS,
        halves=True,
        joint_norm=True,
        window_pattern=4,
        local_rope_base=SAME_BASE,
        whole_magnitude=True,
    ),
}

# Which metadata key each of Config's numbers comes from; ``{}`` stands for the family's name.
KEYS = {
    "dim": "{}.embedding_length",
    "hidden_dim": "{}.feed_forward_length",
    "n_layers": "{}.block_count",
    "n_heads": "{}.attention.head_count",
    "n_kv_heads": "{}.attention.head_count_kv",
    "vocab_size": "tokenizer.ggml.tokens",
    "seq_len": "{}.context_length",
    "rope_base": "{}.rope.freq_base",
    "local_rope_base": "{}.rope.freq_base_swa",
    "norm_eps": "{}.attention.layer_norm_rms_epsilon",
    "key_length": "{}.attention.key_length",
    "rope_length": "{}.rope.dimension_count",
    "embedding_scale": "{}.embedding_scale",
    "attention_scale": "{}.attention.scale",
    "residual_scale": "{}.residual_scale",
    "logit_scale": "{}.logit_scale",
    "attention_cap": "{}.attn_logit_softcapping",
    "logit_cap": "{}.final_logit_softcapping",
    "windows": "{}.attention.sliding_window",
    "repeats": "fabella.block_repeats",  # of our own: there is no other
}
PLAIN_KEYS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "seq_len")


def expected_shapes(config: Config, tied: bool | None = None) -> dict[str, tuple[int, ...]]:
    """Return the name, as ``blk.3.attn_q.weight``, and shape of every tensor that a model must have.

    ``tied`` is as the config says, or as asked.
    """
    family = FAMILIES[config.family]
    layer = [name for name in LAYER_TENSORS if name in (*PLAIN, *family.has) and name not in family.lacks]
    shapes = dict(_shapes(config, layer))
    if config.tied if tied is None else tied:
        del shapes[f"{ABSENT_IF_TIED}.weight"]
    return shapes


def _shapes(config: Config, layer: Iterable[str]) -> Iterable[tuple[str, tuple[int, ...]]]:
    """The names and shapes of the tensors that the model has once, and of these that each of its layers has."""
    names = [("", name) for name in FIRST_TENSORS]
    names += [(f"blk.{number}.", name) for number in range(config.n_layers) for name in layer]
    names += [("", name) for name in LAST_TENSORS]
    for block, name in names:
        yield block + _in_file(name), tuple(getattr(config, size) for size in TENSORS[name])


def adapted_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every matrix that an adapter may change: those of the layers."""
    layer = [name for name, shape in LAYER_TENSORS.items() if len(shape) == 2]
    return {name: shape for name, shape in _shapes(config, layer) if name.startswith("blk.")}


def _in_file(name: str) -> str:
    """What a file calls a tensor: ``attn_q.weight`` or ``attn_q.bias``."""
    return f"{name.removesuffix('_bias')}.bias" if name.endswith("_bias") else f"{name}.weight"


def tensor_place(name: str) -> tuple[int, int]:
    """Return a tensor's number in C and its layer: of ``blk.3.attn_q.weight`` that of ``attn_q``, and 3."""
    *block, kind, suffix = name.split(".")
    return NUMBERS[f"{kind}_bias" if suffix == "bias" else kind], int(block[1]) if block else 0


def family_title(config: Config) -> str:
    """What people call the model's family."""
    return FAMILIES[config.family].title


def parameter_count(tensors: Mapping[str, Tensor]) -> int:
    """How many weights the model has; a tied classifier counts once."""
    return sum(math.prod(tensor.shape) for name, tensor in tensors.items() if name not in ROPE_TENSORS)


def is_tied(tensors: Container[str]) -> bool:
    """Whether the token embedding is the classifier too: then there is no tensor for it."""
    return f"{ABSENT_IF_TIED}.weight" not in tensors


def split_fused(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with every fused matrix, or bias, as its parts, which are rows of it.

    Raises
    ------
    ModelFileError
        If a fused one has not as many rows as its parts; `field` is its name.
    """
    result = dict(tensors)
    fused = re.compile(rf"(blk\.\d+)\.({'|'.join(FUSED)})\.(weight|bias)")
    for name, tensor in tensors.items():
        found = fused.fullmatch(name)
        if not found:
            continue
        block, kind, suffix = found.groups()
        parts = FUSED[kind]
        names = [f"{block}.{part}.{suffix}" for part in parts]
        if kind == "ffn_up" and names[0] in tensors:
            continue
        rows = [getattr(config, TENSORS[part][0]) for part in parts]
        if kind == "ffn_up" and tensor.shape[0] == rows[-1]:
            continue  # not fused: the gate is missing
        if tensor.group:
            raise ModelFileError(name, f"is of type {tensor.type}, in which {', '.join(parts)} cannot be told apart")
        if tensor.shape[0] != sum(rows):
            raise ModelFileError(
                name, f"has shape {tensor.shape}, but the rows of {', '.join(parts)} are {' + '.join(map(str, rows))}"
            )
        del result[name]
        size, offset = tensor.size // tensor.shape[0], tensor.offset
        for part, count in zip(names, rows, strict=True):
            if part in tensors and part != name:
                raise ModelFileError(part, f"is in the file twice, as a part of {name} as well")
            result[part] = replace(
                tensor, name=part, shape=(count, *tensor.shape[1:]), offset=offset, size=count * size
            )
            offset += count * size
    return result


def check_tensors(config: Config, tensors: Mapping[str, Tensor]) -> None:
    """Check that exactly the tensors of this family are there, in the right shapes and usable formats.

    Raises
    ------
    ModelFileError
        `field` is the tensor's name.
    """
    needed = expected_shapes(config)
    shapes = dict(_shapes(config, LAYER_TENSORS))
    optional = {_in_file(name) for name in BIASES}
    rope_shape = (config.rope_size // 2,)
    for name, tensor in tensors.items():
        if name in ROPE_TENSORS:
            if tensor.shape != rope_shape or tensor.type != "F32":
                raise ModelFileError(name, f"must be F32 numbers of shape {rope_shape}")
        elif name not in needed and not (name in shapes and name.split(".", 2)[-1] in optional):
            for part, feature in FOREIGN.items():
                if part in name:
                    raise ModelFileError(name, f"models with {feature} are not supported")
            layers = f"a {config.family} model with {config.n_layers} layers"
            raise ModelFileError(name, f"this tensor is not part of {layers}")
    divisors = config.rope_scaling.divisors
    for name in (*needed, *([divisors] if divisors else [])):
        if name not in tensors:
            raise ModelFileError(name, "this tensor is missing from the file")
    for name, tensor in tensors.items():
        if name in ROPE_TENSORS:
            continue
        shape = shapes[name]
        if tensor.shape != shape:
            raise ModelFileError(name, f"has shape {tensor.shape}, but the model's numbers ask for {shape}")
        types = FLOATS if len(shape) == 1 else tuple(FORMATS)
        if tensor.type not in types:
            raise ModelFileError(name, f"is of type {tensor.type}, but must be one of {', '.join(types)}")


# ---- Metadata --------------------------------------------------------------------------------------------------------


def check_family(metadata: Mapping[str, Any]) -> None:
    """Raise ModelFileError unless the file says that its model is of one of our families."""
    architecture = get(metadata, "general.architecture", str)
    if architecture not in FAMILIES:
        raise ModelFileError(
            "general.architecture", f"is {quoted(architecture)}; only {', '.join(FAMILIES)} models can be run"
        )
    experts = f"{architecture}.expert_count"
    if get(metadata, experts, int, default=0) > 0:
        raise ModelFileError(experts, "mixture-of-experts models are not supported")


def config_of(metadata: Mapping[str, Any], tensors: Iterable[str]) -> Config:
    """Return the numbers of a model from the metadata of its file and the names of its tensors.

    `check_family` has seen the metadata.

    Raises
    ------
    ModelFileError
        If it does not fit its family; `field` is the key.
    """
    name: str = metadata["general.architecture"]
    family, names = FAMILIES[name], set(tensors)
    keys = {field: key.format(name) for field, key in KEYS.items()}

    def number(field: str, kind: type, default: Any = None) -> Any:
        return get(metadata, keys[field], kind, default)

    n_layers, dim, seq_len = number("n_layers", int), number("dim", int), number("seq_len", int)
    for field, value in (("n_layers", n_layers), ("dim", dim), ("seq_len", seq_len)):
        check_whole(keys[field], value, 1, LARGEST[field])
    n_heads = for_all_layers(metadata, keys["n_heads"], n_layers)
    check_whole(keys["n_heads"], n_heads, 1, LARGEST["n_heads"])
    key_length, rope_length = number("key_length", int, default=0), number("rope_length", int, default=0)
    key_length = 0 if key_length * n_heads == dim else key_length
    rope_length = 0 if rope_length == (key_length or dim // n_heads) else rope_length
    windows = _windows(metadata, name, family, n_layers)
    rope_base = number("rope_base", float, default=10000.0)
    local = family.local_rope_base if any(windows) else 0.0
    try:
        config = Config(
            dim=dim,
            hidden_dim=for_all_layers(metadata, keys["hidden_dim"], n_layers),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=for_all_layers(metadata, keys["n_kv_heads"], n_layers, default=n_heads),
            vocab_size=len(get(metadata, keys["vocab_size"], list)),
            seq_len=seq_len,
            rope_base=rope_base,
            norm_eps=number("norm_eps", float),
            tied=is_tied(names),
            family=name,
            repeats=number("repeats", int, default=1),
            key_length=key_length,
            rope_length=rope_length,
            rope_scaling=_scaling(metadata, name, seq_len, names),
            local_rope_base=number("local_rope_base", float, rope_base if local == SAME_BASE else local)
            if local
            else 0.0,
            ropes=_ropes(family, windows, n_layers),
            windows=windows if any(windows) else (),
            halves=family.halves,
            joint_norm=family.joint_norm,
            gelu=family.gelu,
            embedding_scale=number("embedding_scale", float, math.sqrt(dim) if family.scales_embedding else 1.0),
            attention_scale=number("attention_scale", float, default=0.0),
            residual_scale=number("residual_scale", float, default=1.0),
            logit_scale=number("logit_scale", float, default=1.0),
            attention_cap=number("attention_cap", float, default=family.attention_cap),
            logit_cap=number("logit_cap", float, default=family.logit_cap),
        )
    except ModelFileError as error:
        raise ModelFileError(keys.get(error.field, error.field), error.problem) from None
    key = f"{name}.attention.value_length"
    size = get(metadata, key, int, default=config.head_size)
    if size != config.head_size:
        raise ModelFileError(key, f"is {size}, but only the size of the keys, {config.head_size}, is supported")
    key = f"{name}.vocab_size"
    vocab_size = get(metadata, key, int, default=config.vocab_size)
    if vocab_size != config.vocab_size:
        raise ModelFileError(key, f"is {vocab_size}, but the tokenizer has {config.vocab_size}")
    return config


def _windows(metadata: Mapping[str, Any], name: str, family: Family, n_layers: int) -> tuple[int, ...]:
    """How many positions a token sees in each layer; 0: all."""
    window = get(metadata, KEYS["windows"].format(name), int, default=family.window)
    key = f"{name}.attention.sliding_window_pattern"
    pattern = metadata.get(key, family.window_pattern)
    if isinstance(pattern, list):
        if len(pattern) != n_layers or not all(type(local) in (bool, int) for local in pattern):
            raise ModelFileError(key, f"must say for each of the {n_layers} layers whether it has a window")
        return tuple(window if local else 0 for local in pattern)
    if type(pattern) is not int or pattern < 0:
        raise ModelFileError(key, "must be a whole number from 0 on")
    return tuple(0 if pattern and layer % pattern == pattern - 1 else window for layer in range(n_layers))


def _ropes(family: Family, windows: tuple[int, ...], n_layers: int) -> tuple[int, ...]:
    """Which table of RoPE each layer uses."""
    if family.no_rope_every:
        return tuple(-1 if (layer + 1) % family.no_rope_every == 0 else 0 for layer in range(n_layers))
    return tuple(1 if window else 0 for window in windows) if family.local_rope_base and any(windows) else ()


def _scaling(metadata: Mapping[str, Any], name: str, seq_len: int, tensors: set[str]) -> Scaling:
    """How RoPE's angles are scaled."""
    key = f"{name}.rope.scaling."
    linear = get(metadata, f"{name}.rope.scale_linear", float, default=1.0)  # the older key
    factor = get(metadata, key + "factor", float, default=linear) or 1.0  # 0 and 1 both mean none
    kind = get(metadata, key + "type", str, default="linear")
    magnitude = get(metadata, key + "attn_factor", float, default=1.0)
    original = get(metadata, key + "original_context_length", int, default=seq_len)
    if not 1e-3 <= factor <= 1e6:
        raise ModelFileError(key + "factor", f"is {factor:g}, but must be from 0.001 to 1,000,000")
    if not 1e-3 <= magnitude <= 1e3:
        raise ModelFileError(key + "attn_factor", f"is {magnitude:g}, but must be from 0.001 to 1,000")
    if original < 1:
        raise ModelFileError(key + "original_context_length", f"is {original}, but must be above 0")
    if LONG_DIVISORS in tensors or SHORT_DIVISORS in tensors or kind == "longrope":
        # What has been computed depends on the choice: it is made once, by the context that the model may get.
        return Scaling(divisors=LONG_DIVISORS if seq_len > original else SHORT_DIVISORS, magnitude=magnitude)
    divisors = DIVISORS if DIVISORS in tensors else ""
    if kind == "none":
        return Scaling(divisors=divisors)
    if kind == "linear":
        return Scaling(factor, divisors=divisors)
    if kind == "yarn":
        fast = get(metadata, key + "yarn_beta_fast", float, default=32.0)
        slow = get(metadata, key + "yarn_beta_slow", float, default=1.0)
        if not 1e-3 <= slow <= fast <= 1e6:
            raise ModelFileError(key + "yarn_beta_fast", f"{slow:g} and {fast:g} turns are no range")
        whole = FAMILIES[name].whole_magnitude and key + "attn_factor" in metadata
        return Scaling(factor, original, fast, slow, magnitude, whole, divisors)
    raise ModelFileError(key + "type", f"{quoted(kind)} is not supported, only none, linear, yarn and longrope are")


def key_of(config: Config, field: str) -> str:
    """The metadata key that one of Config's numbers comes from."""
    return KEYS[field].format(config.family)


def describe(config: Config) -> dict[str, Any]:
    """Return the metadata from which `config_of` makes the same numbers of a plain Llama."""
    numbers = {KEYS[field].format("llama"): getattr(config, field) for field in PLAIN_KEYS}
    return {
        "general.architecture": "llama",
        **numbers,
        KEYS["rope_base"].format("llama"): float(config.rope_base),
        KEYS["norm_eps"].format("llama"): float(config.norm_eps),
        "llama.vocab_size": config.vocab_size,
        "llama.rope.dimension_count": config.head_size,
    }
