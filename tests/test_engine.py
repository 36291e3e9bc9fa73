"""The wasm engine against the torch reference, and against itself: the same bits however the tokens are cut."""

from __future__ import annotations

import math
import struct
from array import array
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fabella.engine import Engine, Logits
from fabella.errors import EngineError, ModelFileError
from fabella.gguf import read_gguf
from fabella.hosts import WasmtimeHost
from fabella.modelfile import LARGEST, BytesSource, Config
from train.export import load_gguf

from .random_models import load, write_random_model

BASE = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=80)

# Heads, key/value heads, and sizes that are and are not multiples of 4, 16, 32 and 64; F32 only, unless all rows are
# multiples of 32 long.
GRID = [
    BASE,
    Config(dim=2, hidden_dim=1, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=3, seq_len=5),
    Config(dim=12, hidden_dim=20, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=3, seq_len=40),
    Config(dim=30, hidden_dim=50, n_layers=1, n_heads=5, n_kv_heads=5, vocab_size=33, seq_len=70),
    Config(dim=36, hidden_dim=97, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=259, seq_len=48),
    Config(dim=66, hidden_dim=31, n_layers=1, n_heads=3, n_kv_heads=1, vocab_size=1000, seq_len=33),
    Config(dim=32, hidden_dim=32, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=17, seq_len=300),
    Config(dim=96, hidden_dim=64, n_layers=3, n_heads=4, n_kv_heads=4, vocab_size=97, seq_len=64),
    Config(dim=128, hidden_dim=352, n_layers=2, n_heads=8, n_kv_heads=2, vocab_size=5000, seq_len=64),
    replace(BASE, rope_base=500000.0, norm_eps=1e-3),
    replace(BASE, n_kv_heads=1, n_layers=5),
]


def name_of(config: Config) -> str:
    c = config
    return f"{c.dim}x{c.hidden_dim}x{c.n_layers}-{c.n_heads}/{c.n_kv_heads}-{c.vocab_size}"


def some_tokens(config: Config, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, config.seq_len).tolist()


def bits(logits: Logits) -> bytes:
    return logits.to_array().tobytes()


def fits_q8_0(config: Config) -> bool:
    return config.dim % 32 == 0 and config.hidden_dim % 32 == 0


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("config", "type"),
    [pytest.param(config, "F32", id=f"{name_of(config)}-F32") for config in GRID]
    + [pytest.param(config, "Q8_0", id=f"{name_of(config)}-Q8_0") for config in GRID if fits_q8_0(config)]
    + [pytest.param(config, "mixed", id=f"{name_of(config)}-mixed") for config in (BASE, replace(BASE, hidden_dim=99))],
)
def test_agrees_with_torch_and_prefill_with_decode(config: Config, type: str, tied: bool, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", config, tied=tied, type=type)
    engine, _ = load(path)
    reference, _ = load_gguf(path)
    tokens = some_tokens(config)
    with torch.no_grad():
        expected = reference.eval()(torch.tensor([tokens]))[0].numpy()

    one_by_one = []
    for position, token in enumerate(tokens):
        logits = engine.forward(token)
        one_by_one.append(bits(logits))
        error = np.abs(np.asarray(logits.to_array()) - expected[position])
        # Q8_0 rounds its activations to 8 bits too, which torch does not: an error of a hundredth of the logits'
        # spread on average. F32 differs only in the order of additions.
        if type == "F32":
            assert error.max() < 5e-5
        else:
            assert error.mean() < 0.06
            assert error.max() < 0.4

    for cut in (len(tokens), 33, 32, 7):
        engine.rewind(0)
        for start, end in pairwise([*range(0, len(tokens), cut), len(tokens)]):
            assert bits(engine.prefill(tokens[start:end])) == one_by_one[end - 1]


def test_rewinding_forgets_what_came_after(tmp_path: Path) -> None:
    engine, _ = load(write_random_model(tmp_path / "model.gguf", BASE))
    tokens = some_tokens(BASE)
    engine.prefill(tokens[:50])
    engine.rewind(20)
    engine.prefill(tokens[60:70])
    again = bits(engine.forward(5))
    engine.rewind(0)
    assert bits(engine.prefill([*tokens[:20], *tokens[60:70], 5])) == again


def test_the_context_ends_with_an_error_and_can_be_rewound(tmp_path: Path) -> None:
    engine, _ = load(write_random_model(tmp_path / "model.gguf", BASE))
    first = bits(engine.prefill(some_tokens(BASE)))
    with pytest.raises(EngineError, match="80 of 80 positions"):
        engine.forward(1)
    engine.rewind(79)
    assert bits(engine.forward(some_tokens(BASE)[79])) == first
    with pytest.raises(EngineError, match="cannot rewind"):
        engine.rewind(81)


@pytest.mark.parametrize("token", [-1, BASE.vocab_size, 2**31 - 1, 2**31, 2**32])
def test_a_token_outside_the_vocabulary_is_an_error(token: int, tmp_path: Path) -> None:
    engine, _ = load(write_random_model(tmp_path / "model.gguf", BASE))
    with pytest.raises(EngineError, match="outside the vocabulary"):
        engine.prefill([1, token])
    engine.rewind(0)
    engine.forward(1)


@pytest.mark.parametrize("type", ["F32", "Q8_0"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_names_its_tensor(type: str, value: float, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", BASE, type=type)
    data = bytearray(path.read_bytes())
    tensor = read_gguf(BytesSource(bytes(data))).tensors["blk.1.ffn_down.weight"]
    # The second block's scale in Q8_0, the second number in F32.
    layout, at = ("<f", tensor.offset + 4) if type == "F32" else ("<e", tensor.offset + 34)
    struct.pack_into(layout, data, at, value)
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="not a finite number") as raised:
        load(path)
    assert raised.value.field == "blk.1.ffn_down.weight"


def test_a_story_that_overflows_does_not_spoil_the_next(tmp_path: Path) -> None:
    """Token 3 alone has a first channel, by which the feed-forward overflows; 6 channels leave 2 of padding."""
    config = Config(dim=6, hidden_dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=5, seq_len=9)
    path = write_random_model(tmp_path / "model.gguf", config)
    data = bytearray(path.read_bytes())
    tensors = read_gguf(BytesSource(bytes(data))).tensors

    def put(name: str, values: np.ndarray) -> None:
        tensor = tensors[name]
        data[tensor.offset : tensor.offset + tensor.size] = values.astype("<f4").tobytes()

    embedding = np.random.default_rng(0).standard_normal((5, 6))
    embedding[:, 0] = 0
    embedding[3] = [1, 0, 0, 0, 0, 0]
    explosive = np.zeros((8, 6))
    explosive[:, 0] = 1e25
    put("token_embd.weight", embedding)
    put("blk.0.attn_output.weight", np.zeros((6, 6)))
    put("blk.0.ffn_gate.weight", explosive)
    put("blk.0.ffn_up.weight", explosive)
    put("blk.0.ffn_down.weight", np.ones((6, 8)))
    path.write_bytes(data)

    engine, _ = load(path)
    expected = bits(engine.prefill([1, 2]))
    engine.rewind(0)
    assert not any(map(math.isfinite, engine.prefill([3]).to_array()))
    engine.rewind(0)
    assert bits(engine.prefill([1, 2])) == expected


def test_a_refused_model_leaves_no_memory_behind(tmp_path: Path) -> None:
    data = bytearray(write_random_model(tmp_path / "model.gguf", BASE).read_bytes())
    model = read_gguf(BytesSource(bytes(data)))
    last = max(model.tensors.values(), key=lambda tensor: tensor.offset)
    struct.pack_into("<f", data, last.offset, math.nan)
    host = WasmtimeHost()
    pointers = set()
    for _ in range(20):
        with pytest.raises(ModelFileError):
            Engine(host, model, BytesSource(bytes(data)))
        pointers.add(host.allocate(100_000))
        host.release(max(pointers))
    assert len(pointers) < 5


def test_the_largest_context_is_one_that_c_takes(tmp_path: Path) -> None:
    """And costs no memory before it is used."""
    path = write_random_model(tmp_path / "model.gguf", replace(BASE, seq_len=LARGEST["seq_len"]))
    engine, _ = load(path)
    engine.prefill([1, 2, 3])
    assert engine.host.allocate(1000) < 16 << 20  # the memory that the module starts with
    with pytest.raises(ModelFileError, match="seq_len"):
        replace(BASE, seq_len=LARGEST["seq_len"] + 1)


def test_memory_that_cannot_be_had_is_an_error() -> None:
    host = WasmtimeHost()
    for size in (2**32 - 1, 2**32, 2**40):
        with pytest.raises(EngineError, match="out of memory"):
            host.allocate(size)


def test_closing_gives_the_memory_back(tmp_path: Path) -> None:
    data = write_random_model(tmp_path / "model.gguf", BASE).read_bytes()
    model = read_gguf(BytesSource(data))
    host = WasmtimeHost()
    pointers = set()
    for _ in range(20):
        engine = Engine(host, model, BytesSource(data))
        engine.prefill([1, 2, 3])
        engine.close()
        pointers.add(host.allocate(100_000))
        host.release(max(pointers))
    assert len(pointers) < 5  # a leak would push them further and further up


# --- what the sampler asks of the logits -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    config = replace(BASE, vocab_size=1003)
    engine, _ = load(write_random_model(tmp_path_factory.mktemp("models") / "model.gguf", config))
    engine.forward(1)
    return engine


def with_logits(engine: Engine, values: np.ndarray) -> Logits:
    """Logits of our own choice, written over the engine's."""
    pointer = engine.host.function("model_logits")(engine._model)
    engine.host.write(pointer, values.astype(np.float32).tobytes())
    return Logits(engine)


def random_logits(seed: int, spread: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(1003) * spread).astype(np.float32)


@pytest.mark.parametrize("k", [0, 1, 2, 40, 1002, 1003, 5000])
def test_shortlist_is_the_head_of_a_stable_sort(engine: Engine, k: int) -> None:
    values = np.round(random_logits(k), 0)  # many equals
    order = np.argsort(-values, kind="stable")[:k]
    expected = [(int(token), float(values[token])) for token in order]
    assert with_logits(engine, values).shortlist(k) == expected


def test_logits_that_are_no_numbers_are_left_out(engine: Engine) -> None:
    values = random_logits(3)
    values[::3] = np.nan
    values[1::3] = np.inf
    values[5] = -np.inf
    finite = np.isfinite(values)
    logits = with_logits(engine, values)
    order = [int(token) for token in np.argsort(-values, kind="stable") if finite[token]]
    assert [token for token, _ in logits.shortlist(1003)] == order
    expected = np.log(np.exp(values[finite].astype(np.float64) / 0.7).sum())
    assert logits.log_sum_exp(0.7) == pytest.approx(expected, rel=1e-6)
    assert all(finite[logits.draw(1.0, coin)] for coin in np.linspace(0, 0.9999, 50))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_finite_logit_at_all_is_an_error(engine: Engine, value: float) -> None:
    logits = with_logits(engine, np.full(1003, value))
    for ask in (lambda: logits.shortlist(1), lambda: logits.log_sum_exp(1.0), lambda: logits.draw(1.0, 0.5)):
        with pytest.raises(EngineError, match="no logit is a finite number"):
            ask()


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0, 100.0])
def test_log_sum_exp_and_draw_are_those_of_the_whole_vocabulary(engine: Engine, temperature: float) -> None:
    values = random_logits(11)
    logits = with_logits(engine, values)
    scaled = values.astype(np.float64) / temperature
    expected = scaled.max() + np.log(np.exp(scaled - scaled.max()).sum())
    assert logits.log_sum_exp(temperature) == pytest.approx(expected, rel=2e-6, abs=2e-6)
    running = np.cumsum(np.exp(scaled - expected))
    for coin in np.linspace(0, 0.99, 200):
        token = logits.draw(temperature, coin)
        assert running[token] > coin - 1e-5
        assert token == 0 or running[token - 1] <= coin + 1e-5


def test_all_equal_logits_are_drawn_evenly(engine: Engine) -> None:
    logits = with_logits(engine, np.zeros(1003))
    assert [logits.draw(1.0, (token + 0.5) / 1003) for token in range(1003)] == list(range(1003))
    assert logits.shortlist(3) == [(0, 0.0), (1, 0.0), (2, 0.0)]


def test_equal_huge_logits_are_drawn_evenly(engine: Engine) -> None:
    values = np.full(1003, -1e30)
    values[[3, 8]] = 1e30
    logits = with_logits(engine, values)
    assert [logits.draw(1e-3, coin) for coin in (0, 0.49, 0.51, 0.99)] == [3, 3, 8, 8]


def test_huge_and_tiny_logits_do_not_overflow(engine: Engine) -> None:
    values = np.full(1003, -1e38)
    values[7] = 3e38
    logits = with_logits(engine, values)
    assert logits.draw(1.0, 0.999) == 7
    assert logits.draw(1e-3, 0.0) == 7


def test_to_array_has_the_logits_type(engine: Engine) -> None:
    values = random_logits(5)
    copy = with_logits(engine, values).to_array()
    assert isinstance(copy, array)
    assert copy.typecode == "f"
    assert np.array_equal(np.asarray(copy), values)
