"""Where ``run.wasm`` lives: in the browser's own WebAssembly (through Pyodide) or in wasmtime (under CPython).

Both hosts offer the same few things: call an exported function, read and write the module's memory. The engine is
written against :class:`Host` and cannot tell which one it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Any, cast

from fabella.errors import EngineError

PAGE = 65536  # WebAssembly's unit of memory, in bytes


class Host(ABC):
    """An instance of ``run.wasm``: its functions and its memory. Pointers are byte offsets into that memory."""

    @abstractmethod
    def function(self, name: str) -> Callable[..., Any]:
        """The exported function of this name, bound once so that calling it costs no look-up."""

    @abstractmethod
    def read(self, pointer: int, size: int) -> bytes:
        """A copy of `size` bytes at `pointer`."""

    @abstractmethod
    def write(self, pointer: int, data: bytes) -> None:
        """Copies `data` to `pointer`."""

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

    def put(self, data: bytes) -> Region:
        """Copies `data` into newly allocated memory."""
        region = Region(self, self.allocate(max(len(data), 1)), len(data))
        self.write(region.pointer, data)
        return region


class Region:
    """Part of a host's memory, readable like a file (a :class:`fabella.modelfile.ByteSource`)."""

    def __init__(self, host: Host, pointer: int, size: int) -> None:
        self.host = host
        self.pointer = pointer
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer where the region ends."""
        size = max(0, min(size, self.size - offset))
        return self.host.read(self.pointer + offset, size)


class WasmtimeHost(Host):
    """``run.wasm`` under wasmtime, for the command line and the tests.

    Parameters
    ----------
    wasm
        The module's bytes; by default the ``run.wasm`` inside this package.
    """

    def __init__(self, wasm: bytes | None = None) -> None:
        import wasmtime

        engine = wasmtime.Engine()
        self._store = wasmtime.Store(engine)
        module = wasmtime.Module(engine, packaged_wasm() if wasm is None else wasm)
        grown = wasmtime.Func(self._store, wasmtime.FuncType([wasmtime.ValType.i32()], []), lambda _index: None)
        self._exports = wasmtime.Instance(self._store, module, [grown] * len(module.imports)).exports(self._store)
        memory = self._exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self._memory = memory
        self.function("_initialize")()

    def function(self, name: str) -> Callable[..., Any]:
        return partial(cast(Callable[..., Any], self._exports[name]), self._store)

    def read(self, pointer: int, size: int) -> bytes:
        return bytes(self._memory.read(self._store, pointer, pointer + size))

    def write(self, pointer: int, data: bytes) -> None:
        self._memory.write(self._store, data, pointer)


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

    def _bytes(self) -> Any:
        """The memory as a Uint8Array. Growing the memory detaches the old view, whose length then reads as 0."""
        if self._view is None or self._view.length == 0:
            from js import Uint8Array

            self._view = Uint8Array.new(self._exports.memory.buffer)
        return self._view

    def read(self, pointer: int, size: int) -> bytes:
        data: bytes = self._bytes().subarray(pointer, pointer + size).to_bytes()
        return data

    def write(self, pointer: int, data: bytes) -> None:
        self._bytes().subarray(pointer, pointer + len(data)).assign(data)


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
