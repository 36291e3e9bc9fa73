"""One headless browser and one server for all engines; each measurement has a fresh page, cache and process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Error, sync_playwright

from builder.install import find_browser
from builder.serve import ISOLATION, PageHandler
from tests.conftest import BROWSER_ARGUMENTS

from .engines import BUILT, HERE, NODE_MODULES

LIMIT = 600  # seconds that one measurement may take


class Failure(Exception):
    """A measurement did not come to its end; the message says why."""


class Server:
    """Serves the built page and the peers, and counts what it sends.

    As a plain host does, without special headers; or with those that a browser wants to see before it lends threads.
    """

    def __init__(self, dist: Path, models: dict[str, Path], isolated: bool = False) -> None:
        self.isolated = isolated
        self.folders = {"dist": dist, "built": BUILT, "node_modules": NODE_MODULES, "bench": HERE / "web", **models}
        self.sent = {"code": 0, "model": 0}
        self._models = set(models)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def count(self, path: str, bytes: int) -> None:
        """Notes that so many bytes of a file were asked for."""
        top = path.split("/")[1]
        if top != "bench" and path != "/built/bench.js":
            self.sent["model" if top in self._models else "code"] += bytes

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()


class Handler(SimpleHTTPRequestHandler):
    """Finds a file by the folder's name that its path begins with."""

    protocol_version = "HTTP/1.1"
    extensions_map = PageHandler.extensions_map

    def __init__(self, server: Server, *arguments: Any) -> None:
        self.bench = server
        super().__init__(*arguments)

    def translate_path(self, path: str) -> str:
        """The file of a URL's path."""
        top, _, rest = urlsplit(path).path.strip("/").partition("/")
        folder = self.bench.folders.get(top)
        if folder is None or ".." in rest.split("/"):
            return "/nonexistent"
        return str(folder / rest) + ("/" if path.endswith("/") else "")

    def do_GET(self) -> None:
        """Serves and counts a file."""
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            path /= "index.html"
        if path.is_file():
            self.bench.count(urlsplit(self.path).path, path.stat().st_size)
        super().do_GET()

    def end_headers(self) -> None:
        """Adds the headers of cross-origin isolation."""
        if self.bench.isolated:
            for name, value in ISOLATION.items():
                self.send_header(name, value)
        super().end_headers()

    def handle(self) -> None:
        """Answers one connection, which the browser may close when it likes."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Stays silent: what is missing is the engine's to complain about."""


class Bench:
    """The browser and the server together."""

    def __init__(self, browser: Browser, server: Server) -> None:
        self.version = browser.version
        self._browser = browser
        self._server = server
        self._empty = self._peak_memory(*self._open())

    def measure(self, model: str, spec: dict[str, Any]) -> dict[str, Any]:
        """Runs one measurement in a fresh page; `spec` and the answer as web/bench.js has them.

        Added are the bytes that were fetched, `code_bytes` and `model_bytes`, and `memory_bytes`, the peak memory of
        the page's process above that of an empty page (Linux only).

        Raises
        ------
        Failure
            With the engine's own words.
        """
        self._server.sent = {"code": 0, "model": 0}
        context, page = self._open()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        try:
            question = (
                "([spec, limit]) => Promise.race([measure(spec), new Promise((_, reject) => setTimeout("
                "() => reject(new Error(`no answer within ${limit} s`)), 1000 * limit))])"
            )
            answer: dict[str, Any] = page.evaluate(question, [{**spec, "url": f"{self._server.url}{model}/"}, LIMIT])
        except Error as error:
            context.close()
            words = [error.message.splitlines()[0].removeprefix("Page.evaluate: "), *complaints]
            raise Failure("; ".join(words)[:1000]) from error
        memory = self._peak_memory(context, page)
        answer |= {f"{part}_bytes": sent for part, sent in self._server.sent.items()}
        return answer | {"memory_bytes": memory - self._empty if memory and self._empty else None}

    def _open(self) -> tuple[Any, Any]:
        context = self._browser.new_context()
        page = context.new_page()
        page.goto(f"{self._server.url}bench/bench.html")
        page.wait_for_function("document.title === 'ready'")
        return context, page

    def _peak_memory(self, context: Any, page: Any) -> int | None:
        """Bytes that the page's process held at most, before it is closed."""
        session = self._browser.new_browser_cdp_session()
        processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
        peaks = [peak_memory(process["id"]) for process in processes if process["type"] == "renderer"]
        session.detach()
        context.close()
        return max(filter(None, peaks), default=None)


def peak_memory(process: int) -> int | None:
    """The most bytes that a process has held in memory, where /proc tells."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


@contextmanager
def opened(dist: Path, models: dict[str, Path], isolated: bool = False) -> Iterator[Bench]:
    """The browser, started once."""
    server = Server(dist, models, isolated)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_ARGUMENTS)
            yield Bench(browser, server)
            browser.close()
    finally:
        server.close()
