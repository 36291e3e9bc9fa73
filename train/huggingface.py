"""Models in a Hugging Face folder: config.json and safetensors, in the words of GGUF, and back.

A family is data here, too: `MODELS` says what a ``model_type`` is called in GGUF and what is fixed in it, `NUMBERS`
and `NAMES` what its numbers and tensors are called. A field of config.json that is neither there nor among those that
change nothing (`HARMLESS`) is refused by name: it might change what the model computes.

Two things are more than names. RoPE's pairs are halves of a head apart here, and side by side in the files of some
families (fabella.architectures): the rows of q and k are sorted then. Gemma's norms are stored as 1 less.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fabella.architectures import ABSENT_IF_TIED, DIVISORS, FAMILIES, KEYS, LONG_DIVISORS, SHORT_DIVISORS, key_of
from fabella.config import LARGEST, Config, check_whole
from fabella.errors import FabellaError, ModelFileError
from fabella.metadata import get, quoted
from fabella.rope import NO_SCALING

from . import explain
from .portable import Array, Portable, Weights
from .quantize import quantize
from .safetensors_folder import ONE, open_weights, read_json, shown, write_weights
from .tokenizer_folder import read_tokenizer, write_tokenizer

CONFIG = "config.json"
LARGEST_FLOAT = float(np.finfo(np.float32).max)

# ---- The families ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What a ``model_type`` is."""

    family: str  # GGUF's
    tied: bool = False  # unless tie_word_embeddings says
    rope_base: float | None = 10000.0  # unless rope_theta says; None: it must
    activation: str = "silu"
    fixed: dict[str, Any] = field(default_factory=dict)  # fields that may have this value, or none, and no other
    needs: tuple[str, ...] = ()  # fields that must be there besides those that all have


GELU = "gelu_pytorch_tanh"
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
MODELS = {
    "llama": Model("llama", fixed={"rope_interleaved": False}),  # TinyLlama and SmolLM, too
    "mistral": Model("llama"),
    "mobilellm": Model("llama"),
    "smollm3": Model("smollm3", tied=True, rope_base=None, fixed={"no_rope_layer_interval": 4}),
    "qwen2": Model("qwen2", rope_base=None, fixed={"use_mrope": False}),
    "qwen3": Model("qwen3", rope_base=None, needs=("head_dim",)),
    "gemma": Model("gemma", tied=True, activation=GELU, needs=("head_dim",)),
    "gemma2": Model("gemma2", tied=True, activation=GELU, needs=("head_dim", "sliding_window", *CAPS)),
    "gemma3_text": Model("gemma3", tied=True, rope_base=1e6, activation=GELU, needs=("head_dim", "sliding_window")),
    "phi3": Model("phi3"),
    "granite": Model("granite", rope_base=None),
    "olmo2": Model("olmo2", rope_base=None),
    "olmo3": Model("olmo2", rope_base=None, needs=("sliding_window",)),
}
# Fields that are numbers of `Config`'s, by their names there.
NUMBERS = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "max_position_embeddings": "seq_len",
    "rms_norm_eps": "norm_eps",
    "head_dim": "key_length",
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "attn_logit_softcapping": "attention_cap",
    "final_logit_softcapping": "logit_cap",
}
FRACTIONS = ("rms_norm_eps", "embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
# Fields that are understood in one way or another below.
UNDERSTOOD = set(
    """
    model_type vocab_size tie_word_embeddings share_embedding layer_sharing hidden_act hidden_activation attention_bias
    mlp_bias query_pre_attn_scalar layer_types sliding_window use_sliding_window max_window_layers
    sliding_window_pattern _sliding_window_pattern no_rope_layers rope_theta rope_scaling rope_parameters
    rope_local_base_freq partial_rotary_factor original_max_position_embeddings
    """.split()
)
# Fields that change nothing in what a model computes: they are of its training, its files or its use.
HARMLESS = set(
    """
    architectures auto_map transformers_version torch_dtype dtype _name_or_path name_or_path use_cache
    cache_implementation initializer_range attention_dropout attention_probs_dropout_prob hidden_dropout embd_pdrop
    resid_pdrop dropout bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id pretraining_tp is_llama_config
    transformers.js_config unsloth_fixed unsloth_version _attn_implementation _flash_attn_2_enabled
    _attn_implementation_autoset output_attentions output_hidden_states output_router_logits return_dict id2label
    label2id use_flash_attn gradient_checkpointing finetuning_task task_specific_params problem_type
    """.split()
)
# Fields of all models that may have this value, or none, and no other.
FIXED = {
    "use_bidirectional_attention": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "is_decoder": False,
    "quantization_config": None,
    "alibi": False,
}

# What modules are called, of the whole model and of a layer, and what their tensors are in GGUF.
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Where what a block adds is normed, too, the second norm is that of attention's output.
OUTPUT_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
COMPUTED = "rotary_emb.inv_freq"  # older files have RoPE's angles


def _names(family: str) -> dict[str, str]:
    return NAMES | (OUTPUT_NORMS if "post_ffw_norm" in FAMILIES[family].has else {})


# ---- Reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def open_huggingface(folder: Path) -> Iterator[Portable]:
    """Open a model; its weights can be read until the ``with`` statement ends.

    Raises
    ------
    FabellaError
        A file is missing or damaged, or the model cannot be run here. A ``ModelFileError`` names the field of
        config.json, the part of the tokenizer or the tensor.
    """
    config = read_json(folder / CONFIG)
    kind = _model_of(config)
    numbers, rope_tensors, notes = _numbers(config, kind)
    with open_weights(folder) as stored:
        tensors = _tensors(stored, config, kind) | rope_tensors
        if "token_embd.weight" not in tensors:
            raise ModelFileError("model.embed_tokens.weight", "this tensor is missing")
        rows = tensors["token_embd.weight"].shape[0]
        if get(config, "vocab_size", int, default=rows) != rows:
            raise ModelFileError("vocab_size", f"is {config['vocab_size']}, but the embedding has {rows} rows")
        tokenizer, more_notes = read_tokenizer(folder, config, rows)
        about = {"general.architecture": kind.family, "general.name": folder.resolve().name}
        model = Portable(about | numbers | tokenizer, tensors, (*notes, *more_notes))
        try:
            model.config()
        except ModelFileError as error:  # in the words of the file at hand
            keys = {KEYS[number].format(kind.family): name for name, number in NUMBERS.items()}
            raise ModelFileError(keys.get(error.field, error.field), error.problem) from None
        yield model


def _model_of(config: Mapping[str, Any]) -> Model:
    """The model's type, after a check of every field that is not a number."""
    name = get(config, "model_type", str)
    if name not in MODELS:
        raise ModelFileError("model_type", f"is {quoted(name)}; only {', '.join(MODELS)} models can be run")
    kind = MODELS[name]
    for key, value in config.items():
        fixed = FIXED | kind.fixed
        if key in fixed:
            if value is not None and value != fixed[key]:
                raise ModelFileError(key, f"is {shown(value)}, which is not supported")
        elif value is not None and key not in UNDERSTOOD | HARMLESS | NUMBERS.keys():
            raise ModelFileError(
                key,
                f"is {shown(value)}, and is not known here: it may change what the model computes. If it does not, "
                f"take it out of {CONFIG}",
            )
    for key in ("hidden_act", "hidden_activation"):
        # Gemma's first files say "gelu" and mean this one; transformers takes it so.
        if config.get(key, kind.activation) not in (kind.activation, None, "gelu" if kind.activation == GELU else None):
            raise ModelFileError(key, f"is {shown(config[key])}, but these models have {kind.activation}")
    return kind


def _numbers(config: Mapping[str, Any], kind: Model) -> tuple[dict[str, Any], dict[str, Weights], list[str]]:
    """The metadata of the model's numbers, tensors that RoPE needs, and notes."""
    family = kind.family
    for key in (*NEEDED, "rms_norm_eps", *kind.needs):
        if config.get(key) is None and not (key in CAPS and key in config):
            raise ModelFileError(key, f"is missing from {CONFIG}")
    metadata = {}
    for key, number in NUMBERS.items():
        value = config.get(key)
        if value is not None:
            fraction = key in FRACTIONS or key in CAPS
            metadata[KEYS[number].format(family)] = get(config, key, float if fraction else int)
        elif key in CAPS and key in kind.needs and key in config:
            metadata[KEYS[number].format(family)] = 0.0
    check_whole("num_hidden_layers", config["num_hidden_layers"], 1, LARGEST["n_layers"])
    check_whole("num_attention_heads", config["num_attention_heads"], 1, LARGEST["n_heads"])
    check_whole("hidden_size", config["hidden_size"], 1, LARGEST["dim"])
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    check_whole("head_dim", head, 1, LARGEST["dim"])
    metadata |= {f"{family}.attention.key_length": head, f"{family}.attention.value_length": head}
    scale = config.get("query_pre_attn_scalar")
    if scale is not None and scale != head:
        if not get(config, "query_pre_attn_scalar", float) > 0:
            raise ModelFileError("query_pre_attn_scalar", f"is {scale}, but must be above 0")
        metadata[KEYS["attention_scale"].format(family)] = float(scale) ** -0.5
    if config.get("layer_sharing"):
        metadata[KEYS["repeats"]] = 2
    metadata |= _windows(config, family)
    rope, tensors, notes = _rope(config, kind, head)
    return metadata | rope, tensors, notes


def _windows(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """How far back each layer looks."""
    n_layers: int = config["num_hidden_layers"]
    window = config.get("sliding_window")
    if config.get("use_sliding_window") is False or config["model_type"] in ("llama", "mobilellm", "gemma", "granite"):
        window = None
    if window is not None:
        check_whole("sliding_window", window, 1, (1 << 31) - 1)
    no_rope = config.get("no_rope_layers")
    every = FAMILIES[family].no_rope_every
    if no_rope is not None and (not every or no_rope != [int((i + 1) % every != 0) for i in range(n_layers)]):
        raise ModelFileError("no_rope_layers", "is not as these models have it")
    types = config.get("layer_types")
    key = f"{family}.attention.sliding_window_pattern"
    if types is not None:
        names = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != n_layers or any(type not in names for type in types):
            raise ModelFileError("layer_types", f"must be {' or '.join(names)} for each of {n_layers} layers")
        if names[1] in types and window is None:
            raise ModelFileError("layer_types", "has layers with a window, but sliding_window does not say how long")
        if window is None:
            return {}
        pattern: Any = [type == names[1] for type in types]
    elif window is None:
        return {}
    elif config["model_type"] in ("qwen2", "qwen3"):
        first = get(config, "max_window_layers", int)
        pattern = [layer >= first for layer in range(n_layers)]
    else:
        number = config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
        if number is None:  # as its family has it
            return {KEYS["windows"].format(family): window}
        check_whole("sliding_window_pattern", number, 1, LARGEST["n_layers"])
        pattern = [(layer + 1) % number != 0 for layer in range(n_layers)]
    return {KEYS["windows"].format(family): window, key: pattern}


# ---- RoPE ------------------------------------------------------------------------------------------------------------

# What RoPE's parameters may be, by its type, besides rope_theta, rope_type and partial_rotary_factor.
LONGER = ("factor", "original_max_position_embeddings", "attention_factor")
ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (*LONGER, "beta_fast", "beta_slow"),
    "longrope": (*LONGER, "short_factor", "long_factor"),
}
ROPE_TYPES["su"] = ROPE_TYPES["longrope"]  # its name at first


def _rope(config: Mapping[str, Any], kind: Model, head: int) -> tuple[dict[str, Any], dict[str, Weights], list[str]]:
    """What GGUF says of RoPE: metadata and tensors."""
    family, prefix = FAMILIES[kind.family], f"{kind.family}.rope."
    rope, local = _rope_parameters(config)
    base = rope.get("rope_theta", config.get("rope_theta", kind.rope_base))
    if base is None:
        raise ModelFileError("rope_theta", f"is missing from {CONFIG}")
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    if _above_zero(share, "partial_rotary_factor") > 1:
        raise ModelFileError("partial_rotary_factor", f"is {shown(share)}, but a share is at most 1")
    size = int(head * share)
    if size != head and not family.halves:
        raise ModelFileError("partial_rotary_factor", f"is {share}, but these models turn the whole head")
    metadata: dict[str, Any] = {
        f"{prefix}freq_base": _above_zero(base, "rope_theta"),
        f"{prefix}dimension_count": size,
    }
    if family.local_rope_base:
        given = local.get("rope_theta", config.get("rope_local_base_freq"))
        if given is not None:
            metadata[f"{prefix}freq_base_swa"] = _above_zero(given, "rope_local_base_freq")
        if local.get("rope_type", "default") != "default":
            raise ModelFileError("sliding_attention", "has its own rope_type, which is not supported")
    elif local or config.get("rope_local_base_freq"):
        raise ModelFileError("rope_local_base_freq", "is there, but these models have one RoPE in all layers")

    type = rope.get("rope_type", rope.get("type")) or "default"
    if not isinstance(type, str) or type not in ROPE_TYPES:
        raise ModelFileError("rope_type", f"is {shown(type)}; only {', '.join(ROPE_TYPES)} are supported")
    for key, value in rope.items():
        known = (*ROPE_TYPES[type], "rope_theta", "rope_type", "type", "partial_rotary_factor")
        if value is not None and key not in known:
            raise ModelFileError(key, f"is {shown(value)}; of a RoPE of type {type} it is not known here")

    def number(key: str, default: float | None = None) -> float:
        value = rope.get(key)
        if value is None and default is None:
            raise ModelFileError(key, f"is missing: a RoPE of type {type} needs it")
        return _above_zero(default if value is None else value, key)

    context = config["max_position_embeddings"]
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or context
    check_whole("original_max_position_embeddings", original, 2, LARGEST["seq_len"])
    scaling = f"{prefix}scaling."
    if type == "default":
        return metadata, {}, []
    if type == "linear":
        return metadata | {f"{scaling}type": "linear", f"{scaling}factor": number("factor")}, {}, []
    if type == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if high <= low:
            raise ModelFileError("high_freq_factor", f"is {high:g}, but must be above low_freq_factor, {low:g}")
        divisors = llama3_divisors(metadata[f"{prefix}freq_base"], size, number("factor"), original, low, high)
        return metadata, {DIVISORS: _vector(divisors)}, []
    metadata |= {f"{scaling}type": "yarn" if type == "yarn" else "longrope"}
    metadata |= {f"{scaling}original_context_length": original}
    if type == "yarn":
        factor = number("factor")
        if factor < 1:
            raise ModelFileError("factor", f"is {factor:g}, but must be 1 or more")
        metadata |= {f"{scaling}factor": factor}
        for key in ("beta_fast", "beta_slow"):
            if rope.get(key):
                metadata[f"{scaling}yarn_{key}"] = number(key)
        if rope.get("attention_factor"):
            own = 1.0 if family.whole_magnitude else 0.1 * math.log(factor) + 1
            metadata[f"{scaling}attn_factor"] = number("attention_factor") / own
        return metadata, {}, []
    longer = number("factor", context / original)
    plain = math.sqrt(1 + math.log(longer) / math.log(original)) if longer > 1 else 1.0
    metadata |= {f"{scaling}attn_factor": number("attention_factor", plain)}
    factors = {}
    for key, name in (("short_factor", SHORT_DIVISORS), ("long_factor", LONG_DIVISORS)):
        values = rope.get(key)
        if not isinstance(values, list) or len(values) != size // 2:
            raise ModelFileError(key, f"must be {size // 2} numbers, one for each pair that turns")
        factors[name] = _vector(np.array([_above_zero(value, key) for value in values]))
    notes = []
    if context > original:
        notes.append(
            f"its RoPE is that of texts beyond {original} tokens, whatever a text's length; transformers takes "
            "the other one for shorter texts"
        )
    return metadata, factors, notes


def _rope_parameters(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """RoPE's parameters, in the layers that see everything and in those with a window (none: they have no others)."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("rope_parameters", "rope_scaling"):
        value = config.get(name)
        if value is not None and not isinstance(value, dict):
            raise ModelFileError(name, "must hold RoPE's parameters")
        found[name] = value or {}
    new, old = found["rope_parameters"], found["rope_scaling"]
    if "full_attention" in new or "sliding_attention" in new:
        parts = [new.get("full_attention") or {}, new.get("sliding_attention") or {}]
        if not all(isinstance(part, dict) for part in parts):
            raise ModelFileError("rope_parameters", "must hold RoPE's parameters")
        return dict(parts[0]) | old, dict(parts[1])
    return dict(old or new), {}


def _above_zero(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not 0 < value <= LARGEST_FLOAT:
        raise ModelFileError(key, f"is {shown(value)}, but must be a number above 0, at most {LARGEST_FLOAT:.1e}")
    return float(value)


def _vector(values: np.ndarray[Any, Any]) -> Weights:
    return Weights("F32", values.shape, lambda: values.astype(np.float32))


def llama3_divisors(
    base: float, size: int, factor: float, context: int, low: float, high: float
) -> np.ndarray[Any, Any]:
    """By what Llama 3.1 divides RoPE's angles, (size / 2).

    Pairs that turn more than ``high`` times in the original ``context`` keep their angle, those of fewer than ``low``
    turns have it divided by ``factor``, and between the two it goes over evenly.
    """
    turns = context * base ** (-np.arange(0, size, 2) / size) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - kept) / factor + kept)


# ---- Tensors ---------------------------------------------------------------------------------------------------------


def _tensors(stored: Mapping[str, Weights], config: Mapping[str, Any], kind: Model) -> dict[str, Weights]:
    """The tensors as GGUF has them, in the order of the layers."""
    names = _names(kind.family)
    tied = config.get("share_embedding") or get(config, "tie_word_embeddings", bool, default=kind.tied)
    found: dict[tuple[int, ...], tuple[str, Weights]] = {}
    order = list(dict.fromkeys(names.values()))
    for name, weights in stored.items():
        if name.endswith(COMPUTED):
            continue
        known = re.fullmatch(r"(?:layers\.([0-9]{1,6})\.)?(.+)\.(weight|bias)", name.removeprefix("model."))
        part = names.get(known[2]) if known else None
        if not known or part is None:
            raise ModelFileError(name, f"this tensor is not part of a {config['model_type']} model as it is known here")
        if part == ABSENT_IF_TIED and tied:
            continue
        layer, suffix = int(known[1]) if known[1] else None, known[3]
        flag = "mlp_bias" if "ffn" in part else "attention_bias"
        if suffix == "bias" and not config.get(flag) and f"{part}_bias" not in FAMILIES[kind.family].has:
            raise ModelFileError(name, f"is a bias, but {CONFIG} does not say that the model has any ({flag})")
        full = f"{part}.{suffix}" if layer is None else f"blk.{layer}.{part}.{suffix}"
        place = (-1 if part == "token_embd" else len(stored) if layer is None else layer, order.index(part))
        key = (*place, suffix == "bias")
        if key in found:
            raise ModelFileError(name, f"is {full} in GGUF's words, and so is another tensor")
        found[key] = full, _changed(weights, part, kind.family, config)
    if not tied and "lm_head.weight" not in stored:
        raise ModelFileError("lm_head.weight", f"this tensor is missing, and {CONFIG} does not tie it to the embedding")
    return {name: weights for _, (name, weights) in sorted(found.items(), key=lambda item: item[0])}


def _changed(weights: Weights, part: str, family: str, config: Mapping[str, Any]) -> Weights:
    """A tensor in GGUF's numbers and order of rows."""
    if FAMILIES[family].scales_embedding and part.endswith("norm"):  # Gemma's
        return replace(weights.changed(lambda values: values + 1), type="F32")
    if not FAMILIES[family].halves and part in ("attn_q", "attn_k"):
        heads = config.get("num_key_value_heads") if part == "attn_k" else None
        heads = heads or config["num_attention_heads"]
        check_heads(part, weights.shape[0], heads)
        return weights.changed(lambda values: to_adjacent(values, heads))
    return weights


def check_heads(name: str, rows: int, heads: int) -> None:
    """Raise ``ModelFileError`` unless the rows are those of so many heads, each of an even number."""
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        raise ModelFileError(name, f"its {rows} rows are not {heads} heads of an even number each")


def to_adjacent(values: Array, heads: int) -> Array:
    """Sort the rows of q or k, or numbers of its bias, so that RoPE's pairs lie side by side in each head."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def to_halves(values: Array, heads: int) -> Array:
    """Undo `to_adjacent`."""
    return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


# ---- Writing ---------------------------------------------------------------------------------------------------------


def check_writable(config: Config) -> None:
    """Raise ``FabellaError`` unless a model can be written as a Llama or a Mistral: with all that it has."""
    if config.family != "llama":
        raise FabellaError(f"only models of the family llama can be written for transformers, not {config.family}")
    if config.repeats > 1:
        raise FabellaError("a model whose layers run more than once cannot be written for transformers")
    scaling = config.rope_scaling
    if scaling != NO_SCALING and (scaling.divisors or scaling.yarn_context):
        raise FabellaError("a model whose RoPE is scaled other than linearly cannot be written for transformers")
    if len(set(config.windows)) > 1 or config.attention_scale or config.rope_length:
        raise FabellaError("a model with such windows or scales cannot be written for transformers")
    plain = replace(Config(1, 1, 1, 1, 1, 1, 1, key_length=2))
    for name in ("embedding_scale", "residual_scale", "logit_scale", "attention_cap", "logit_cap"):
        if getattr(config, name) != getattr(plain, name):
            raise FabellaError(f"a Llama with {key_of(config, name)} cannot be written for transformers")


def write_huggingface(model: Portable, folder: Path, format: str) -> None:
    """Write a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load.

    Parameters
    ----------
    model
        A Llama.
    folder
        Empty.
    format
        Of the numbers: F32, F16 or BF16.

    Raises
    ------
    FabellaError
        The model cannot be written for transformers, or not in this format.
    OSError
        A file cannot be written.
    """
    config = model.config()
    check_writable(config)
    fields = _fields(config, model, format)
    tokenizer = model.tokenizer()
    ends = sorted(tokenizer.stop_ids - {tokenizer.bos_id} | {tokenizer.eos_id})
    numbers = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends if len(ends) > 1 else ends[0]}
    _write_json(folder / CONFIG, fields | numbers)
    _write_json(folder / "generation_config.json", numbers)
    write_tokenizer(tokenizer, folder, config.seq_len, model.metadata.get("tokenizer.chat_template"))
    write_weights(folder / ONE, dict(_contents(model, config, format)), {"format": "pt"})


def _fields(config: Config, model: Portable, format: str) -> dict[str, Any]:
    """config.json."""
    window = config.windows[0] if config.windows else None
    kind = "mistral" if window else "llama"
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    inverse = {number: key for key, number in NUMBERS.items()}
    fields: dict[str, Any] = {
        "architectures": ["MistralForCausalLM" if window else "LlamaForCausalLM"],
        "model_type": kind,
        **{inverse[name]: getattr(config, name) for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads")},
        "head_dim": config.head_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": None,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "torch_dtype": names[format],
    }
    if config.rope_scaling.factor != 1:
        factor = config.rope_scaling.factor
        fields["rope_scaling"] = {"rope_type": "linear", "type": "linear", "factor": factor}
    if window:
        fields["sliding_window"] = window
    for flag, parts in (("attention_bias", ("attn_q", "attn_k", "attn_v", "attn_output")), ("mlp_bias", FFN)):
        names_of = [f"blk.{layer}.{part}.bias" for layer in range(config.n_layers) for part in parts]
        there = [name for name in names_of if name in model.tensors]
        if there and (len(there) < len(names_of) or window):
            raise FabellaError(f"{there[0]}: transformers' {kind} models have no bias there alone")
        fields[flag] = bool(there)
    return fields


FFN = ("ffn_gate", "ffn_up", "ffn_down")


def _contents(
    model: Portable, config: Config, format: str
) -> Iterator[tuple[str, tuple[str, tuple[int, ...], Callable[[], bytes]]]]:
    """The tensors as transformers has them."""
    modules = {part: module for module, part in NAMES.items() if module not in ("mlp.gate_up_proj",)}
    for name, weights in model.tensors.items():
        *block, part, suffix = name.split(".")
        heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}.get(part)

        def content(name: str = name, weights: Weights = weights, heads: int | None = heads) -> bytes:
            values = weights.read()
            try:
                return quantize(to_halves(values, heads) if heads else values, format)
            except ValueError as error:
                raise FabellaError(f"{name}: {error}") from None

        module = f"layers.{block[1]}.{modules[part]}" if block else modules[part]
        full = f"{module}.{suffix}" if part == ABSENT_IF_TIED else f"model.{module}.{suffix}"
        yield full, (format, weights.shape, content)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    explain(__doc__)
