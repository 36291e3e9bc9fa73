"""The builds of wasm/run.c compute the same bits: SIMD128 and relaxed SIMD, any number of threads, any batch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import wasmtime
from wasmtime import _ffi as ffi

from builder.engines import build_engines
from fabella.formats import STORED
from fabella.gguf import read_gguf
from fabella.hosts import Host, WasmtimeHost
from fabella.modelfile import Config
from fabella.sources import FileSource

from . import families
from .probe import adapted, hash_of, load, logit_hashes
from .random_models import write_random_adapter, write_random_model

MAX_THREADS = 8  # as in wasm/parallel.h
STACK = 65536
# Several groups and panels to a row and column, and some left over; the odd one suits only types without groups.
SHAPE = Config(dim=96, hidden_dim=224, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=1003, seq_len=150)
ODD_SHAPE = Config(dim=66, hidden_dim=45, n_layers=2, n_heads=3, n_kv_heads=1, vocab_size=301, seq_len=150, tied=False)
# Groups of 256 divide the rows of this one.
LARGE_SHAPE = Config(dim=256, hidden_dim=512, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=303, seq_len=150)
FAMILIES = ("gemma3", "granite", "olmo3", "phi3 partial")
ADAPTED = ("adapted", "adapted odd", "adapted shipped")  # by an adapter, of rank 8 and others
MODELS = ("shipped", *STORED, "mixed", "odd", "blocks", *FAMILIES, *ADAPTED)
BATCHES = (1, 3, 8, 31, 64, 100)


class SharedMemory(wasmtime.SharedMemory):
    """wasmtime's, with the one method put right in which the binding gives a pointer to its pointer."""

    def _as_extern(self) -> Any:
        union = ffi.wasmtime_extern_union(sharedmemory=self.ptr())
        return ffi.wasmtime_extern_t(ffi.WASMTIME_EXTERN_SHAREDMEMORY, union)


class ThreadsHost(Host):
    """A threaded build under wasmtime, whose helpers are threads of Python's with an instance each."""

    def __init__(self, wasm: bytes) -> None:
        config = wasmtime.Config()
        config.wasm_threads = True
        config.shared_memory = True
        self._engine = wasmtime.Engine(config)
        self._module = wasmtime.Module(self._engine, wasm)
        limits = wasmtime.Limits(256, 65536)
        self._memory = SharedMemory(self._engine, wasmtime.MemoryType(limits, shared=True))
        self._store, self._exports = self._instance()
        self.function("_initialize")()

    def _instance(self) -> tuple[wasmtime.Store, Any]:
        store = wasmtime.Store(self._engine)
        linker = wasmtime.Linker(self._engine)
        linker.define(store, "env", "memory", self._memory)
        grown = wasmtime.FuncType([wasmtime.ValType.i32()], [])
        linker.define_func("env", "emscripten_notify_memory_growth", grown, lambda _index: None)
        return store, linker.instantiate(store, self._module).exports(store)

    def function(self, name: str) -> Callable[..., Any]:
        return partial(self._exports[name], self._store)

    def _address(self, pointer: int, size: int) -> int:
        assert 0 <= pointer <= pointer + size <= self._memory.data_len()
        return ctypes.addressof(self._memory.data_ptr().contents) + pointer

    def read(self, pointer: int, size: int) -> bytes:
        return ctypes.string_at(self._address(pointer, size), size)

    def write(self, pointer: int, data: bytes) -> None:
        ctypes.memmove(self._address(pointer, len(data)), data, len(data))

    @contextmanager
    def threads(self, count: int) -> Iterator[list[int]]:
        """Lets helpers work; the list receives the number of each that has come to its end."""
        ended: list[int] = []

        def help(number: int, stack: int) -> None:
            store, exports = self._instance()
            exports["__stack_pointer"].set_value(store, wasmtime.Val.i32(stack + STACK))
            exports["thread_main"](store, number)
            ended.append(number)

        assert self.function("set_threads")(count) == count
        numbers = range(1, count)
        helpers = [Thread(target=help, args=(number, self.allocate(STACK)), daemon=True) for number in numbers]
        for helper in helpers:
            helper.start()
        try:
            yield ended
        finally:
            self.function("set_threads")(1)
            for helper in helpers:
                helper.join()


@pytest.fixture(scope="session")
def engines() -> dict[str, bytes]:
    """The module of every build."""
    return {name: path.read_bytes() for name, path in build_engines().items()}


@pytest.fixture(scope="session", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shipped_model: Path) -> Path:
    """The shipped model, and random ones of every type."""
    if request.param == "shipped":
        return shipped_model
    path = tmp_path_factory.mktemp("builds") / f"{request.param}.gguf"
    if request.param == "odd":
        return write_random_model(path, ODD_SHAPE)
    if request.param in ADAPTED:
        write_adapted(path, request.param, shipped_model)
        return path
    if request.param == "blocks":
        return write_random_model(path, LARGE_SHAPE, type="blocks")
    if request.param in FAMILIES:
        return families.write(families.make(request.param), path)
    return write_random_model(path, SHAPE, type=request.param)


def write_adapted(path: Path, name: str, shipped: Path) -> None:
    """Writes a model of this name together with an adapter (see `probe.adapted`)."""
    adapter = path.with_name("adapter")
    if name == "adapted shipped":
        model = shipped
        with FileSource(shipped) as source:
            config = read_gguf(source).config
    else:
        config = ODD_SHAPE if name == "adapted odd" else SHAPE
        model = write_random_model(path, config, type="F32" if name == "adapted odd" else "Q4_1")
    write_random_adapter(adapter, config, ranks=(1, 3, 13) if name == "adapted odd" else (8,))
    path.write_bytes(adapted(model.read_bytes(), adapter.read_bytes()))


@pytest.fixture(scope="session")
def expected(model: Path, engines: dict[str, bytes]) -> list[str]:
    """Hashes of a story's logits in the plainest build."""
    return logit_hashes(WasmtimeHost(engines["simd"]), model.read_bytes())


def is_valid(wasm: bytes, *, relaxed: bool = True, threads: bool = True) -> bool:
    """Whether a WebAssembly with or without these instructions takes a module."""
    config = wasmtime.Config()
    config.wasm_relaxed_simd = relaxed
    config.wasm_threads = config.shared_memory = threads
    try:
        wasmtime.Module.validate(wasmtime.Engine(config), wasm)
    except wasmtime.WasmtimeError:
        return False
    return True


def test_each_build_needs_what_its_name_says_and_no_more(engines: dict[str, bytes]) -> None:
    """Or else comparing them would prove nothing."""
    assert engines.keys() == {"simd", "relaxed", "threads-simd", "threads-relaxed"}
    for name, wasm in engines.items():
        assert is_valid(wasm)
        assert is_valid(wasm, relaxed=False) == ("relaxed" not in name)
        assert is_valid(wasm, threads=False) == ("threads" not in name)


def test_each_build_needs_of_its_host_what_the_page_gives_it(engines: dict[str, bytes]) -> None:
    config = wasmtime.Config()
    config.wasm_threads = config.shared_memory = True
    engine = wasmtime.Engine(config)
    for name, wasm in engines.items():
        module = wasmtime.Module(engine, wasm)
        names = {"emscripten_notify_memory_growth"} | ({"memory"} if "threads" in name else set())
        assert {(item.module, item.name) for item in module.imports} == {("env", name) for name in names}
        types = [*(item.type for item in module.imports), *(item.type for item in module.exports)]
        (memory,) = (type for type in types if isinstance(type, wasmtime.MemoryType))
        assert (memory.limits.min, memory.limits.max) == (256, 65536)


def test_relaxed_simd_computes_the_bits_of_plain_simd(
    model: Path, engines: dict[str, bytes], expected: list[str]
) -> None:
    assert logit_hashes(WasmtimeHost(engines["relaxed"]), model.read_bytes()) == expected


@pytest.mark.parametrize("simd", ["simd", "relaxed"])
@pytest.mark.parametrize("threads", [1, 2, 3, MAX_THREADS])
def test_threads_compute_the_bits_of_one(
    model: Path, engines: dict[str, bytes], expected: list[str], simd: str, threads: int
) -> None:
    """That helpers do take their shares is counted natively (test_native.py)."""
    host = ThreadsHost(engines[f"threads-{simd}"])
    with host.threads(threads) as ended:
        assert logit_hashes(host, model.read_bytes()) == expected
        assert not ended, "the helpers stay until they are not wanted any more"
    assert sorted(ended) == list(range(1, threads))


@pytest.mark.parametrize("name", ["simd", "relaxed"])
def test_a_batch_of_any_size_computes_the_bits_of_single_tokens(
    model: Path, engines: dict[str, bytes], name: str
) -> None:
    engine, description = load(WasmtimeHost(engines[name]), model.read_bytes())
    tokens = np.random.default_rng(0).integers(0, description.config.vocab_size, 140).tolist()
    after = {number: hash_of(engine.forward(token)) for number, token in enumerate(tokens, 1)}
    assert len(set(after.values())) == len(after)
    for size in BATCHES:
        engine.rewind(0)
        for start in range(0, len(tokens), size):
            logits = engine.prefill(tokens[start : start + size])
            assert hash_of(logits) == after[engine.position]


def test_a_number_of_threads_out_of_range_becomes_the_nearest(engines: dict[str, bytes]) -> None:
    for name in ("threads-simd", "threads-relaxed"):
        set_threads = ThreadsHost(engines[name]).function("set_threads")
        assert [set_threads(count) for count in (-1, 0, 1, 2, 8, 9, 2**31 - 1)] == [1, 1, 1, 2, 8, 8, 8]
    for name in ("simd", "relaxed"):
        assert WasmtimeHost(engines[name]).function("set_threads")(2) == 1


def test_helpers_that_never_came_are_not_waited_for(shipped_model: Path, engines: dict[str, bytes]) -> None:
    host = ThreadsHost(engines["threads-simd"])
    assert host.function("set_threads")(4) == 4
    data = shipped_model.read_bytes()
    assert logit_hashes(host, data) == logit_hashes(WasmtimeHost(engines["simd"]), data)
