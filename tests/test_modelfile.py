"""What holds for a model file whatever its format."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fabella.architectures import check_tensors, expected_shapes, parameter_count
from fabella.errors import FabellaError, ModelFileError
from fabella.formats import FLOATS, FORMATS
from fabella.modelfile import Config, Tensor
from fabella.sources import BytesSource, FileSource

CONFIG = Config(dim=16, hidden_dim=24, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=10, seq_len=8)


def test_derived_sizes() -> None:
    assert (CONFIG.head_size, CONFIG.kv_dim) == (4, 8)
    assert (CONFIG.rope_base, CONFIG.norm_eps) == (10000.0, 1e-5)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        *((field, {field: 0}) for field in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")),
        ("seq_len", {"seq_len": -1}),
        ("dim", {"dim": 1 << 40}),
        ("dim", {"dim": 16.0}),
        ("n_layers", {"n_layers": True}),
        ("n_heads", {"n_heads": 3}),
        ("n_heads", {"n_heads": 16, "n_kv_heads": 16}),
        ("n_kv_heads", {"n_kv_heads": 3}),
        ("n_kv_heads", {"n_kv_heads": 8}),
        ("rope_base", {"rope_base": math.nan}),
        ("rope_base", {"rope_base": math.inf}),
        ("rope_base", {"rope_base": 0.0}),
        ("rope_base", {"rope_base": "10000"}),
        ("norm_eps", {"norm_eps": -1e-5}),
        ("norm_eps", {"norm_eps": 2.0}),
        ("norm_eps", {"norm_eps": None}),
        ("norm_eps", {"norm_eps": True}),
    ],
)
def test_impossible_config(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError) as caught:
        dataclasses.replace(CONFIG, **values)
    assert caught.value.field == field
    assert str(caught.value) == f"{field}: {caught.value.problem}"
    assert isinstance(caught.value, FabellaError)


def tensors(tied: bool = True, type: str = "F32") -> dict[str, Tensor]:
    return {
        name: Tensor(name, type if len(shape) == 2 else "F32", shape, 0, 0)
        for name, shape in expected_shapes(replace(CONFIG, tied=tied)).items()
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("type", FORMATS)
def test_right_tensors(tied: bool, type: str) -> None:
    check_tensors(replace(CONFIG, tied=tied), tensors(tied, type))


@pytest.mark.parametrize("type", FLOATS)
def test_norms_may_be_halves(type: str) -> None:
    norms = {t.name: Tensor(t.name, type, t.shape, 0, 0) for t in tensors().values() if len(t.shape) == 1}
    check_tensors(CONFIG, tensors() | norms)


def test_a_tied_model_has_no_matrix_for_the_output() -> None:
    config = replace(CONFIG, tied=False)
    assert expected_shapes(config).keys() - expected_shapes(CONFIG).keys() == {"output.weight"}
    assert expected_shapes(config, tied=True) == expected_shapes(CONFIG)


def test_parameter_count() -> None:
    layer = 16 + 2 * 16 * 16 + 2 * 8 * 16 + 16 + 3 * 16 * 24
    assert parameter_count(tensors()) == 10 * 16 + 2 * layer + 16
    assert parameter_count(tensors(tied=False)) == 2 * 10 * 16 + 2 * layer + 16


def test_each_tensor_is_needed() -> None:
    for name in tensors():
        left = tensors()
        del left[name]
        with pytest.raises(ModelFileError, match="missing") as caught:
            check_tensors(CONFIG, left)
        assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blk.2.attn_q.weight", "not part of"),
        ("blk.00.attn_q.weight", "not part of"),
        ("strange", "not part of"),
        ("blk.0.attn_norm.bias", "norms that have a bias"),
        ("blk.2.attn_q.bias", "not part of"),
        ("rope_freqs.weight", r"shape \(2,\)"),
        ("blk.0.ffn_gate_inp.weight", "mixture-of-experts"),
        ("blk.0.attn_q_norm.weight", "not part of a llama model"),
    ],
)
def test_no_strangers(name: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        check_tensors(CONFIG, tensors() | {name: Tensor(name, "F32", (16,), 0, 0)})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (Tensor("blk.1.attn_k.weight", "F32", (16, 8), 0, 0), r"shape \(16, 8\)"),
        (
            Tensor("blk.1.attn_k.weight", "Q2_K", (8, 16), 0, 0),
            "must be one of F32, F16, BF16, Q8_0, Q5_0, Q4_0, Q4_1, Q5_1",
        ),
        (Tensor("output_norm.weight", "Q8_0", (16,), 0, 0), "must be one of F32, F16, BF16"),
        (Tensor("blk.0.attn_norm.weight", "I8", (16,), 0, 0), "must be one of F32, F16, BF16"),
    ],
)
def test_wrong_tensor(changed: Tensor, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        check_tensors(CONFIG, tensors() | {changed.name: changed})
    assert caught.value.field == changed.name


def test_sources(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with FileSource(path) as file:
        for source in (file, BytesSource(b"0123456789")):
            assert source.size == 10
            assert source.read(3, 4) == b"3456"
            assert source.read(0, 10) == b"0123456789"
    with pytest.raises(ValueError, match="closed"):
        file.read(0, 1)
