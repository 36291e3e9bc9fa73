"""What the tests share: a built page, a plain static host that can misbehave, a browser that is watched."""

from __future__ import annotations

import http.server
import os
import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser, BrowserContext, Locator, Page, TimeoutError, expect, sync_playwright

from builder.install import find_browser
from builder.page import bundle
from builder.serve import PageHandler, content_security_policy
from builder.tools import ROOT, WEB
from fabella.modelfile import Config

from .patience import PATIENCE
from .random_models import write_as_f32, write_random_model

expect.set_options(timeout=1000 * PATIENCE)
# How long an example takes is the machine's affair.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# What is expected was computed on a CPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# A suite that runs in the background or under nohup ignores these, and so would every program that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

SUBPATH = "/some/sub/path/"
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # there is no other host to be reached
]

RANDOM_CONFIG = Config(
    dim=192, hidden_dim=512, n_layers=4, n_heads=6, n_kv_heads=3, vocab_size=1500, seq_len=3000, norm_eps=1e-5
)


# ---- Models and built pages ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, for all that does not depend on what a story says."""
    return write_random_model(tmp_path_factory.mktemp("random") / "random.gguf", RANDOM_CONFIG, type="Q8_0")


@pytest.fixture(scope="session")
def shipped_model() -> Path:
    """The model of the page as it is published."""
    return WEB / "models/stories.gguf"


@pytest.fixture(scope="session")
def shipped_model_f32(shipped_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with its Q4_0 weights written out as F32."""
    return write_as_f32(shipped_model, tmp_path_factory.mktemp("shipped") / "stories-f32.gguf")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Builds the page around a model, once for each."""
    pages: dict[Path, Path] = {}

    def build_around(model: Path) -> Path:
        if model not in pages:
            pages[model] = tmp_path_factory.mktemp("page") / "dist"
            bundle(model, None, pages[model])
        return pages[model]

    return build_around


# ---- The host --------------------------------------------------------------------------------------------------------

Fault = Callable[["Handler", Path], None]


class Handler(http.server.SimpleHTTPRequestHandler):
    """A static host without any special header, except where the test asks for one: browsers keep none of its files."""

    protocol_version = "HTTP/1.1"
    extensions_map = PageHandler.extensions_map

    def __init__(self, site: Site, *arguments: Any) -> None:
        self.site = site
        super().__init__(*arguments, directory=str(site.folder))

    def do_GET(self) -> None:
        """Serves a file below the subpath, or does what the test wants instead."""
        path = unquote(urlsplit(self.path).path)
        self.site.requests.append(path)
        if not path.startswith(self.site.subpath):
            self.send_error(404)
            return
        self.path = path.removeprefix(self.site.subpath.rstrip("/"))
        self.directory = str(self.site.folder)  # a connection may be older than what is there now
        file = self.site.folder / self.path.lstrip("/")
        fault = next((fault for end, fault in self.site.faults.items() if path.endswith(end)), None)
        if fault:
            fault(self, file)
        else:
            super().do_GET()

    def do_POST(self) -> None:
        """Takes a report of what the Content-Security-Policy forbade."""
        self.site.reports.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(b"")

    def handle(self) -> None:
        """Answers one connection, which the browser may close when it likes."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def end_headers(self) -> None:
        """Adds the test's headers."""
        for name, value in self.site.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Stays silent: what went wrong was asked for."""

    def answer(self, body: bytes, length: int | None = None, type: str = "application/octet-stream") -> None:
        """Sends a body, with a Content-Length that may be a lie; -1 sends none."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", type)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


class Site:
    """A folder on a host of its own, below a path; `faults` says what to do for files that end so."""

    def __init__(self, folder: Path, subpath: str = SUBPATH) -> None:
        self.folder = folder
        self.subpath = subpath
        # A browser may keep a file for a tenth of its age if nothing is said: a fault made later would not be met.
        self.headers = {"Cache-Control": "no-store"}
        self.faults: dict[str, Fault] = {}
        self.reports: list[bytes] = []
        self.requests: list[str] = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.origin = f"http://127.0.0.1:{self.server.server_port}"
        self.url = self.origin + quote(subpath)
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def reporting_policy(self) -> str:
        """The page's own policy, with violations reported to this host."""
        policy = content_security_policy((self.folder / "index.html").read_text(encoding="utf-8"))
        return f"{policy}; report-uri {SUBPATH}report"

    def close(self) -> None:
        """Stops the host."""
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(built: Callable[[Path], Path], random_model: Path) -> Iterator[Site]:
    """The page around the random model, on a host."""
    site = Site(built(random_model))
    yield site
    site.close()


# ---- The browser -----------------------------------------------------------------------------------------------------

# Runs before the page's own script: notes what goes between the page and its worker, and what the policy forbids.
NOTEBOOK = """
window.notebook = { sent: [], received: [], heard: false, violations: [], textAtStop: null };
addEventListener("securitypolicyviolation", (event) => notebook.violations.push(event.violatedDirective));
addEventListener("click", (event) => {
  if (event.target.textContent === "Stop") notebook.textAtStop = document.querySelector("#story").textContent;
}, true);
window.Worker = class extends Worker {
  constructor(...parameters) {
    super(...parameters);
    notebook.worker = this;
    this.addEventListener("message", ({ data }) => {
      notebook.heard = true;
      if (!["progress", "counted"].includes(data.type)) notebook.received.push({ ...data, at: performance.now() });
    });
  }
  postMessage(data, given) {
    if (data.type !== "count") notebook.sent.push({ ...data, python: null, at: performance.now() });
    super.postMessage(data, given);
  }
};
"""

# The page draws a seed for each story: here the same ones in each run, or one in hundreds would be the seed of a story
# that is over after a few tokens, and a test that means a longer one would fail. A reload begins with the first again.
SEEDS = """
(() => {
  const draw = Crypto.prototype.getRandomValues;
  let drawn = 0;
  Crypto.prototype.getRandomValues = function (array) {
    if (!(array instanceof Uint32Array)) return draw.call(this, array);
    array.set(array.map(() => Math.imul(++drawn, 0x9e3779b1)));
    return array;
  };
})();
"""


NAMES = {"top_p": "Top-p", "top_k": "Top-k", "min_p": "Min-p", "repetition_penalty": "Repetition penalty"}


class Visit:
    """A visitor on the page, who knows it by its accessible names, and a record of what the browser did for it."""

    def __init__(self, context: BrowserContext) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context = context
        context.set_default_timeout(1000 * PATIENCE)
        context.add_init_script(SEEDS)
        self.page: Page = context.new_page()
        self.page.add_init_script(NOTEBOOK)
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.page.on(
            "console", lambda message: self.complaints.append(message.text) if message.type == "error" else None
        )

        self.prompt = self.page.get_by_role("textbox", name="Prompt")
        self.tell_button = self.page.get_by_role("button", name="Tell", exact=True)
        self.stop_button = self.page.get_by_role("button", name="Stop", exact=True)
        self.again_button = self.page.get_by_role("button", name="Try again")
        self.reload_button = self.page.get_by_role("button", name="Reload the page")
        self.story = self.page.get_by_role("region", name="Story", exact=True)
        self.status = self.page.locator("#status")
        self.alert = self.page.get_by_role("alert")

    def open(self, site: Site, ready: bool = True) -> Visit:
        """Goes to the page and, if so wished, waits until the model is there."""
        self.page.goto(site.url)
        return self.awake() if ready else self

    def awake(self) -> Visit:
        """Waits until the model is there."""
        self.page.wait_for_function("() => ['ready', 'failed'].includes(document.body.dataset.state)")
        assert not self.alert.text_content(), (self.alert.text_content(), self.complaints)
        expect(self.status).to_have_text(re.compile("^The (storyteller|model) is ready.$"))
        return self

    def becomes(self, state: str) -> None:
        """Waits until the page is "ready" or has "failed", whether frames are drawn or not."""
        self.page.wait_for_function("(state) => document.body.dataset.state === state", arg=state, polling=50)

    def press_reload(self) -> None:
        """Presses the page’s own reload, and waits for the new page: until then the old one has its state, or none."""
        with self.page.expect_event("load"):
            self.reload_button.click()

    def setting(self, name: str) -> Locator:
        """The control of a setting."""
        self.page.evaluate("() => { document.querySelector('#fine').open = true; }")
        return self.page.get_by_role("textbox" if name == "Seed" else "slider", name=name)

    def set(self, **settings: object) -> None:
        """Sets settings by their names."""
        for name, value in settings.items():
            self.setting(NAMES.get(name, name.capitalize())).fill(str(value))

    def ask(self, prompt: str, **settings: object) -> None:
        """Types a prompt, sets settings, and presses Tell."""
        self.prompt.fill(prompt)
        self.set(**settings)
        self.tell_button.click()

    def tell(self, prompt: str, **settings: object) -> str:
        """Asks for a story, waits for its end, and returns its text."""
        before = len(self.received("done"))
        self.ask(prompt, **settings)
        ended = """(before) => document.querySelector("#problem").textContent
            || notebook.received.filter(({ type }) => type === "done").length > before"""
        self.page.wait_for_function(ended, arg=before, polling=20)
        expect(self.alert).to_be_empty()
        expect(self.tell_button).to_be_visible()
        return self.story.text_content() or ""

    def received(self, type: str) -> list[dict[str, Any]]:
        """The worker's messages of a type, in their order."""
        messages: list[dict[str, Any]] = self.page.evaluate("notebook.received")
        return [message for message in messages if message["type"] == type]

    def steps(self) -> list[dict[str, Any]]:
        """The steps of the last story."""
        messages = self.received("steps")
        return [step for message in messages if message["id"] == messages[-1]["id"] for step in message["steps"]]

    def violations(self) -> list[str]:
        """What the Content-Security-Policy has forbidden, on the page and in its worker."""
        in_page: list[str] = self.page.evaluate("notebook.violations")
        return in_page + [text for text in self.complaints if "Content Security Policy" in text]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The machine's Chromium or Chrome."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A visitor whose browser must not leave the origin nor violate the policy, whatever else the test is about."""
    # Without a service worker every file comes from the host, with the fault that a test has put there.
    context = browser.new_context(
        viewport={"width": 1200, "height": 900}, reduced_motion="reduce", service_workers="block"
    )
    visit = Visit(context)
    yield visit
    if visit.requests:
        page = urlsplit(visit.requests[0])
        # (A blob: URL is the page's own memory.)
        foreign = [url for url in visit.requests if urlsplit(url.removeprefix("blob:"))[:2] != page[:2]]
        assert not foreign, "requests that leave the origin"
        assert not visit.violations(), "violations of the Content-Security-Policy"
    context.close()


Shoot = Callable[..., None]


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """The folder where pictures of the page are kept for people to look at."""
    folder = ROOT / "out/screenshots"
    folder.mkdir(parents=True, exist_ok=True)  # several processes put theirs there
    return folder


@pytest.fixture(scope="session")
def shoot(screenshots: Path) -> Shoot:
    """Keeps a picture of a page, under a name, for people to look at."""

    def shoot(page: Page, name: str, **how: Any) -> None:
        for seconds in (30, 30, PATIENCE):  # a busy Chromium may forget that it was asked for one
            try:
                page.screenshot(path=screenshots / f"{name}.png", timeout=1000 * seconds, **how)
                return
            except TimeoutError:
                if seconds == PATIENCE:
                    raise

    return shoot
