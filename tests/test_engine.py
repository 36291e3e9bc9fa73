"""The wasm engine against the torch reference, and against itself: the same bits however the tokens are cut."""

from __future__ import annotations

import math
import struct
import tracemalloc
from array import array
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import wasmtime

from fabella.engine import LOADED_AT_ONCE, READY, Engine, Logits
from fabella.errors import EngineError, ModelFileError
from fabella.formats import FLOATS, QUANTISED, STORED
from fabella.gguf import read_gguf
from fabella.hosts import WasmtimeHost, packaged_wasm
from fabella.modelfile import LARGEST, Config
from fabella.sampler import SHORTLIST
from fabella.sources import BytesSource, FileSource
from train.load import load_gguf

from .random_models import load, write_as_f32, write_random_model

BASE = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=80)

# Heads, key/value heads, and sizes that are and are not multiples of 4, 16, 32 and 64. The quantised types need rows of
# a multiple of 32.
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


def types_for(config: Config) -> list[str]:
    """The types in which a model of this shape is tested: Q8_0 in every shape, all of them in two."""
    if config.dim % 32 or config.hidden_dim % 32:
        return ["F32"]
    return [*STORED, "mixed"] if config in (BASE, GRID[8]) else ["F32", "Q8_0"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("config", "type"),
    [pytest.param(config, type, id=f"{name_of(config)}-{type}") for config in GRID for type in types_for(config)]
    + [pytest.param(replace(BASE, hidden_dim=99), "mixed", id="odd-mixed")],
)
def test_agrees_with_torch_and_prefill_with_decode(config: Config, type: str, tied: bool, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", replace(config, tied=tied), type=type)
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
        # Quantised weights meet activations rounded to 8 bits, which torch does not do: an error of a hundredth of the
        # logits' spread on average. The others differ only in the order of additions.
        if type not in QUANTISED and type != "mixed":
            assert error.max() < 5e-5
        else:
            assert error.mean() < 0.06
            assert error.max() < 0.4

    for cut in (len(tokens), 33, 32, 7):
        engine.rewind(0)
        for start, end in pairwise([*range(0, len(tokens), cut), len(tokens)]):
            assert bits(engine.prefill(tokens[start:end])) == one_by_one[end - 1]


LONG = Config(dim=64, hidden_dim=96, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=4096)


def test_a_long_context_agrees_with_torch_and_prefill_with_decode(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "long.gguf", LONG)
    engine, _ = load(path)
    reference, _ = load_gguf(path)
    tokens = some_tokens(LONG)
    with torch.no_grad():
        expected = reference.eval()(torch.tensor([tokens]))[0].numpy()
    one_by_one = [bits(engine.forward(token)) for token in tokens]
    error = np.abs(np.frombuffer(b"".join(one_by_one), np.float32).reshape(expected.shape) - expected)
    assert error.max() < 5e-5
    for cut in (LONG.seq_len, 1500):
        engine.rewind(0)
        for start, end in pairwise([*range(0, LONG.seq_len, cut), LONG.seq_len]):
            assert bits(engine.prefill(tokens[start:end])) == one_by_one[end - 1]


class Metered(WasmtimeHost):
    """Counts what run.wasm executes, in wasmtime's fuel: about one for each instruction, the same on any machine."""

    TANK = 1 << 62

    def __init__(self) -> None:
        config = wasmtime.Config()
        config.consume_fuel = True
        engine = wasmtime.Engine(config)
        self._store = wasmtime.Store(engine)
        self._store.set_fuel(self.TANK)
        module = wasmtime.Module(engine, packaged_wasm())
        grown = wasmtime.Func(self._store, wasmtime.FuncType([wasmtime.ValType.i32()], []), lambda _index: None)
        self._exports = wasmtime.Instance(self._store, module, [grown] * len(module.imports)).exports(self._store)
        memory = self._exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self._memory = memory
        self.function("_initialize")()

    def used(self) -> int:
        """Fuel since the last call."""
        used = self.TANK - self._store.get_fuel()
        self._store.set_fuel(self.TANK)
        return used


def test_in_a_long_context_a_token_takes_work_in_proportion_to_its_position(tmp_path: Path) -> None:
    """Only attention grows: twice as far, a token takes twice the work at most, and all that came before four times."""
    host = Metered()
    with FileSource(write_random_model(tmp_path / "long.gguf", LONG)) as source:
        engine = Engine(host, read_gguf(source), source)
    tokens = some_tokens(LONG)

    def measure(positions: int) -> tuple[int, int]:
        """The work of reading so many tokens, and that of the next one."""
        engine.rewind(0)
        host.used()
        engine.prefill(tokens[:positions])
        reading = host.used()
        engine.forward(tokens[positions])
        return reading, host.used()

    measured = [measure(positions) for positions in (1000, 2000, 4000)]  # growing caches included
    for (near_reading, near_decoding), (far_reading, far_decoding) in pairwise(measured):
        assert near_decoding < far_decoding < 2 * near_decoding
        assert near_reading < far_reading < 4 * near_reading


@pytest.mark.parametrize("type", ["F16", "BF16"])
@pytest.mark.parametrize("config", [BASE, GRID[3]], ids=name_of)
def test_halves_are_computed_as_the_f32_that_they_stand_for(type: str, config: Config, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "half.gguf", config, type=type)
    halves, _ = load(path)
    floats, _ = load(write_as_f32(path, tmp_path / "f32.gguf"))
    tokens = some_tokens(config)
    assert bits(halves.prefill(tokens)) == bits(floats.prefill(tokens))


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


def refused_with(path: Path, name: str, at: int, data: bytes) -> ModelFileError:
    """The error when these bytes are put into a tensor of a file, counted from the tensor's start."""
    file = bytearray(path.read_bytes())
    offset = read_gguf(BytesSource(bytes(file))).tensors[name].offset + at
    file[offset : offset + len(data)] = data
    path.write_bytes(file)
    with pytest.raises(ModelFileError) as raised:
        load(path)
    assert raised.value.field == name
    return raised.value


@pytest.mark.parametrize(
    ("type", "at", "layout"),
    [
        ("F32", 4, "<f"),
        ("F16", 2, "<e"),
        ("BF16", 2, "BF16"),
        ("Q8_0", 34, "<e"),
        ("Q4_0", 18, "<e"),
        ("Q4_1", 20, "<e"),
        ("Q4_1", 22, "<e"),  # the second block's minimum
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_names_its_tensor(
    type: str, at: int, layout: str, value: float, tmp_path: Path
) -> None:
    data = struct.pack("<f", value)[2:] if layout == "BF16" else struct.pack(layout, value)
    for name in ("token_embd.weight", "blk.1.ffn_down.weight"):
        path = write_random_model(tmp_path / "model.gguf", BASE, type=type)
        assert "not a finite number" in str(refused_with(path, name, at, data))


def test_a_norm_that_is_no_number_names_itself(tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "model.gguf", BASE, type="mixed")
    with FileSource(model) as source:
        norms = {t.type: t for t in read_gguf(source).tensors.values() if len(t.shape) == 1}
    assert norms.keys() == set(FLOATS)
    for type, tensor in norms.items():
        path = tmp_path / f"{type}.gguf"
        path.write_bytes(model.read_bytes())
        infinity = {"F32": b"\0\0\x80\x7f", "F16": b"\0\x7c", "BF16": b"\x80\x7f"}[type]
        assert "not a finite number" in str(refused_with(path, tensor.name, tensor.size - len(infinity), infinity))


def test_a_weight_that_no_quantiser_writes_names_its_tensor(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", BASE, type="Q8_0")
    assert "-128" in str(refused_with(path, "blk.0.attn_k.weight", 34 + 2 + 7, b"\x80"))


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 1000, 5000])
def test_it_does_not_matter_how_many_rows_are_loaded_at_once(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row at least, and never a part of one."""
    path = write_random_model(tmp_path / "model.gguf", replace(BASE, tied=False), type="mixed")
    whole, _ = load(path)
    monkeypatch.setattr("fabella.engine.LOADED_AT_ONCE", at_once)
    in_pieces, _ = load(path)
    tokens = some_tokens(BASE)
    assert bits(whole.prefill(tokens)) == bits(in_pieces.prefill(tokens))


class Watched(FileSource):
    """Remembers what was read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        return super().read(offset, size)


@pytest.mark.parametrize(("type", "packed"), [("F32", 1.0), ("Q8_0", 36 / 34), ("Q4_1", 24 / 20)])
def test_loading_takes_no_more_memory_than_the_packed_model_and_what_it_needs_to_run(
    type: str, packed: float, tmp_path: Path
) -> None:
    """Neither in C, whose memory grows by what is needed and never shrinks, nor in Python."""
    config = Config(dim=256, hidden_dim=1024, n_layers=24, n_heads=4, n_kv_heads=4, vocab_size=16000, seq_len=8)
    with Watched(write_random_model(tmp_path / "model.gguf", config, type=type)) as source:
        model = read_gguf(source)
        source.reads.clear()
        host = WasmtimeHost()
        tracemalloc.start()
        try:
            engine = Engine(host, model, source)
            python = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    weights = sum(tensor.size for tensor in model.tensors.values())
    assert source.reads == sorted(source.reads), "from front to back"
    assert sum(size for _, size in source.reads) == weights, "each byte once"
    assert max(size for _, size in source.reads) <= LOADED_AT_ONCE
    assert python < 2 << 20
    state = 1 << 20  # activations, logits, the C library
    assert host.memory_size < packed * weights + LOADED_AT_ONCE + state
    engine.close()


def test_a_file_that_becomes_shorter_while_it_is_loaded_is_an_error(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", BASE)
    with FileSource(path) as source:
        model = read_gguf(source)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 1000)
        with pytest.raises(EngineError, match="has changed meanwhile"):
            Engine(WasmtimeHost(), model, source)


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
    assert len(values) == engine.logits.vocab_size
    engine.host.write(engine.logits.values, values.astype(np.float32).tobytes())
    engine.logits.ready = 0
    return engine.logits


def random_logits(seed: int, spread: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(1003) * spread).astype(np.float32)


@pytest.mark.parametrize("k", [0, 1, 2, 40, 1002, 1003, 5000])
def test_shortlist_is_the_head_of_a_stable_sort(engine: Engine, k: int) -> None:
    values = np.round(random_logits(k), 0)  # many equals
    order = np.argsort(-values, kind="stable")[:k]
    expected = [(int(token), float(values[token])) for token in order]
    assert with_logits(engine, values).shortlist(k) == expected


@pytest.mark.parametrize("vocab_size", [3, 300])
def test_the_candidates_that_lie_ready_after_one_token_are_the_shortlist(vocab_size: int, tmp_path: Path) -> None:
    engine, _ = load(write_random_model(tmp_path / "model.gguf", replace(BASE, vocab_size=vocab_size)))
    for k in (0, 1, 2, 16, 17, 300, 16, 1):
        engine.rewind(0)
        logits = engine.prefill([1])
        asked = logits.shortlist(k), logits.candidates(k, 0.9)
        engine.rewind(0)
        logits = engine.forward(1)
        assert (logits.shortlist(k), logits.candidates(k, 0.9)) == asked
        assert len(logits.shortlist(k)) == min(k, vocab_size)
    assert READY >= SHORTLIST, "what the sampler asks for lies ready"


def test_logits_are_always_those_after_the_last_token(tmp_path: Path) -> None:
    """Also those that an earlier call has returned."""
    engine, _ = load(write_random_model(tmp_path / "model.gguf", BASE))
    first = engine.forward(1)
    before = first.candidates(20, 1.0)
    engine.forward(2)
    assert first.candidates(20, 1.0) != before
    engine.rewind(0)
    engine.prefill([1])
    assert first.candidates(20, 1.0) == before


def test_logits_that_are_no_numbers_are_left_out(engine: Engine) -> None:
    values = random_logits(3)
    values[::3] = np.nan
    values[1::3] = np.inf
    values[5] = -np.inf
    finite = np.isfinite(values)
    logits = with_logits(engine, values)
    order = [int(token) for token in np.argsort(-values, kind="stable") if finite[token]]
    assert [token for token, _ in logits.shortlist(1003)] == order
    assert [token for token, _, _ in logits.candidates(1003, 0.7)] == order
    expected = np.exp(values[order].astype(np.float64) / 0.7)
    probabilities = [probability for _, _, probability in logits.candidates(1003, 0.7)]
    assert probabilities == pytest.approx(expected / expected.sum(), rel=1e-6)
    assert all(finite[logits.draw(1.0, coin)] for coin in np.linspace(0, 0.9999, 50))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_finite_logit_at_all_is_an_error(engine: Engine, value: float) -> None:
    logits = with_logits(engine, np.full(1003, value))
    for ask in (lambda: logits.shortlist(1), lambda: logits.candidates(1, 1.0), lambda: logits.draw(1.0, 0.5)):
        with pytest.raises(EngineError, match="no logit is a finite number"):
            ask()


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0, 100.0])
def test_probabilities_and_draw_are_those_of_the_whole_vocabulary(engine: Engine, temperature: float) -> None:
    values = random_logits(11)
    logits = with_logits(engine, values)
    scaled = values.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    expected = weights / weights.sum()
    for k in (10, 50, 1003):
        for token, _, probability in logits.candidates(k, temperature):
            assert probability == pytest.approx(expected[token], rel=2e-6)
    running = np.cumsum(expected)
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


# ---- What else is asked of the logits ----


@pytest.mark.parametrize("temperature", [0.01, 0.8, 1.0, 20.0])
def test_the_mean_and_the_logarithm_of_a_probability(engine: Engine, temperature: float) -> None:
    values = random_logits(3)
    values[[5, 900]] = np.nan, -np.inf
    logits = with_logits(engine, values)
    finite = values[np.isfinite(values)].astype(np.float64)
    weights = np.exp((finite - finite.max()) / temperature)
    assert logits.mean(temperature) == pytest.approx(float(weights @ finite / weights.sum()), abs=1e-5)
    total = np.log(np.exp(finite - finite.max()).sum()) + finite.max()
    for token in (0, 1, 77, 1002):
        assert logits.log_probability(token) == pytest.approx(float(values[token]) - total, abs=1e-6)
    for token in (5, 900, -1, 1003):
        assert logits.log_probability(token) == -np.inf


def test_changed_logits_are_put_back_to_the_bit(engine: Engine) -> None:
    values = random_logits(4)
    logits = with_logits(engine, values)
    before = logits.candidates(40, 0.9)
    top = [token for token, _, _ in before]
    for tokens in ([top[0]], top[:5], [], list(range(1003)), [1002, 0, top[3]]):
        changed = values.copy()
        changed[tokens] = changed[tokens] / 2 - 1
        with logits.changed(tokens, lambda given: [logit / 2 - 1 for logit in given]) as others:
            assert others.shortlist(1003) == with_order(changed)
            assert others.draw(0.5, 0.3) == with_logits_of(engine, changed)
        assert logits.candidates(40, 0.9) == before
        assert bits(logits) == values.tobytes()
    for wrong in ([1003], [-1], [1 << 40]):
        with pytest.raises(EngineError, match="outside the vocabulary"), logits.changed(wrong, list):
            pass
    assert bits(logits) == values.tobytes()


def test_changed_logits_are_put_back_after_an_error(engine: Engine) -> None:
    values = random_logits(5)
    logits = with_logits(engine, values)
    with pytest.raises(KeyboardInterrupt), logits.changed([1, 2], lambda given: [0.0, 1.0]):
        raise KeyboardInterrupt
    assert bits(logits) == values.tobytes()


def with_order(values: np.ndarray) -> list[tuple[int, float]]:
    """All tokens, those with the highest logits first."""
    order = np.argsort(-values, kind="stable")
    return [(int(token), float(values[token])) for token in order]


def with_logits_of(engine: Engine, values: np.ndarray) -> int:
    """What is drawn from such logits, which take the place of the engine's and are gone again."""
    kept = engine.logits.to_array().tobytes()
    drawn = with_logits(engine, values).draw(0.5, 0.3)
    engine.host.write(engine.logits.values, kept)
    return drawn


def test_a_closed_engine_computes_nothing(tmp_path: Path) -> None:
    engine, _ = load(write_random_model(tmp_path / "model.gguf", BASE))
    engine.forward(1)
    engine.close()
    for compute in (lambda: engine.forward(1), lambda: engine.prefill([1, 2])):
        with pytest.raises(EngineError, match="closed"):
            compute()
