"""Where ``run.wasm`` lives: in the browser's own WebAssembly (through Pyodide) or in wasmtime (under CPython).

Both hosts offer the same few things: call an exported function, read and write the module's memory. The engine is
written against :class:`Host` and cannot tell which one it has.
"""

from __future__ import annotations

import atexit
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.resources import files
from typing import Any, cast

from fabella.errors import EngineError
from fabella.sources import ByteSource


def read_all(source: ByteSource, offset: int, size: int) -> bytes:
    """Reads `size` bytes of a file, from `offset` on.

    Raises
    ------
    EngineError
        If the file has become shorter since it was opened.
    """
    data = source.read(offset, size)
    if len(data) != size:
        raise EngineError(f"only {len(data)} of {size} bytes could be read: the model file has changed meanwhile")
    return data


class Host(ABC):
    """An instance of ``run.wasm``: its functions and its memory. Pointers are byte offsets into that memory."""

    @abstractmethod
    def function(self, name: str) -> Callable[..., Any]:
        """The exported function of this name, bound once so that calling it costs no look-up."""

    @abstractmethod
    def read(self, pointer: int, size: int) -> bytes:
        """A copy of `size` bytes at `pointer`."""

    def reader(self, pointer: int, size: int) -> Callable[[], bytes]:
        """A function that copies these bytes anew at each call: for a place that is read again and again."""
        return partial(self.read, pointer, size)

    @abstractmethod
    def write(self, pointer: int, data: bytes) -> None:
        """Copies `data` to `pointer`."""

    def writer(self, pointer: int, size: int) -> Callable[[bytes], None]:
        """A function that copies `size` bytes to `pointer`: for a place that is written again and again."""
        return partial(self.write, pointer)

    def allocate(self, size: int) -> int:
        """Takes `size` bytes of the module's memory.

        Raises
        ------
        EngineError
            If there is not that much left.
        """
        pointer = self.function("allocate")(size) & 0xFFFFFFFF if size < 2**32 else 0
        if pointer == 0:
            raise EngineError(f"out of memory: {size:,} bytes are not to be had from WebAssembly")
        return pointer

    def release(self, pointer: int) -> None:
        """Gives back what :meth:`allocate` returned."""
        self.function("release")(pointer)

    def put(self, data: bytes) -> int:
        """Copies `data` into newly allocated memory and returns its pointer."""
        pointer = self.allocate(len(data))
        self.write(pointer, data)
        return pointer

    def fill(self, pointer: int, source: ByteSource, offset: int, size: int) -> None:
        """Copies `size` bytes of a file, from `offset` on, to `pointer`.

        Whoever loads a file goes from its front to its end: what lies before may be gone afterwards.

        Raises
        ------
        EngineError
            If the file has become shorter since it was opened.
        """
        self.write(pointer, read_all(source, offset, size))


class WasmtimeHost(Host):
    """``run.wasm`` under wasmtime, for the command line and the tests.

    Parameters
    ----------
    wasm
        The module's bytes; by default the SIMD128 build inside this package. Relaxed SIMD is no faster under wasmtime
        (wasm/LOG.md).
    """

    def __init__(self, wasm: bytes | None = None) -> None:
        import wasmtime

        engine, module = _compiled(packaged_wasm() if wasm is None else wasm)
        self._store = wasmtime.Store(engine)
        grown = wasmtime.Func(self._store, wasmtime.FuncType([wasmtime.ValType.i32()], []), lambda _index: None)
        self._exports = wasmtime.Instance(self._store, module, [grown] * len(module.imports)).exports(self._store)
        memory = self._exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self._memory = memory
        self.function("_initialize")()

    def function(self, name: str) -> Callable[..., Any]:
        return partial(cast(Callable[..., Any], self._exports[name]), self._store)

    @property
    def memory_size(self) -> int:
        """Bytes of the module's memory, which grows by what is needed and never shrinks."""
        return self._memory.data_len(self._store)

    def read(self, pointer: int, size: int) -> bytes:
        return bytes(self._memory.read(self._store, pointer, pointer + size))

    def write(self, pointer: int, data: bytes) -> None:
        self._memory.write(self._store, data, pointer)


@lru_cache(maxsize=8)
def _compiled(wasm: bytes) -> tuple[Any, Any]:
    """wasmtime's engine and, for it, the module's machine code, which takes a fifth of a second to make."""
    import wasmtime

    atexit.register(_compiled.cache_clear)  # before wasmtime goes itself, without which they cannot be closed
    engine = wasmtime.Engine()
    return engine, wasmtime.Module(engine, wasm)


class BrowserHost(Host):
    """``run.wasm`` instantiated by JavaScript beside Pyodide.

    Parameters
    ----------
    exports
        The instance's ``exports``, after ``_initialize()`` was called.
    """

    def __init__(self, exports: Any) -> None:
        self._exports = exports
        self._view: Any = None

    def function(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self._exports, name)
        return function

    def _bytes(self, pointer: int, size: int) -> Any:
        """Part of the memory as a Uint8Array.

        Growing the memory detaches the old view, whose length then reads as 0; a view of memory that threads share
        stays as long as it was.
        """
        if self._view is None or self._view.length < pointer + size:
            from js import Uint8Array

            self._view = Uint8Array.new(self._exports.memory.buffer)
        return self._view.subarray(pointer, pointer + size)

    def read(self, pointer: int, size: int) -> bytes:
        data: bytes = self._bytes(pointer, size).to_bytes()
        return data

    def reader(self, pointer: int, size: int) -> Callable[[], bytes]:
        from pyodide.ffi import JsException

        copy: Callable[[], bytes] = self._bytes(pointer, size).to_bytes

        def read() -> bytes:
            nonlocal copy
            try:
                return copy()
            except JsException:  # the memory has grown, which detached the view
                copy = self._bytes(pointer, size).to_bytes
                return copy()

        return read

    def write(self, pointer: int, data: bytes) -> None:
        self._bytes(pointer, len(data)).assign(data)

    def writer(self, pointer: int, size: int) -> Callable[[bytes], None]:
        from pyodide.ffi import JsException

        assign: Callable[[bytes], None] = self._bytes(pointer, size).assign

        def write(data: bytes) -> None:
            nonlocal assign
            try:
                assign(data)
            except (JsException, ValueError):  # the memory has grown, which detached the view: its size is 0
                assign = self._bytes(pointer, size).assign
                assign(data)

        return write

    def fill(self, pointer: int, source: ByteSource, offset: int, size: int) -> None:
        if isinstance(source, BrowserFile):
            source.blocks.take(offset, self._bytes(pointer, size))
        else:
            super().fill(pointer, source, offset, size)


class BrowserFile:
    """A file that JavaScript holds (a :class:`fabella.sources.TextSource`): its weights never pass through Python.

    Parameters
    ----------
    blocks
        A ``Blocks`` of ``web/download.js``, with all bytes of the file. They are released as the engine takes them.
    """

    def __init__(self, blocks: Any) -> None:
        self.blocks = blocks
        self.size: int = blocks.size

    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes from `offset` on."""
        from js import Uint8Array

        copy = Uint8Array.new(size)
        self.blocks.copy(offset, copy)
        data: bytes = copy.to_bytes()
        return data

    def texts(self, offset: int, count: int) -> tuple[bytes, int] | None:
        """Many texts at once, as a :class:`fabella.sources.TextSource` has them."""
        found = self.blocks.texts(offset, count)
        return (found.bytes.to_bytes(), found.end) if found else None


def new_host() -> Host:
    """``run.wasm`` of this package, wherever Python runs: in Pyodide the browser runs it, elsewhere wasmtime."""
    return _in_pyodide(packaged_wasm()) if sys.platform == "emscripten" else WasmtimeHost()


def _in_pyodide(wasm: bytes) -> Host:
    from js import Boolean, Object, Uint8Array, WebAssembly
    from pyodide.ffi import to_js

    code = Uint8Array.new(len(wasm))
    code.assign(wasm)
    grown = Boolean  # what run.wasm calls when its memory grows: a function of JavaScript's that does nothing
    imports = to_js({"env": {"emscripten_notify_memory_growth": grown}}, dict_converter=Object.fromEntries)
    exports = WebAssembly.Instance.new(WebAssembly.Module.new(code), imports).exports
    exports._initialize()
    return BrowserHost(exports)


def packaged_wasm() -> bytes:
    """The bytes of the package's own ``run.wasm``.

    Raises
    ------
    EngineError
        If the package lies here as source and nothing was compiled yet.
    """
    try:
        return files("fabella").joinpath("run.wasm").read_bytes()
    except FileNotFoundError:
        raise EngineError("run.wasm is missing from the package: compile it with `python build.py`") from None
