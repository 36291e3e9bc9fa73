"""Measures what the README says of speed and size: ``python -m tests.figures``, after ``python build.py test``.

Everything is measured in one run on one machine, rounds interleaved; medians, with lowest and highest in brackets. The
page is served with the headers that make a browser's clock fine (cross-origin isolation); it does not
need them.
"""

from __future__ import annotations

import gzip
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from build import PageHandler

from .conftest import BROWSER_ARGUMENTS, find_browser
from .random_models import load

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
ROUNDS = 5
PROMPT = "Once upon a time"

# Put before the page's worker: the functions of run.wasm note how long they took.
STOPWATCH = """{
self.insideWasm = 0;
for (const name of ["instantiate", "instantiateStreaming"]) {
  const original = WebAssembly[name].bind(WebAssembly);
  WebAssembly[name] = async (...parameters) => {
    const result = await original(...parameters);
    const instance = result.instance ?? result;
    if (!instance.exports?.model_new) return result;
    const exports = {};
    for (const [key, value] of Object.entries(instance.exports)) {
      exports[key] = typeof value !== "function" ? value : (...a) => {
        const start = performance.now();
        try { return value(...a); } finally { self.insideWasm += performance.now() - start; }
      };
    }
    return result.instance ? {module: result.module, instance: {exports}} : {exports};
  };
}
const post = self.postMessage.bind(self);
self.postMessage = (message, ...rest) => post({...message, insideWasm: self.insideWasm}, ...rest);
}
"""

# Put before the page's script: every message from the worker is noted with its time.
NOTEBOOK = """
window.notebook = [];
window.Worker = class extends Worker {
  constructor(...parameters) {
    super(...parameters);
    this.addEventListener("message", ({data}) => {
      if (data.type !== "progress") window.notebook.push({...data, at: performance.now()});
    });
  }
};
"""


def spread(values: list[float], unit: str, digits: int = 0) -> str:
    """The median with the lowest and highest value, as text."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} {unit} [{low} – {high}]"


class Handler(SimpleHTTPRequestHandler):
    """Serves dist/ as a static host does; assets never change under their names."""

    extensions_map = PageHandler.extensions_map
    protocol_version = "HTTP/1.1"

    def end_headers(self) -> None:
        """Adds cross-origin isolation, and caching as a content-hashed name allows it."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache" if self.path.endswith("/") else "max-age=31536000, immutable")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Stays silent."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server for this folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def tell_once(browser: Browser, url: str, context: Any = None) -> tuple[dict[str, float], Any]:
    """Opens the page, tells one greedy story as soon as it lets us, and returns the times in milliseconds."""
    context = context or browser.new_context()
    page = context.new_page()
    page.add_init_script(NOTEBOOK)

    def with_stopwatch(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=STOPWATCH + response.text())

    page.route("**/worker-*.js", with_stopwatch)
    page.goto(url)
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("slider", name="Temperature").fill("0")
    page.get_by_role("button", name="Tell").click()
    page.locator("#ending:not([hidden])").wait_for(timeout=120_000)
    notes = page.evaluate("window.notebook")
    page.close()
    ready = next(note for note in notes if note["type"] == "ready")
    first = next(n for n in notes if n["type"] == "steps" and any(not step["from_prompt"] for step in n["steps"]))
    done = next(note for note in notes if note["type"] == "done")
    # The driver's share is taken from the first batch on, when only single tokens are computed.
    tokens = sum(len(n["steps"]) for n in notes if n["type"] == "steps" and n["at"] > first["at"])
    wall, inside = done["at"] - first["at"], done["insideWasm"] - first["insideWasm"]
    return {
        "ready": ready["at"],
        "first token": first["at"],
        "rate": done["tokens_per_second"],
        "driver": 1000 * (wall - inside) / tokens,
        "share": 100 * (wall - inside) / wall,
    }, context


def wasmtime_rate(model: Path) -> float:
    """Greedy tokens per second of the engine under wasmtime, called as the command line calls it."""
    from fabella.generate import generate
    from fabella.sampler import Settings

    engine, description = load(model)
    times = [
        time.perf_counter()
        for step in generate(engine, description.tokenizer, PROMPT, Settings(temperature=0, seed=1), 256)
        if not step.from_prompt
    ]
    return (len(times) - 1) / (times[-1] - times[0])


def print_sizes() -> None:
    """Bytes of dist/, by part."""
    print(f"{'dist/':44} {'bytes':>12} {'gzip':>12}")
    total = [0, 0]
    for path in sorted(path for path in DIST.rglob("*") if path.is_file()):
        data = path.read_bytes()
        sizes = len(data), len(gzip.compress(data, 9))
        total = [a + b for a, b in zip(total, sizes, strict=True)]
        print(f"{path.relative_to(DIST).as_posix():44} {sizes[0]:12,} {sizes[1]:12,}")
    print(f"{'in all':44} {total[0]:12,} {total[1]:12,}\n")


def main() -> None:
    """Measures and prints everything."""
    model = ROOT / "web/models/stories.gguf"
    print_sizes()
    cold: list[dict[str, float]] = []
    warm: list[dict[str, float]] = []
    terminal: list[float] = []
    with served(DIST) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_ARGUMENTS)
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS} ...", file=sys.stderr)
            figures, context = tell_once(browser, url)
            cold.append(figures)
            warm.append(tell_once(browser, url, context)[0])
            context.close()
            terminal.append(wasmtime_rate(model))
        version = browser.version
        browser.close()

    def column(name: str, rows: list[dict[str, float]]) -> list[float]:
        return [row[name] for row in rows]

    print(f"Chromium {version}, {ROUNDS} rounds, median [lowest – highest]")
    show: Callable[[str, str], None] = lambda name, text: print(f"{name:44} {text}")  # noqa: E731
    for name, rows in (("cold", cold), ("warm", warm)):
        show(f"page open to ready, {name}", spread(column("ready", rows), "ms"))
        show(f"page open to first token of the story, {name}", spread(column("first token", rows), "ms"))
    show("tokens per second, page", spread(column("rate", warm), "tokens/s"))
    show("tokens per second, wasmtime", spread(terminal, "tokens/s"))
    show("outside run.wasm, per token (worker)", spread(column("driver", warm), "µs"))
    show("outside run.wasm, share of a token's time", spread(column("share", warm), "%", digits=1))


if __name__ == "__main__":
    main()
