"""The benchmark's own parts, as far as they need no peer: its models, its yardsticks, its tables and chart."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wasmtime
from playwright.sync_api import Browser

from builder.install import ensure_emcc
from builder.tools import WEB, size
from fabella.gguf import read_gguf
from fabella.modelfile import Config
from fabella.sources import FileSource
from train.quantize import read_weights

from .bench import __main__ as bench
from .bench import models, report
from .bench.__main__ import rates, results_file, save
from .bench.browser import Bench, Failure, Server
from .bench.engines import BUILT, ENGINES, build_all, compile_plain, engines_for
from .bench.native import run
from .bench.onnx_llama import write_onnx
from .random_models import load

SMALL = Config(64, 96, 2, 4, 2, 300, 256)
PEERS = {name: "not wanted here" for name in ENGINES if name not in ("fabella", "plain")}


def small_model(folder: Path, type: str) -> tuple[Path, list[int]]:
    path = folder / f"{type}.gguf"
    models.write_random_gguf(path, SMALL, type)
    with FileSource(path) as source:
        model = read_gguf(source)
        weights = {name: read_weights(source, tensor) for name, tensor in model.tensors.items()}
    models.write_plain(folder / "plain.bin", SMALL, weights)
    return path, models.prompt(SMALL, model.tokenizer)[0]


# ---- Models ----------------------------------------------------------------------------------------------------------


def test_every_model_fits_its_type_and_leaves_room_for_its_story() -> None:
    for name, model in models.MODELS.items():
        assert models.PROMPT_TOKENS + model.tokens < 512, name
        if isinstance(config := model.source, Config):
            assert models.PROMPT_TOKENS + model.tokens < config.seq_len, name
            assert model.type == "F32" or (config.dim % 32 == 0 and config.hidden_dim % 32 == 0), name
    size = 4 * (32000 * 288 + 6 * (4 * 288 * 288 + 3 * 288 * 768))
    assert models.packed_bytes(models.MODELS["15M-F32"]) == size
    assert models.packed_bytes(models.MODELS["15M-Q8_0"]) == size * 36 // 128
    stories = models.MODELS["stories-Q4_0"]
    assert 0 < models.packed_bytes(stories) - stories.file().stat().st_size < 500_000, "scales of 32 bits, not of 16"


@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_1"])
def test_a_random_model_tells_a_story_of_characters_and_never_ends_it(type: str, tmp_path: Path) -> None:
    path, ids = small_model(tmp_path, type)
    assert len(ids) == models.PROMPT_TOKENS
    engine, _ = load(path)
    logits = engine.prefill(ids)
    for _ in range(100):
        ((token, _),) = logits.shortlist(1)
        assert token >= models.FIRST_CHARACTER
        logits = engine.forward(token)


def test_a_model_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        models.write_random_gguf(tmp_path / name, SMALL, "Q8_0")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_shipped_models_prompt_is_as_long_as_the_others() -> None:
    with FileSource(WEB / "models/stories.gguf") as source:
        tokenizer = read_gguf(source).tokenizer
    ids, text = models.story_prompt(tokenizer)
    assert len(ids) == models.PROMPT_TOKENS
    assert tokenizer.encode(text) == ids
    assert " ".join(models.STORY.split()).startswith(f"{text} ")  # whole words


# ---- Yardsticks ------------------------------------------------------------------------------------------------------


class Module:
    """A WebAssembly module under wasmtime."""

    def __init__(self, path: Path) -> None:
        self.store = wasmtime.Store()
        module = wasmtime.Module.from_file(self.store.engine, str(path))
        grown = wasmtime.Func(self.store, wasmtime.FuncType([wasmtime.ValType.i32()], []), lambda _: None)
        self.exports: Any = wasmtime.Instance(self.store, module, [grown] * len(module.imports)).exports(self.store)
        self.call("_initialize")

    def call(self, name: str, *arguments: int) -> Any:
        return self.exports[name](self.store, *arguments)

    def write(self, pointer: int, data: bytes) -> None:
        self.exports["memory"].write(self.store, data, pointer)


def test_the_plain_forward_pass_tells_our_engines_story(tmp_path: Path) -> None:
    if not (shutil.which("clang-19") and shutil.which("wasm-ld-19")):
        pytest.skip("no clang-19 and wasm-ld-19 to compile REF with")
    path, ids = small_model(tmp_path, "F32")
    compile_plain(ensure_emcc(), tmp_path / "plain.wasm")
    plain, data = Module(tmp_path / "plain.wasm"), (tmp_path / "plain.bin").read_bytes()
    header = struct.calcsize("<8i2f")
    plain.write(plain.call("plain_config"), data[:header])
    plain.write(plain.call("plain_new"), data[header:])

    engine, _ = load(path)
    for position, token in enumerate(ids):
        ((likeliest, best), (_, second)) = engine.forward(token).shortlist(2)
        wanted = position % 2
        theirs = plain.call("plain_forward", token, position, wanted)
        assert theirs == (likeliest if wanted else -1) or best - second < 1e-3


def test_the_onnx_graph_computes_our_engines_logits(tmp_path: Path) -> None:
    """With a prompt at once, and token by token after it; as nearly as 8 bits of weights and of activations allow."""
    pytest.importorskip("onnx", reason="no onnx (tests/bench/requirements-bench.txt) to write the graph with")
    runtime: Any = pytest.importorskip("onnxruntime", reason="no onnxruntime (as onnx) to run the graph with")
    path, ids = small_model(tmp_path, "F32")
    with FileSource(path) as source:
        weights = {name: read_weights(source, tensor) for name, tensor in read_gguf(source).tensors.items()}
    write_onnx(tmp_path / "onnx", SMALL, weights)
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact on processors without VNNI, too
    session = runtime.InferenceSession(
        tmp_path / "onnx/onnx/model_quantized.onnx", options, providers=["CPUExecutionProvider"]
    )
    outputs = [output.name for output in session.get_outputs()]
    empty = np.zeros((1, SMALL.n_kv_heads, 0, SMALL.head_size), np.float32)
    past = {given.name: empty for given in session.get_inputs() if given.name.startswith("past_key_values.")}

    engine, _ = load(path)
    split = 100
    for begin, end in [(0, split), *((at, at + 1) for at in range(split, len(ids)))]:
        asked = {"input_ids": np.array([ids[begin:end]]), "attention_mask": np.ones((1, end), np.int64), **past}
        results = dict(zip(outputs, session.run(None, asked), strict=True))
        past = {name: results[name.replace("past_key_values", "present")] for name in past}
        ours = np.array(engine.prefill(ids[begin:end]).to_array())
        theirs = results["logits"][0, 0]
        assert np.linalg.norm(theirs - ours) < 0.1 * np.linalg.norm(ours)


def test_a_measurement_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    """The roofline's, because it needs nothing but the page; and one that fails, with the reason."""
    build_all({name: "not wanted here" for name in ENGINES if name != "fabella"})
    server = Server(tmp_path, {"model": tmp_path})
    try:
        pages = Bench(browser, server)
        answer = pages.measure("model", {"engine": "roofline", "bytes": 1_000_001, "seconds": 0.1, "threads": 1})
        with pytest.raises(Failure, match="holds no built page"):
            pages.measure("model", {"engine": "fabella"})
    finally:
        server.close()
    assert answer["bytes"] == 1_000_192
    assert np.median(answer["gb_per_s"]) > 0
    assert answer["code_bytes"] == sum(size(BUILT / f"roofline.{end}") for end in ("js", "wasm"))
    assert answer["model_bytes"] == 0


# ---- Tables and chart ------------------------------------------------------------------------------------------------


def entry(number: int, engine: str, decode: float, prefill: float, **others: Any) -> dict[str, Any]:
    story = {"prefill_ms": 1000 * models.PROMPT_TOKENS / prefill, "decode_ms": 1e5 / decode, "decoded": 100}
    cold = {"prefill_ms": 1e6, "decode_ms": 1e6, "decoded": 100}
    common = {"round": number, "model": "15M-Q8_0", "engine": engine, "load_ms": 1234.4, "memory_bytes": None}
    build = {"simd": "simd", "threads": 1} if engine == "fabella" else {}
    return {**common, **build, **rates([cold, story, story]), "tokens": "7 8 9", **others}


@pytest.fixture
def results() -> dict[str, Any]:
    size = models.packed_bytes(models.MODELS["15M-Q8_0"])
    runs = [
        *(entry(0, "fabella", 900, 4000), entry(0, "wllama", 100, 400, tokens="7 8 1")),
        *(entry(1, "fabella", 1100, 5000), entry(1, "wllama", 50, 500)),
        entry(2, "fabella", 1000, 4500),
        *({"round": n, "model": "15M-Q8_0", "engine": "onnxruntime", "error": "out of patience"} for n in range(3)),
        {"round": 2, "model": "15M-Q8_0", "engine": "wllama", "error": "out of memory"},
        *(
            {"round": number, "model": "15M-Q8_0", "engine": "roofline", "bytes": size, "gb_per_s": 20.0}
            for number in range(3)
        ),
    ]
    about = {"date": "2026-11-21", "machine": "a machine", "browser": "a browser", "rounds": 3, "threads": 1}
    return {**about, "versions": {"wllama": "1.2.3"}, "left_out": {"plain": "no compiler"}, "runs": runs}


def test_the_tables_say_what_was_measured(results: dict[str, Any]) -> None:
    text = report.tables(results)
    lines = text.splitlines()
    assert "| Fabella | 1,000 (900 – 1,100) |" in lines
    assert "| wllama | 75.0 (50.0 – 100) |" in lines
    assert "| wllama | 15.5 × |" in lines  # 9 and 22: round by round, not median by median
    assert "| wllama | 10.0 × |" in lines
    share = 1000 * models.packed_bytes(models.MODELS["15M-Q8_0"]) / 20e9
    assert f"| share of the read roofline | {share:.0%} |" in lines
    assert "| wllama | 2 of 3 |" in lines
    assert "| Fabella | 1,234 |" in lines
    assert "Left out: REF: plain C, f32, fast-math: no compiler." in lines
    assert "| ONNX Runtime Web q8, bare loop | failed |" in lines
    assert "Failed: ONNX Runtime Web q8, bare loop with 15M-Q8_0 in round 1, 2, 3: out of patience." in lines
    assert "Failed: wllama with 15M-Q8_0 in round 3: out of memory." in lines
    assert "3 rounds, 1 thread. Fabella's build: SIMD, 1 thread." in lines[0]
    assert "Versions: wllama 1.2.3." in lines
    assert "peak memory" in text
    assert "transformers.js" not in text  # never ran


def test_the_report_says_how_peers_were_run(results: dict[str, Any]) -> None:
    assert "own counters" not in report.tables(results)
    results["runs"] += [
        entry(0, "llamacpp", 100, 200),
        *(entry(0, engine, 100, 200, model="SmolLM2-Q4_1") for engine in ("fabella", "transformers")),
    ]
    text = report.tables(results)
    assert "Native llama.cpp is timed by its own counters" in text
    assert "SmolLM2-Q4_1: transformers.js and ONNX Runtime run it with 8-bit weights, not 4-bit." in text


def test_several_threads_have_no_share_of_the_roofline(results: dict[str, Any]) -> None:
    results["threads"] = 2
    results["runs"] = [
        entry(0, "fabella", 900, 4000, simd="relaxed", threads=2),
        entry(1, "fabella", 900, 4000, simd="relaxed", threads=1),
    ]
    text = report.tables(results)
    assert "up to 2 threads. Fabella's build: relaxed SIMD, 1 thread or relaxed SIMD, 2 threads." in text
    assert "loop of loads" not in text
    assert "roofline" not in text


def test_the_chart_is_a_picture(results: dict[str, Any], tmp_path: Path) -> None:
    report.chart(results, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_results_are_saved_whole_or_not_at_all(results: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "new/results.json"
    save(path, results)
    assert json.loads(path.read_text()) == results
    with pytest.raises(TypeError):
        save(path, {"runs": object()})
    assert json.loads(path.read_text()) == results
    assert list(path.parent.iterdir()) == [path]


def test_results_of_another_machine_browser_or_page_go_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.html").write_text("page")
    files = {results_file(tmp_path, "1.0", False, 1), results_file(tmp_path, "1.0", False, 1)}
    assert len(files) == 1
    files |= {results_file(tmp_path, "1.1", False, 1), results_file(tmp_path, "1.0", False, 2)}
    with monkeypatch.context() as patch:
        patch.setattr(bench, "machine", lambda: "another")
        files.add(results_file(tmp_path, "1.0", False, 1))
    (tmp_path / "index.html").write_text("another page")
    files.add(results_file(tmp_path, "1.0", False, 1))
    assert len(files) == 5


def test_fewer_threads_than_one_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--threads", "0"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--threads: must be at least 1, not 0" in capsys.readouterr().err


def test_a_program_that_dies_without_a_word_is_a_failure() -> None:
    with pytest.raises(Failure, match=r"^exit status -9$"):
        run("sh", "-c", "kill -9 $$")
    with pytest.raises(Failure, match=r"^why$"):
        run("sh", "-c", "echo first; echo why; exit 3")


def test_engines_are_given_the_models_that_they_can_run() -> None:
    assert engines_for("15M-Q8_0", {}) == list(ENGINES)
    assert engines_for("260K-F32", {}) == ["fabella", "wllama", "plain", "llamacpp", "native"]
    assert engines_for("SmolLM2-Q4_1", PEERS) == ["fabella"]
    assert "plain" not in engines_for("15M-Q8_0", {}, threads=2)
