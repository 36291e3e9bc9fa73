"""Measures what the README says of speed and size: ``python -m tests.figures``, after ``python build.py test``.

Everything is measured in one run on one machine, rounds interleaved; medians, with lowest and highest in brackets. The
page has one thread, as on a host that sends no special headers. For the time outside the C code it is served with them
all the same, because cross-origin isolation makes the browser's clock fine. What threads bring is measured last, on a
machine at rest and beside a program that keeps a core busy, where they must not hurt.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, Playwright, Route, TimeoutError, sync_playwright

from builder.install import find_browser
from builder.models import file_of
from builder.page import bundle
from builder.serve import ISOLATION, PageHandler
from fabella.console import run_command
from fabella.gguf import read_gguf
from fabella.memory import cache_size
from fabella.modelfile import Config
from fabella.sources import FileSource

from .conftest import BROWSER_ARGUMENTS
from .random_models import load, write_random_model
from .real_models import GEMMA3, SMOLLM2

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
ROUNDS = 5
WARM_UP = 8  # stories told before the driver is measured: browsers compile what they run in stages
STORIES = 8  # stories in which it is measured
PROMPT = "Once upon a time"

# Bodies of choose() that never return, and that Python itself can stop.
LOOPS = (
    "while True: pass",
    "while True: print('again')",
    "sum(1 for _ in iter(int, 1))",
    "while True:\n        try: 1 / 0\n        except BaseException: pass",
    "f = lambda: f()\n    while True:\n        try: f()\n        except RecursionError: pass",
)

# The shape of llama2.c's stories15M.
CONFIG_15M = Config(
    dim=288, hidden_dim=768, n_layers=6, n_heads=6, n_kv_heads=6, vocab_size=32000, seq_len=256, norm_eps=1e-5
)

# Put before the page's worker: `watch` is asked to wrap each function of run.wasm.
WATCHED = """
const instantiate = WebAssembly.instantiate.bind(WebAssembly);
WebAssembly.instantiate = async (...parameters) => {
  const result = await instantiate(...parameters);
  if (!result.exports?.model_new) return result; // it is Python's
  const exports = Object.entries(result.exports).map(([key, value]) =>
    [key, typeof value === "function" ? watch(key, value) : value]);
  return { exports: Object.fromEntries(exports) };
};
"""

# Notes how long the functions of run.wasm took. A token's time goes from one forward_token to the next; "turn" tells
# the tokens in which a message was sent and the worker listened for others. The stopwatch's own time, about a
# microsecond a call, counts as outside. One thread, as on a plain host.
STOPWATCH = """{
Object.defineProperty(self, "crossOriginIsolated", { value: false });
let tokens = [], inside = 0, begun = null, turn = false;
const watch = (name, work) => (...parameters) => {
  const start = performance.now();
  if (name === "forward_token") {
    if (begun !== null) tokens.push({ inside, outside: start - begun - inside, turn });
    [begun, inside, turn] = [start, 0, false];
  } else if (name === "forward") {
    begun = null;
  }
  try { return work(...parameters); } finally { inside += performance.now() - start; }
};
WATCHED
const post = self.postMessage.bind(self);
self.postMessage = (message) => {
  turn = true;
  if (message.type !== "done") return post(message);
  post({ ...message, tokens });
  tokens = [];
};
}
""".replace("WATCHED", WATCHED)

# Notes how long a token took with each number of threads that the page compares, which it does between stories.
COMPARISON = """{
let threads = null, seconds = {};
const watch = (name, work) => (...parameters) => {
  const start = performance.now();
  const result = work(...parameters);
  if (name === "set_threads") threads = result;
  if (name === "forward_token" && threads !== null) {
    (seconds[threads] ??= []).push((performance.now() - start) / 1000);
  }
  return result;
};
WATCHED
const post = self.postMessage.bind(self);
self.postMessage = (message) => {
  if (message.type !== "engine") return post(message);
  post({ ...message, seconds });
  [threads, seconds] = [null, {}]; // until the next warm-up is over
};
}
""".replace("WATCHED", WATCHED)

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
        """Adds caching as a content-hashed name allows it."""
        self.send_header("Cache-Control", "no-cache" if self.path.endswith("/") else "max-age=31536000, immutable")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Stays silent."""


class IsolatedHandler(Handler):
    """Serves dist/ with cross-origin isolation."""

    def end_headers(self) -> None:
        """Adds the two headers."""
        for name, value in ISOLATION.items():
            self.send_header(name, value)
        super().end_headers()


@contextmanager
def served(folder: Path, handler: type[Handler] = Handler) -> Iterator[str]:
    """The address of a server for this folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def tell(page: Page, patience: int = 120) -> dict[str, Any]:
    """Tells one story and returns the worker's last message about it."""
    page.evaluate("notebook.length = 0")
    page.get_by_role("button", name="Tell", exact=True).click()
    return noted(page, "done", patience)


def noted(page: Page, type: str, patience: int = 120) -> dict[str, Any]:
    """The worker's message of this type, once it is there, for which so many seconds are waited."""
    found = "(wanted) => notebook.find(({ type }) => type === wanted)"
    try:
        page.wait_for_function(found, arg=type, polling=50, timeout=1000 * patience)
    except TimeoutError:
        said = page.get_by_role("alert").text_content()
        raise SystemExit(f"the worker has not said {type!r} for {patience} s; the page says: {said!r}") from None
    message: dict[str, Any] = page.evaluate(found, type)
    return message


def open_context(browser: Browser) -> BrowserContext:
    """For pages whose worker is another one than their host's: a service worker would bring that."""
    return browser.new_context(reduced_motion="reduce", service_workers="block")


def open_page(context: BrowserContext, url: str, temperature: float = 0, before_worker: str | None = None) -> Page:
    """A page that tells stories, greedy ones unless asked otherwise, as soon as it is there."""

    def with_script(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=f"{before_worker}{response.text()}")

    page = context.new_page()
    page.add_init_script(NOTEBOOK)
    if before_worker:
        page.route("**/worker-*.js", with_script)
    page.goto(url)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.evaluate("() => { document.querySelector('#fine').open = true; }")
    page.get_by_role("slider", name="Temperature").fill(str(temperature))
    return page


def boot(context: BrowserContext, url: str) -> dict[str, float]:
    """Milliseconds from opening the page to its readiness and to a story's first token; the first story's rate."""
    page = open_page(context, url)
    end = tell(page)
    marks = {
        name: page.evaluate(f"performance.getEntriesByName('{name}')[0].startTime") for name in ("ready", "first-token")
    }
    page.close()
    return {**marks, "rate": end["tokens_per_second"]}


def driver(context: BrowserContext, url: str, temperature: float) -> dict[str, float]:
    """How long a token takes outside run.wasm, once the browser has compiled everything it runs.

    Medians over tokens, so that what else the machine does to some of them does not count.
    """
    page = open_page(context, url, temperature, STOPWATCH)
    for _ in range(WARM_UP):
        tell(page)
    ends = [tell(page) for _ in range(STORIES)]
    page.close()

    tokens = [token for end in ends for token in end["tokens"]]

    def median(key: str, turn: bool) -> float:
        return 1000 * statistics.median(token[key] for token in tokens if token["turn"] == turn)

    turns = sum(token["turn"] for token in tokens) / len(tokens)
    outside = (1 - turns) * median("outside", turn=False)
    if turns:
        outside += turns * median("outside", turn=True)
    return {
        "rate": statistics.median(end["tokens_per_second"] for end in ends),
        "outside": outside,
        "share": 100 * outside / (outside + median("inside", turn=False)),
    }


def threads(context: BrowserContext, several_url: str, one_url: str) -> list[dict[str, float]]:
    """What threads bring: the engine's time for a token, one thread's ÷ several, and the rate of stories, in turns."""
    several = open_page(context, several_url, before_worker=COMPARISON)
    one = open_page(context, one_url)
    for page in (several, one):
        noted(page, "engine")
    rows = []
    for _ in range(WARM_UP + STORIES):
        told = tell(several)["tokens_per_second"]
        compared = noted(several, "engine")["seconds"]
        told_by_one = tell(one)["tokens_per_second"]
        noted(one, "engine")  # it is at rest
        means = [statistics.mean(seconds) for _threads, seconds in sorted(compared.items())]
        rows.append({"engine": means[0] / min(means[1:]) if means[1:] else 1, "story": told / told_by_one})
    several.close()
    one.close()
    return rows[WARM_UP:]


def watchdog(context: BrowserContext, url: str) -> list[dict[str, float]]:
    """Milliseconds from asking for a story to its end, where a visitor's code chooses that never returns."""
    page = open_page(context, url)
    page.get_by_role("button", name="Change the code that chooses").click()
    rows = []
    for body in LOOPS:
        page.get_by_role("textbox", name="Code", exact=True).focus()
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.press("Delete")
        page.keyboard.insert_text(f"def choose(logits):\n    {body}\n")
        page.evaluate("notebook.length = 0")
        page.keyboard.press("ControlOrMeta+Enter")
        ended = noted(page, "done")
        rows.append({"stopped": ended["at"] - noted(page, "coded")["at"]})
    page.close()
    return rows


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


def largest_page(browser: Browser) -> float:
    """The most memory that a page of this browser has had, with its worker, in MB (VmHWM of its process)."""
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    pages = [process["id"] for process in processes if process["type"] == "renderer"]
    said = [Path(f"/proc/{page}/status").read_text(encoding="ascii") for page in pages]
    return max(int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6 for text in said)


def print_real_page(playwright: Playwright) -> None:
    """Prints how soon SmolLM2 is there, how fast it tells and what memory it takes, if it was downloaded before.

    From the second visit on it comes out of the browser's own files. Its memory is what its page has had at most, after
    a story, beyond the shipped model's page.
    """
    path = file_of(SMOLLM2)
    if not path.is_file():
        return
    with FileSource(path) as source:
        config = read_gguf(source).config
    rate = count = 0
    ready: list[float] = []
    peaks: list[float] = []
    with TemporaryDirectory() as folder, served(Path(folder) / "dist", IsolatedHandler) as url, served(DIST) as shipped:
        bundle(path, None, Path(folder) / "dist")
        for address in (f"{shipped}#n=512", f"{url}#mode=story&n=2048"):
            browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_ARGUMENTS)
            context = browser.new_context(reduced_motion="reduce")
            ready.clear()
            for _ in range(1 + ROUNDS):
                page = context.new_page()
                page.add_init_script(NOTEBOOK)
                page.goto(address)
                noted(page, "engine")  # it is at rest
                ready.append(page.evaluate("performance.getEntriesByName('ready')[0].startTime"))
                page.close()
            page = open_page(context, address)
            told = tell(page, patience=600)
            rate, count = told["tokens_per_second"], told["tokens"]
            peaks.append(largest_page(browser))
            browser.close()
    print(f"{'SmolLM2-135M, page open to ready, first visit':56} {ready[0]:,.0f} ms")
    print(f"{'SmolLM2-135M, page open to ready, later visits':56} {spread(ready[1:], 'ms')}")
    print(f"{f'SmolLM2-135M, a story of {count:,} tokens, threads as chosen':56} {rate:,.0f} tokens/s")
    size, cache = path.stat().st_size / 1e6, cache_size(config) * count / 1e6
    took = f"{peaks[1] - peaks[0]:,.0f} MB; 1.35 × its file and the KV cache are {1.35 * size + cache:,.0f} MB"
    print(f"{'SmolLM2-135M, memory with that story':56} {took}")


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


def print_vocabularies() -> None:
    """Prints how long Python in the page takes over real vocabularies, of those models that are there already."""
    for model in (SMOLLM2, GEMMA3):
        path = file_of(model)
        if path.is_file():
            command = ("node", ROOT / "tests/vocabulary.mjs", path)
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)
            name = f"vocabulary of {found['tokens']:,} tokens in Pyodide"
            print(f"{name + ', loading':56} {spread(found['load'], 'ms')}")
            print(f"{name + ', 10,000 characters':56} {spread(found['encode'], 'ms', 1)}")


def print_sampling() -> None:
    """Prints how long Python in the page takes to choose a token of many, with each step on and off."""
    command = ("node", ROOT / "tests/in_pyodide.mjs", ROOT / "tests/sampling_cost.py", ROOT / "py")
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)
    for name, times in found.items():
        print(f"{'choosing one of 49,152 tokens, ' + name:72} {spread(times, 'µs')}")


def main() -> None:
    """Measures and prints everything."""
    about = "Measure what the README says of speed and size; takes a quarter of an hour."
    argparse.ArgumentParser(prog="python -m tests.figures", description=about).parse_args()
    model = ROOT / "web/models/stories.gguf"
    print_sizes()
    cold: list[dict[str, float]] = []
    warm: list[dict[str, float]] = []
    settled: dict[str, list[dict[str, float]]] = {"greedy": [], "as the page is set": [], "15M, greedy": []}
    terminal: list[float] = []
    stopped: list[dict[str, float]] = []
    with (
        TemporaryDirectory() as folder,
        served(DIST) as url,
        served(DIST, IsolatedHandler) as isolated,
        served(Path(folder) / "dist", IsolatedHandler) as large,
        served(Path(folder) / "dist") as large_plain,
        sync_playwright() as playwright,
    ):
        model_15m = write_random_model(Path(folder) / "15m.gguf", CONFIG_15M, type="Q8_0")
        bundle(model_15m, None, Path(folder) / "dist")
        browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_ARGUMENTS)
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS} ...", file=sys.stderr)
            visitor = browser.new_context(reduced_motion="reduce")  # no pace but the engine's
            cold.append(boot(visitor, url))
            warm.append(boot(visitor, url))
            visitor.close()
            context = open_context(browser)
            settled["greedy"].append(driver(context, isolated, temperature=0))
            settled["as the page is set"].append(driver(context, isolated, temperature=0.8))
            settled["15M, greedy"].append(driver(context, large, temperature=0))
            stopped += watchdog(context, url)
            context.close()
            terminal.append(wasmtime_rate(model))
        threaded: dict[str, list[dict[str, float]]] = {}
        for name, busy in (("at rest", False), ("beside a busy loop", True)):
            print(f"threads, {name} ...", file=sys.stderr)
            context = open_context(browser)
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
            try:
                threaded[name] = threads(context, large, large_plain)
            finally:
                if other:
                    other.kill()
            context.close()
        version = browser.version
        browser.close()
        print("SmolLM2 ...", file=sys.stderr)
        print_real_page(playwright)

    def show(name: str, rows: list[dict[str, float]], key: str, unit: str, digits: int = 0) -> None:
        print(f"{name:56} {spread([row[key] for row in rows], unit, digits)}")

    print_vocabularies()
    print_sampling()
    print(f"Chromium {version}, {ROUNDS} rounds, median [lowest – highest]")
    for name, rows in (("cold", cold), ("warm", warm)):
        show(f"page open to ready, {name}", rows, "ready", "ms")
        show(f"page open to first token of the story, {name}", rows, "first-token", "ms")
    show("page, the first story", warm, "rate", "tokens/s")
    for name, rows in settled.items():
        show(f"page, stories after {WARM_UP} others, {name}", rows, "rate", "tokens/s")
        show("... outside run.wasm, per token", rows, "outside", "µs")
        show("... outside run.wasm, share of a token's time", rows, "share", "%", digits=1)
    show("code without end, until it is stopped", stopped, "stopped", "ms")
    show("wasmtime, the first story", [{"rate": rate} for rate in terminal], "rate", "tokens/s")
    for name, rows in threaded.items():
        show(f"threads ÷ one, 15M, the engine alone, {name}", rows, "engine", "×", digits=2)
        show(f"threads ÷ one, 15M, stories, {name}", rows, "story", "×", digits=2)


if __name__ == "__main__":
    sys.exit(run_command("figures", main))
