"""The same Llama as an ONNX graph, 8 bits dynamically quantised, as transformers.js calls "q8".

Weights are int8 with a scale for each output (per channel), activations uint8 with a scale found on the way, as ONNX
Runtime's ``quantize_dynamic`` makes them. The graph is written in the fused operators at which ONNX Runtime's own
optimizer and its model builder arrive (GroupQueryAttention with rotary embedding and KV cache,
SkipSimplifiedLayerNormalization, MatMulIntegerToFloat), so the peer is at its best. Logits are computed for the last
position alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabella.modelfile import Config

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators


class Graph:
    """An ONNX graph in the making."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper = helper
        self._from_array = numpy_helper.from_array
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(self._from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, type: str, inputs: list[str], output: str, others: tuple[str, ...] = (), **attributes: Any) -> str:
        """Add an operator; return the name of its first output."""
        self.nodes.append(self._helper.make_node(type, inputs, [output, *others], name=output, **attributes))
        return output

    def quantized_input(self, x: str) -> tuple[str, str, str]:
        names = (f"{x}/int8", f"{x}/scale", f"{x}/zero")
        self.node("DynamicQuantizeLinear", [x], names[0], names[1:])
        return names

    def matmul(self, x: tuple[str, str, str], name: str, weight: NDArray[np.float32]) -> str:
        """x [.., columns] times weight [rows, columns]."""
        numbers, scales = quantize_rows(weight)
        b, s = self.constant(f"{name}/weight", numbers.T), self.constant(f"{name}/scales", scales)
        zero = self.constant(f"{name}/zeros", np.zeros(len(scales), np.int8))
        return self.node("MatMulIntegerToFloat", [x[0], b, x[1], s, x[2], zero], name, domain=MICROSOFT)


def quantize_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights [rows, columns] as int8 with one scale for each row."""
    scales = np.maximum(np.abs(weight).max(axis=1), 1e-12) / np.float32(127)
    return np.rint(weight / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def write_onnx(folder: Path, config: Config, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Write ``onnx/model_quantized.onnx`` and the ``config.json`` by which transformers.js knows it. Tied models only.

    Inputs: input_ids and attention_mask, int64 [batch, positions], past_key_values.N.key and .value
    [batch, n_kv_heads, past, head_size]. Outputs: logits [batch, 1, vocab_size], present.N.key and .value.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = Graph()
    eps, last = config.norm_eps, config.n_layers - 1

    numbers, scales = quantize_rows(weights["token_embd.weight"])
    embedding = graph.constant("embedding/weight", numbers)
    rows = graph.node("Cast", [graph.node("Gather", [embedding, "input_ids"], "rows")], "rows/float", to=1)
    row_scales = graph.node("Gather", [graph.constant("embedding/scales", scales[:, None]), "input_ids"], "rows/scales")
    x = graph.node("Mul", [rows, row_scales], "x")

    mask_sum = graph.node("ReduceSum", ["attention_mask", graph.constant("one/axis", np.array([1]))], "sum", keepdims=0)
    before = graph.node("Sub", [mask_sum, graph.constant("one", np.array(1))], "before")
    lengths = graph.node("Cast", [before], "lengths", to=TensorProto.INT32)
    mask_shape = graph.node("Shape", ["attention_mask"], "mask_shape")
    total_64 = graph.node("Gather", [mask_shape, "one"], "total_64")
    total = graph.node("Cast", [total_64], "total", to=TensorProto.INT32)

    positions = np.arange(1024)[:, None]  # beyond what the benchmark computes
    angles = positions / config.rope_base ** (np.arange(0, config.head_size, 2) / config.head_size)
    cosines = graph.constant("cosines", np.cos(angles).astype(np.float32))
    sines = graph.constant("sines", np.sin(angles).astype(np.float32))

    for layer in range(config.n_layers):
        of = f"blk.{layer}."
        norm_weight = graph.constant(f"{of}attn_norm", weights[f"{of}attn_norm.weight"])
        if layer == 0:
            normed = graph.node("SimplifiedLayerNormalization", [x, norm_weight], f"{of}normed", axis=-1, epsilon=eps)
        else:
            normed, x = _skip_norm(graph, x, f"blk.{layer - 1}.ffn_down", norm_weight, f"{of}normed", eps)
        inputs = graph.quantized_input(normed)
        q, k, v = (graph.matmul(inputs, of + name, weights[f"{of}{name}.weight"]) for name in QKV)
        past = [f"past_key_values.{layer}.{name}" for name in ("key", "value")]
        attended = graph.node(
            "GroupQueryAttention",
            [q, k, v, *past, lengths, total, cosines, sines],
            f"{of}attended",
            (f"present.{layer}.key", f"present.{layer}.value"),
            domain=MICROSOFT,
            num_heads=config.n_heads,
            kv_num_heads=config.n_kv_heads,
            do_rotary=1,
            rotary_interleaved=1,
        )
        graph.matmul(graph.quantized_input(attended), f"{of}attn_output", weights[f"{of}attn_output.weight"])
        norm_weight = graph.constant(f"{of}ffn_norm", weights[f"{of}ffn_norm.weight"])
        normed, x = _skip_norm(graph, x, f"{of}attn_output", norm_weight, f"{of}ffn_normed", eps)
        inputs = graph.quantized_input(normed)
        gate, up = (graph.matmul(inputs, of + name, weights[f"{of}{name}.weight"]) for name in ("ffn_gate", "ffn_up"))
        sigmoid = graph.node("Sigmoid", [gate], f"{of}sigmoid")
        silu = graph.node("Mul", [gate, sigmoid], f"{of}silu")
        product = graph.node("Mul", [silu, up], f"{of}product")
        graph.matmul(graph.quantized_input(product), f"{of}ffn_down", weights[f"{of}ffn_down.weight"])

    norm_weight = graph.constant("output_norm", weights["output_norm.weight"])
    normed, _ = _skip_norm(graph, x, f"blk.{last}.ffn_down", norm_weight, "normed", eps)
    ends = [graph.constant(f"last/{name}", np.array([number])) for name, number in LAST.items()]
    final = graph.quantized_input(graph.node("Slice", [normed, *ends], "last"))
    output = graph.node("Transpose", [embedding], "output/weight", perm=[1, 0])  # done once, when the session is made
    output_scales = graph.constant("output/scales", scales)
    zeros = graph.constant("output/zeros", np.zeros(config.vocab_size, np.int8))
    output_inputs = [final[0], output, final[1], output_scales, final[2], zeros]
    graph.node("MatMulIntegerToFloat", output_inputs, "logits", domain=MICROSOFT)

    def value(name: str, type: int, shape: list[str | int]) -> Any:
        return helper.make_tensor_value_info(name, type, shape)

    caches = [(layer, name) for layer in range(config.n_layers) for name in ("key", "value")]
    cache_shape: list[str | int] = ["batch_size", config.n_kv_heads, "past_sequence_length", config.head_size]
    present_shape: list[str | int] = ["batch_size", config.n_kv_heads, "total_sequence_length", config.head_size]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "llama",
            [
                value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
                value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
                *(value(f"past_key_values.{layer}.{n}", TensorProto.FLOAT, cache_shape) for layer, n in caches),
            ],
            [
                value("logits", TensorProto.FLOAT, ["batch_size", 1, config.vocab_size]),
                *(value(f"present.{layer}.{n}", TensorProto.FLOAT, present_shape) for layer, n in caches),
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=8,
    )
    (folder / "onnx").mkdir(parents=True)
    onnx.save(model, str(folder / "onnx/model_quantized.onnx"))
    (folder / "config.json").write_text(json.dumps(transformers_config(config)), encoding="utf-8")


QKV = ("attn_q", "attn_k", "attn_v")
LAST = {"start": -1, "end": np.iinfo(np.int64).max, "axis": 1}


def _skip_norm(graph: Graph, x: str, added: str, weight: str, name: str, eps: float) -> tuple[str, str]:
    """The norm of x + added, and that sum."""
    summed = f"{name}/sum"
    skip = "SkipSimplifiedLayerNormalization"
    graph.node(skip, [x, added, weight], name, ("", "", summed), domain=MICROSOFT, epsilon=eps)
    return name, summed


def transformers_config(config: Config) -> dict[str, Any]:
    """The model's ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_len,
        "rope_theta": config.rope_base,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
