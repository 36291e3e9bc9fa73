"""wasm/run.c compiled natively, under sanitizers for addresses, undefined behaviour and threads: the wasm's bits."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fabella.adapter import read_adapter
from fabella.architectures import tensor_place
from fabella.engine import Engine, Logits
from fabella.formats import FORMATS
from fabella.modelfile import Config, FileSource

from .random_models import load, write_random_adapter, write_random_model
from .records import adapter_records, config_bytes, joined, tensor_records

CONFIG = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=80)
ODD = Config(dim=30, hidden_dim=49, n_layers=2, n_heads=5, n_kv_heads=1, vocab_size=33, seq_len=70)
FLAGS = "-g -O1 -ffp-contract=off -Wall -Wextra -Werror".split()
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all".split()

Run = Callable[..., list[str]]


def compile_native(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no gcc or clang to compile the native build with")
    program = folder / "native"
    source = Path(__file__).with_name("native.c")
    subprocess.run([compiler, *flags, str(source), "-o", str(program), "-lm"], check=True)
    return program


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(compile_native(tmp_path_factory.mktemp("native"), *FLAGS, *SANITIZERS))


@pytest.fixture(scope="session")
def threaded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(compile_native(tmp_path_factory.mktemp("threaded"), *FLAGS, "-pthread", "-fsanitize=thread"))


@pytest.fixture(scope="session", params=["simd", "relaxed"])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Under valgrind, with each layout of bytes."""
    if not shutil.which("valgrind"):
        pytest.skip("needs valgrind: sudo apt-get install valgrind")
    layout = ["-DRELAXED"] if request.param == "relaxed" else []
    program = compile_native(tmp_path_factory.mktemp("watched"), *FLAGS, *layout)
    return runner(program, "valgrind", "-q", "--error-exitcode=9", "--leak-check=full")


def runner(program: Path, *under: str) -> Run:
    def run(model: bytes, tokens: list[int], batch: int = 1, allocations: int = -1, threads: int = 1) -> list[str]:
        files = program.with_name("model"), program.with_name("tokens")
        files[0].write_bytes(model)
        files[1].write_bytes(np.array(tokens, np.int32).tobytes())
        command = [*under, str(program), *map(str, [*files, batch, allocations, threads])]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize(
    ("config", "type", "tied"), [(CONFIG, "F32", True), (CONFIG, "Q8_0", False), (ODD, "F32", False)]
)
def test_the_native_build_computes_the_bits_of_the_wasm(
    native: Run, config: Config, type: str, tied: bool, tmp_path: Path
) -> None:
    config = replace(config, tied=tied)
    path = write_random_model(tmp_path / "model.gguf", config, type=type)
    model = joined(config_bytes(config), tensor_records(path))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, config.seq_len).tolist()
    engine, _ = load(path)
    for batch in (1, 5, 64):
        lines = native(model, tokens, batch)
        engine.rewind(0)
        for start in range(0, len(tokens), batch):
            logits = engine.prefill(tokens[start : start + batch])
            ours = np.asarray(logits.to_array()).view(np.uint32)
            assert lines.pop(0) == " ".join(f"{bits:08x}" for bits in ours)
        assert lines.pop(0).split()[2:] == [str(token) for token, _ in logits.shortlist(5)]
        probabilities = lines.pop(0).split()[2:]
        assert [float.fromhex(p) for p in probabilities] == [p for _, _, p in logits.candidates(5, 0.7)], "to the bit"
        draws = [logits.draw(0.7, coin) for coin in (0, 0.5, 0.99999)]
        assert lines.pop(0).split()[1:] == [str(token) for token in draws]
        assert_inside(lines.pop(0), engine, tokens[-1])


@pytest.mark.parametrize(("config", "type"), [(CONFIG, "F32"), (CONFIG, "Q8_0"), (CONFIG, "Q4_1"), (ODD, "F32")])
def test_helpers_compute_a_share_of_the_same_bits(threaded: Run, config: Config, type: str, tmp_path: Path) -> None:
    """ThreadSanitizer sees whether the claims order all that the threads read and write."""
    records = tensor_records(write_random_model(tmp_path / "model.gguf", config, type=type))
    model = joined(config_bytes(config), records)
    tokens = list(range(32)) * 2
    for batch in (1, 5, 64):
        expected = threaded(model, tokens, batch)
        for threads in (2, 3, 8):
            *lines, helped = threaded(model, tokens, batch, threads=threads)
            assert lines == expected
            assert int(helped.removeprefix("helped ")) > 0


@pytest.mark.parametrize(
    ("config", "type", "ranks", "stored"),
    [(CONFIG, "Q8_0", (8,), "F16"), (CONFIG, "Q4_1", (1, 5), "BF16"), (ODD, "F32", (3, 17), "F32")],
)
def test_an_adapter_has_the_bits_of_the_wasm(
    native: Run, threaded: Run, config: Config, type: str, ranks: tuple[int, ...], stored: str, tmp_path: Path
) -> None:
    config = replace(config, tied=config is CONFIG)
    path = write_random_model(tmp_path / "model.gguf", config, type=type)
    adapter = write_random_adapter(tmp_path / "adapter.gguf", config, ranks=ranks, type=stored)
    model = joined(config_bytes(config), tensor_records(path) + adapter_records(adapter))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 40).tolist()
    engine, _ = load(path)
    plain = bits_of(engine.prefill(tokens[:7]))
    with FileSource(adapter) as source:
        engine.adapt(read_adapter(source), source)
    for batch in (1, 7, 40):
        lines = native(model, tokens, batch)
        assert threaded(model, tokens, batch, threads=3)[: len(lines)] == lines
        engine.rewind(0)
        for start in range(0, len(tokens), batch):
            assert lines.pop(0) == bits_of(engine.prefill(tokens[start : start + batch]))
        if batch == 7:
            assert lines[-1] == plain, "as if it had never been there"


def assert_inside(line: str, engine: Engine, token: int) -> None:
    """The native build has found the same in the last token."""
    inside = engine.probe(token, engine.position - 1)
    weights = np.frombuffer(inside.attention, np.uint32).ravel()
    best = [candidate for layer in inside.lens for candidate in layer]
    code, *words = line.removeprefix("inside ").split()
    assert (code, words[: len(weights)]) == ("0", [f"{bits:08x}" for bits in weights])
    assert list(map(int, words[len(weights) :: 2])) == [token for token, _, _ in best]
    assert list(map(float.fromhex, words[len(weights) + 1 :: 2])) == [p for _, _, p in best], "to the bit"


def bits_of(logits: Logits) -> str:
    return " ".join(f"{bits:08x}" for bits in np.asarray(logits.to_array()).view(np.uint32))


def test_adapters_that_cannot_be_are_refused_and_the_right_one_still_fits(native: Run, tmp_path: Path) -> None:
    records = tensor_records(write_random_model(tmp_path / "model.gguf", CONFIG))
    right = adapter_records(write_random_adapter(tmp_path / "adapter.gguf", CONFIG))
    head, data = right[0]
    nan = struct.unpack("<i", struct.pack("<f", math.nan))[0]
    wrong = [
        *(({1: -1}, -3), ({1: 99}, -3), ({1: 0}, -3), ({1: 1}, -3), ({2: -1}, -3), ({2: 2}, -3)),  # no such matrix
        *(({4: 0}, -2), ({4: -1}, -2), ({4: 1025}, -2), ({7: nan}, -2)),  # rank, scale
    ]
    broken = [({3: 8}, -3), ({3: 99}, -3), ({5: head[5] - 4, 6: head[6] + 4}, -3)]  # type, size

    def changed(changes: dict[int, int]) -> tuple[list[int], bytes]:
        return [changes.get(place, value) for place, value in enumerate(head)], data

    model = [*records, *(changed(changes) for changes, _ in wrong)]
    refusals = [f"adapter {code}" for _, code in wrong]
    expected = native(joined(config_bytes(CONFIG), [*records, *right]), [1, 2])
    assert native(joined(config_bytes(CONFIG), [*model, *right]), [1, 2]) == [*refusals, *expected]
    twice = native(joined(config_bytes(CONFIG), [*records, *right, right[3]]), [1, 2])
    assert twice == ["adapter -3", *expected]
    for changes, code in broken:
        assert native(joined(config_bytes(CONFIG), [*records, changed(changes)]), [])[0] == f"adapter {code}"
    not_finite = (head, b"\xff" * 4 + data[4:])
    assert native(joined(config_bytes(CONFIG), [*records, not_finite]), [])[0] == "adapter -4"
    assert native(joined(config_bytes(CONFIG), [*records[:-1], right[0]]), [])[0] == "adapter -5", "the model first"


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name in ("dim", "hidden_dim", "n_layers", "vocab_size", "seq_len") for value in (0, -1)),
        {"n_heads": 0},
        {"n_heads": 3},
        {"n_heads": 2**24},
        {"head_size": 0},
        {"rope_size": 0},
        {"rope_size": 3},
        {"rope_size": 18},
        {"repeats": 0},
        {"repeats": 2**24},
        {"n_kv_heads": 0},
        {"n_kv_heads": 3},
        {"n_kv_heads": 8},
        {"dim": 2**31 - 1},
        {"vocab_size": 2**31 - 1},
        {"seq_len": 2**30},
        *({name: value} for name in ("tied", "halves", "joint_norm", "gelu") for value in (-1, 2)),
        *({name: value} for name in ("attention_scale", "residual_scale", "logit_cap") for value in (-1.0, math.nan)),
        {"embedding_scale": math.inf},
        {"logit_scale": 0.0},
        {"norm_eps": -1.0},
        {"norm_eps": math.inf},
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(native: Run, changes: dict[str, float]) -> None:
    assert native(config_bytes(CONFIG, **changes), []) == ["model -2"]


def test_wrong_tensors_are_refused_and_the_right_ones_still_load(native: Run, tmp_path: Path) -> None:
    records = tensor_records(write_random_model(tmp_path / "model.gguf", CONFIG, type="Q8_0"))
    norm, (head, data) = records[1], records[2]
    wrong = []
    for index, value in [
        *((0, -1), (0, 12), (0, tensor_place("output.weight")[0])),  # no such tensor
        *((1, -1), (1, 2), (2, 9), (2, 99), (5, 32)),  # layer, type; a group that only I8 has
        *((3, head[3] + 1), (3, -head[3]), (4, head[4] + 32), (4, -head[4]), (4, 0)),  # rows, columns
    ]:
        wrong.append(([*head[:index], value, *head[index + 1 :]], data))
    wrong.append(([*norm[0][:2], 8, *norm[0][3:]], norm[1]))  # a norm in Q8_0
    wrong_rows = [([*head[:6], head[6] - 1, 0], data[:-1]), ([*head[:6], 0, 0], b"")]
    refusals = ["tensor -3"] * len(wrong) + ["rows -3"] * len(wrong_rows)
    wrong += wrong_rows
    right = config_bytes(CONFIG)
    assert native(joined(right, wrong), []) == refusals
    lines = native(joined(right, [*wrong, *records]), [1])
    assert lines[: len(wrong)] == refusals
    assert "shortlist" in lines[len(wrong) + 1]
    assert native(joined(right, [*records, records[0]]), []) == ["tensor -3"]  # twice
    assert native(joined(right, records[:-1]), [1]) == ["forward -5"]  # one is missing


def test_tokens_and_positions_out_of_range_are_refused(native: Run, tmp_path: Path) -> None:
    records = tensor_records(write_random_model(tmp_path / "model.gguf", CONFIG))
    model = joined(config_bytes(CONFIG), records)
    assert native(model, [300], 1) == ["forward -6"]
    assert native(model, [1, -1], 2) == ["forward -6"]
    assert native(model, [1] * 81, 81) == ["forward -7"]
    assert native(model, [1] * 81, 80)[-1] == "forward -7"


def test_before_the_first_token_there_is_none_to_choose(native: Run, tmp_path: Path) -> None:
    """Nor one in the padding, beyond the vocabulary."""
    records = tensor_records(write_random_model(tmp_path / "model.gguf", ODD))
    model = joined(config_bytes(ODD), records)
    assert native(model, []) == ["shortlist -8", "probabilities -8", "draw -8 -8 -8"]


def test_broken_numbers_are_refused(native: Run, tmp_path: Path) -> None:
    records = tensor_records(write_random_model(tmp_path / "model.gguf", CONFIG, type="Q8_0"))
    head, data = records[0]
    assert native(joined(config_bytes(CONFIG), [(head, b"\xff\xff" + data[2:])]), []) == ["rows -4"]
    head, data = records[1]
    assert native(joined(config_bytes(CONFIG), [(head, b"\xff" * 4 + data[4:])]), []) == ["rows -4"]


def test_weights_at_their_extremes_stay_within_the_numbers(native: Run, tmp_path: Path) -> None:
    """Blocks of ±127, scales of 0, the smallest and the largest f16."""
    records = tensor_records(write_random_model(tmp_path / "model.gguf", CONFIG, type="Q8_0"))
    scales = [0.0, 6e-8, -65504.0, 65504.0]
    extreme = []
    for head, data in records:
        if head[2] == FORMATS["Q8_0"].number:
            blocks = range(len(data) // 34)
            data = b"".join(struct.pack("<e32b", scales[i % 4], *([127, -126, -127, 0] * 8)) for i in blocks)
        extreme.append((head, data))
    lines = native(joined(config_bytes(CONFIG), extreme), [1, 2, 3], 3)
    assert len(lines[0].split()) == CONFIG.vocab_size


def test_running_out_of_memory_is_an_error_at_every_allocation_and_leaves_all_as_it_was(
    native: Run, tmp_path: Path
) -> None:
    config = Config(dim=32, hidden_dim=64, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=40, seq_len=400)
    records = tensor_records(write_random_model(tmp_path / "model.gguf", config, type="Q8_0"))
    adapter = adapter_records(write_random_adapter(tmp_path / "adapter.gguf", config))
    model = joined(config_bytes(config), records + adapter)
    tokens = [token % 40 for token in range(400)]  # more than the KV cache has room for at first
    expected = native(model, tokens, 200)
    refused = set()
    for allocations in range(1000):
        lines = native(model, tokens, 200, allocations)
        errors = [line for line in lines if line.endswith(" -1")]
        assert [line for line in lines if line not in errors] == expected
        if not errors:
            break
        assert len(errors) == 1
        refused.add(errors[0])
    assert refused == {"model -1", "rope -1", "tensor -1", "adapter -1", "forward -1"}


@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_0", "Q4_1"])
def test_valgrind_finds_nothing_that_is_read_before_it_is_written(watched: Run, type: str, tmp_path: Path) -> None:
    """What the sanitizers cannot see."""
    records = tensor_records(write_random_model(tmp_path / "model.gguf", CONFIG, type=type))
    adapter = adapter_records(write_random_adapter(tmp_path / "adapter.gguf", CONFIG, ranks=(3,)))
    lines = watched(joined(config_bytes(CONFIG), records + adapter), list(range(40)), 33)
    assert lines[-3].startswith("draw")
