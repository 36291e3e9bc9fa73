"""Small random models of every family, made by transformers, and as GGUF files, as llama.cpp's converter makes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from fabella import vocabulary
from fabella.gguf import write_gguf

from .random_models import tokenizer

VOCABULARY = 320
ADJACENT = ("llama", "smollm3", "granite")  # families whose files have RoPE's pairs side by side
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# In families that norm what a block adds to the stream, the second norm is that of attention's output.
OUTPUT_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "attn_implementation": "eager",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA_BASE = BASE | {"head_dim": 24, "sliding_window": 8, "query_pre_attn_scalar": 24}


def rope(base: float = 10000.0, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_theta": base, "rope_type": kind, **more}


def llama(**changes: Any) -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**(BASE | {"tie_word_embeddings": False} | changes)))


LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG: dict[str, Any] = {
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.0 + 0.7 * i for i in range(8)],
}


def phi3(original: int = 256, **changes: Any) -> Any:
    return hf.Phi3ForCausalLM(hf.Phi3Config(**(BASE | changes), original_max_position_embeddings=original))


# Several shapes in each: GQA and one head, sizes that are no multiples of 4 or 16, heads of another size than width /
# heads, windows shorter and longer than the text.
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: llama(rope_parameters=rope(50000.0)),
    "llama tied": lambda: llama(tie_word_embeddings=True, num_key_value_heads=4),
    "llama odd": lambda: llama(hidden_size=30, intermediate_size=49, num_attention_heads=5, num_key_value_heads=1),
    "llama with heads of its own": lambda: llama(head_dim=24),
    "llama with biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama linear": lambda: llama(rope_parameters=rope(10000.0, "linear", factor=4.0)),
    "llama 3.1": lambda: llama(rope_parameters=rope(500000.0, "llama3", **LLAMA3)),
    "llama yarn": lambda: llama(rope_parameters=rope(10000.0, "yarn", factor=4.0, original_max_position_embeddings=64)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**BASE, sliding_window=8)),
    "mistral long window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**BASE, sliding_window=100, head_dim=24)),
    "smollm3": lambda: hf.SmolLM3ForCausalLM(
        hf.SmolLM3Config(**(BASE | {"num_hidden_layers": 8}), rope_parameters=rope(20000.0))
    ),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**BASE, rope_parameters=rope(1e6))),
    "qwen2 tied odd": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**(BASE | {"hidden_size": 36, "num_attention_heads": 6, "tie_word_embeddings": True}))
    ),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**BASE, head_dim=24, rope_parameters=rope(1e6))),
    "qwen3 odd": lambda: hf.Qwen3ForCausalLM(
        hf.Qwen3Config(**(BASE | {"num_attention_heads": 3, "num_key_value_heads": 1}), head_dim=10)
    ),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**BASE, head_dim=24)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**(GEMMA_BASE | {"num_hidden_layers": 4}))),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**(GEMMA_BASE | {"num_hidden_layers": 7}))),
    "gemma3 linear": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **(GEMMA_BASE | {"num_hidden_layers": 7, "sliding_window": 33}),
            rope_parameters={
                "full_attention": rope(1e6, "linear", factor=8.0),
                "sliding_attention": rope(10000.0),
            },
        )
    ),
    "phi3": lambda: phi3(rope_parameters=rope()),
    "phi3 partial": lambda: phi3(
        partial_rotary_factor=0.75, rope_parameters=rope(kind="default", partial_rotary_factor=0.75)
    ),
    "phi3 long": lambda: phi3(
        32, rope_parameters=rope(kind="longrope", original_max_position_embeddings=32, factor=8.0, **LONG)
    ),
    "phi3 short": lambda: phi3(
        256, rope_parameters=rope(kind="longrope", original_max_position_embeddings=256, factor=1.0, **LONG)
    ),
    "granite": lambda: hf.GraniteForCausalLM(
        hf.GraniteConfig(
            **BASE, attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.3, logits_scaling=1.7
        )
    ),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**BASE)),
    "olmo3 yarn": lambda: hf.Olmo3ForCausalLM(
        hf.Olmo3Config(
            **(BASE | {"num_hidden_layers": 5}),
            sliding_window=8,
            rope_parameters=rope(
                10000.0, "yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.3
            ),
        )
    ),
    "olmo3": lambda: hf.Olmo3ForCausalLM(hf.Olmo3Config(**(BASE | {"num_hidden_layers": 5}), sliding_window=8)),
}


def make(name: str) -> Any:
    """A model with random weights. Norms and biases are random, too: ones and zeros would hide mistakes."""
    torch.manual_seed(0)
    model = MODELS[name]().float().eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return model


def family_of(model: Any) -> str:
    """What GGUF calls the model's family."""
    kind = model.config.model_type
    return {"mistral": "llama", "gemma3_text": "gemma3", "olmo3": "olmo2"}.get(kind, kind)


def write(model: Any, path: Path, **more: Any) -> Path:
    """Write the model as a GGUF file with F32 weights; `more` is metadata besides."""
    family = family_of(model)
    tensors = _tensors(model, family)
    extra, rope_tensors = _rope(model.config, family)
    metadata = {"general.architecture": family} | _numbers(model.config, family) | extra | more
    metadata |= vocabulary.describe(tokenizer(VOCABULARY))
    parts = [
        (name, "F32", tuple(t.shape), t.detach().numpy().tobytes()) for name, t in (tensors | rope_tensors).items()
    ]
    write_gguf(path, metadata, parts)
    return path


def _tensors(model: Any, family: str) -> dict[str, torch.Tensor]:
    c = model.config
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    names = NAMES | (OUTPUT_NORMS if family in ("gemma2", "gemma3", "olmo2") else {})
    tensors = {}
    for name, values in model.state_dict().items():
        *module, suffix = name.removeprefix("model.").split(".")
        block = f"blk.{module[1]}." if module[0] == "layers" else ""
        kind = names[".".join(module[2:] if block else module)]
        if kind == "output" and c.tie_word_embeddings:
            continue
        if family.startswith("gemma") and kind.endswith("norm"):
            values = values + 1
        if family in ADJACENT and kind in ("attn_q", "attn_k"):
            halves = values.reshape(-1, 2, head // 2, *values.shape[1:])
            values = halves.transpose(1, 2).reshape(values.shape)
        tensors[f"{block}{kind}.{suffix}"] = values.contiguous()
    return tensors


def _numbers(c: Any, family: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
    }
    if getattr(c, "head_dim", None):
        numbers |= {"attention.key_length": c.head_dim, "attention.value_length": c.head_dim}
    if getattr(c, "sliding_window", None) and family != "qwen2":
        numbers["attention.sliding_window"] = c.sliding_window
    if c.model_type == "olmo3":
        numbers["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in c.layer_types]
    if family == "granite":
        numbers |= {
            "embedding_scale": c.embedding_multiplier,
            "attention.scale": c.attention_multiplier,
            "residual_scale": c.residual_multiplier,
            "logit_scale": c.logits_scaling,
        }
    if family == "gemma2":
        numbers |= {
            "attn_logit_softcapping": c.attn_logit_softcapping,
            "final_logit_softcapping": c.final_logit_softcapping,
        }
    return {f"{family}.{key}": value for key, value in numbers.items()}


def _rope(c: Any, family: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the file says of RoPE: metadata and tensors."""
    parameters = c.rope_parameters
    parameters = parameters.get("full_attention", parameters)
    key, kind = f"{family}.rope.", parameters["rope_type"]
    metadata: dict[str, Any] = {f"{key}freq_base": float(parameters["rope_theta"])}
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    size = int(head * parameters.get("partial_rotary_factor", 1.0))
    if size != head:
        metadata[f"{key}dimension_count"] = size
    if kind in ("linear", "yarn"):
        metadata |= {f"{key}scaling.type": kind, f"{key}scaling.factor": parameters["factor"]}
    if kind in ("yarn", "longrope"):
        metadata[f"{key}scaling.original_context_length"] = parameters["original_max_position_embeddings"]
    if kind == "yarn" and parameters.get("attention_factor"):
        metadata[f"{key}scaling.attn_factor"] = parameters["attention_factor"]
    if kind == "longrope":
        original = parameters["original_max_position_embeddings"]
        ratio = c.max_position_embeddings / original
        metadata[f"{key}scaling.attn_factor"] = math.sqrt(1 + math.log(ratio) / math.log(original))
        factors = {name: torch.tensor(parameters[f"{name}_factor"]) for name in ("long", "short")}
        return metadata, {f"rope_factors_{name}.weight": values for name, values in factors.items()}
    if kind == "llama3":
        return metadata, {"rope_freqs.weight": _llama3_divisors(size, parameters)}
    return metadata, {}


def _llama3_divisors(size: int, parameters: dict[str, Any]) -> torch.Tensor:
    """Pairs that turn often in the original context stay as they are; the slowest have their angles divided."""
    frequencies = parameters["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    turns = parameters["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - kept) / parameters["factor"] + kept)).float()
