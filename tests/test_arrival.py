"""The page where its parts do not arrive: each fault of a host, a network or a browser is said in one true sentence.

A sentence names the part and the way out. The page goes on where it can, and asks nobody but its own host.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from builder.offers import hashes_of
from builder.page import ASSETS_BLOCK

from .conftest import SUBPATH, Fault, Handler, Site, Visit
from .faults import (
    cut_off,
    empty,
    flipped,
    half,
    hang_up,
    missing,
    names,
    overloaded,
    reset,
    too_long,
    too_short,
    web_page,
    web_page_of_its_size,
)
from .gate import Gate, begun_with
from .kept import forget
from .stories import PROMPT

PARTS = {
    "worker-*.js": "The storyteller’s script",
    "pyodide.asm.mjs": "The Python engine’s script",
    "pyodide.asm.wasm": "The Python engine",
    "python-stdlib-*.zip": "The Python engine’s library",
    "python-*.bin": "The storyteller’s program",
    "run-*.wasm": "The engine (run.wasm)",
    "*.gguf": "The model file",
}
HASHED = [pattern for pattern in PARTS if pattern != "worker-*.js"]
FETCHED_BY_WORKER = ["python-stdlib-*.zip", "run-*.wasm", "*.gguf"]


def assert_says(visit: Visit, *said: str) -> None:
    """Waits for the page's sentence, which must hold these words."""
    visit.becomes("failed")
    for words in said:
        expect(visit.alert).to_contain_text(words)
    for wrong in ("unforeseen", "[object", "undefined", "newer browser"):
        expect(visit.alert).not_to_contain_text(wrong)
    expect(visit.prompt).to_be_editable()


EXPECTED = [
    *((missing, part, "it is not there (404)", "reload") for part in PARTS),
    *((web_page, part, "the server sends a web page", "reload") for part in PARTS),
    *((cut_off, part, "stopped arriving halfway", "again") for part in PARTS),
    *((reset, part, "stopped arriving halfway", "again") for part in ("run-*.wasm", "pyodide.asm.*", "*.gguf")),
    *((hang_up, part, "Check your connection", "again") for part in ("worker-*.js", "*.wasm", "*.gguf")),
    *((overloaded, part, "the server answers 503", "again") for part in ("worker-*.js", "*.bin", "*.gguf")),
    *((flipped, part, "some of its bytes are others", "reload") for part in HASHED),
    *((too_short, part, "bytes were expected, and only", "reload") for part in ("*.zip", "*.gguf")),
    *((too_long, part, "bytes were expected, and more came", "reload") for part in ("*.bin", "*.gguf")),
    *((empty, part, "and only 0 came", "reload") for part in ("*.bin", "*.gguf")),
    (half, "worker-*.js", "bytes were expected, and only", "reload"),
    (web_page_of_its_size, "*.gguf", "the server sends a web page", "reload"),
]


def test_whatever_does_not_arrive_whole_is_named_with_the_way_out(visit: Visit, site: Site) -> None:
    visit.open(site)
    for fault, pattern, said, way_out in EXPECTED:
        site.faults = names(site, pattern, fault)
        forget(visit)
        visit.page.reload()
        name = PARTS.get(pattern, "")
        assert_says(visit, name, said)
        expect(visit.reload_button if way_out == "reload" else visit.again_button).to_be_visible()
    site.faults.clear()
    visit.press_reload()
    assert visit.awake().tell(PROMPT, length=30).startswith(PROMPT)


def test_try_again_goes_on_without_losing_the_prompt(visit: Visit, site: Site) -> None:
    site.faults = names(site, "*.gguf", cut_off)
    visit.open(site, ready=False)
    assert_says(visit, "stopped arriving halfway")
    visit.prompt.fill("A story that I typed meanwhile")
    site.faults.clear()
    visit.again_button.click()
    text = visit.awake().tell("A story that I typed meanwhile", length=60)
    assert text.startswith("A story that I typed meanwhile")


def test_a_story_asked_for_loads_what_had_failed(visit: Visit, site: Site) -> None:
    site.faults = names(site, "*.gguf", cut_off)
    visit.open(site, ready=False)
    assert_says(visit, "stopped arriving halfway")
    site.faults.clear()
    visit.prompt.fill(PROMPT)
    visit.prompt.press("Enter")
    expect(visit.page.locator("#ending")).to_be_visible()
    expect(visit.story).to_contain_text(PROMPT)


# ---- Silence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["worker-*.js", "pyodide.asm.wasm", "python-*.bin", *FETCHED_BY_WORKER])
@pytest.mark.parametrize("begun", [False, True], ids=["never answered", "halfway"])
def test_a_host_that_falls_silent_is_not_waited_for_for_ever(
    visit: Visit, site: Site, pattern: str, begun: bool
) -> None:
    over, asked = Event(), Event()

    def fall_silent(handler: Handler, file: Path) -> None:
        if begun:
            handler.answer(file.read_bytes()[:1000], file.stat().st_size)
            handler.wfile.flush()
        asked.set()
        over.wait()

    gate = Gate(visit, site)
    site.faults |= names(site, pattern, fall_silent)
    visit.open(site, ready=False)
    asked.wait()
    if pattern in FETCHED_BY_WORKER:
        visit.page.wait_for_function("() => notebook.heard")  # the worker has not fallen silent
    while visit.page.evaluate("document.body.dataset.state") != "failed":
        gate.silence()  # the answer may not have reached the browser yet: then this is the silence before it
    assert_says(visit, PARTS[pattern], "nothing has come for 15 seconds")
    expect(visit.again_button).to_be_visible()
    over.set()
    site.faults.clear()
    visit.again_button.click()
    visit.awake()


def test_a_worker_that_says_nothing_is_not_waited_for_for_ever(visit: Visit, site: Site) -> None:
    """Its script is empty, as some hosts answer when they fail."""
    gate = Gate(visit, site)
    site.faults = names(site, "worker-*.js", empty)
    visit.open(site, ready=False)
    gate.wait_for_worker()
    while visit.page.evaluate("document.body.dataset.state") == "loading":
        gate.silence()
    assert_says(visit, PARTS["worker-*.js"], "and only 0 came")
    expect(visit.reload_button).to_be_visible()


# ---- A page without its script ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [missing, hang_up, web_page, empty], ids=lambda fault: fault.__name__)
def test_without_its_script_the_page_says_so_itself(visit: Visit, site: Site, fault: Fault) -> None:
    site.faults = names(site, "app-*.js", fault)
    visit.page.goto(site.url)
    asleep = visit.page.get_by_text("Still asleep?")
    expect(asleep).to_be_visible()
    expect(asleep).to_contain_text("reload the page")
    expect(asleep).to_have_css("position", "static")
    expect(visit.status).to_have_text("The storyteller is asleep until this page’s script wakes it.")
    site.faults.clear()
    visit.page.reload()
    visit.awake()
    expect(asleep).to_have_count(0)
    visit.complaints.clear()


def test_without_javascript_the_page_says_so_itself(browser: Browser, site: Site) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site.url)
    expect(page.locator("noscript p")).to_be_visible()
    expect(page.locator("noscript p")).to_contain_text("JavaScript is switched off")
    expect(page.locator("#asleep")).to_be_hidden()  # it would say the same
    context.close()


def test_opened_from_a_file_it_asks_for_a_web_server(browser: Browser, site: Site) -> None:
    context = browser.new_context()
    visit = Visit(context)
    visit.page.goto((site.folder / "index.html").as_uri())
    assert_says(visit, "opened from a file", "web server")
    context.close()


# ---- Browsers --------------------------------------------------------------------------------------------------------

OFF = "delete globalThis.WebAssembly;"


@pytest.mark.parametrize("where", ["page", "worker"])
def test_webassembly_switched_off(visit: Visit, site: Site, where: str) -> None:
    if where == "page":
        visit.page.add_init_script(OFF)
    else:
        site.faults = names(site, "worker-*.js", begun_with(OFF))
    visit.open(site, ready=False)
    assert_says(visit, "WebAssembly is switched off in this browser")
    expect(visit.alert).not_to_contain_text("connection")


def test_webassembly_without_simd(visit: Visit, site: Site) -> None:
    visit.page.add_init_script("WebAssembly.validate = () => false")
    visit.open(site, ready=False)
    visit.becomes("failed")
    expect(visit.alert).to_contain_text("has no SIMD")


UNREADABLE = """
const { createObjectURL } = URL;
URL.createObjectURL = (blob) => createObjectURL(new Blob(["this is no JavaScript;", blob], { type: blob.type }));
"""


def test_a_script_that_the_browser_cannot_read_is_named(visit: Visit, site: Site) -> None:
    visit.page.add_init_script(UNREADABLE)
    visit.open(site, ready=False)
    visit.becomes("failed")
    expect(visit.alert).to_contain_text("The storyteller’s script did not start")
    visit.complaints.clear()


# ---- Any static host -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["application/octet-stream", "text/plain", "text/html"])
def test_it_does_not_matter_what_types_a_host_sends(visit: Visit, site: Site, type: str) -> None:
    def mistyped(handler: Handler, file: Path) -> None:
        handler.answer(file.read_bytes(), type=type)

    site.faults = dict.fromkeys((".js", ".mjs", ".wasm", ".zip", ".bin", ".gguf"), mistyped)
    assert visit.open(site).tell(PROMPT, length=30).startswith(PROMPT)
    assert visit.complaints == []


def test_a_host_may_compress_everything(visit: Visit, site: Site) -> None:
    def compressed(handler: Handler, file: Path) -> None:
        body = gzip.compress(file.read_bytes(), 1)
        handler.send_response(200)
        handler.send_header("Content-Type", handler.guess_type(file))
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    site.faults = dict.fromkeys((".js", ".mjs", ".wasm", ".zip", ".bin", ".gguf"), compressed)
    assert visit.open(site).tell(PROMPT, length=30).startswith(PROMPT)
    progress = visit.page.get_by_role("progressbar", name="Download", include_hidden=True)
    assert progress.evaluate("(bar) => bar.value === bar.max"), "bytes are counted as the page gets them"


@pytest.mark.parametrize("subpath", ["/", "/with space/100%/ü#1/", "/what?/&amp;/"])
def test_it_does_not_matter_where_the_page_lies(
    visit: Visit, built: Callable[[Path], Path], random_model: Path, subpath: str
) -> None:
    site = Site(built(random_model), subpath)
    try:
        assert visit.open(site).tell(PROMPT, length=30).startswith(PROMPT)
    finally:
        site.close()


def test_without_stated_lengths(visit: Visit, site: Site) -> None:
    def unmeasured(handler: Handler, file: Path) -> None:
        handler.answer(file.read_bytes(), -1, type=handler.guess_type(file))

    site.faults = dict.fromkeys((".js", ".mjs", ".wasm", ".zip", ".bin", ".gguf"), unmeasured)
    assert visit.open(site).tell(PROMPT, length=30).startswith(PROMPT)


# ---- Nothing leaves the origin ---------------------------------------------------------------------------------------


@pytest.fixture
def stranger(site: Site) -> Iterator[Site]:
    """Another host, which has all the files and would gladly give them to anybody."""
    stranger = Site(site.folder)
    stranger.headers |= {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
    yield stranger
    stranger.close()


def test_no_part_is_fetched_from_elsewhere_when_the_host_says_so(visit: Visit, site: Site, stranger: Site) -> None:
    def redirect(handler: Handler, file: Path) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{stranger.origin}{SUBPATH}{file.relative_to(site.folder)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    visit.open(site)
    for pattern, name in PARTS.items():
        site.faults = names(site, pattern, redirect)
        forget(visit)
        visit.page.reload()
        assert_says(visit, name, "to another address")
    assert stranger.requests == []
    visit.requests.clear()  # the browser names those that it has refused


def test_a_redirect_within_the_host_is_followed(visit: Visit, site: Site) -> None:
    def redirect(handler: Handler, file: Path) -> None:
        site.faults.clear()
        handler.send_response(302)
        handler.send_header("Location", f"{SUBPATH}{file.relative_to(site.folder)}?moved")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    site.faults = names(site, "*.gguf", redirect)
    visit.open(site)


@pytest.mark.parametrize(
    ("policy", "directive"),
    [
        ("default-src 'self'; style-src 'unsafe-inline'", "(script-src|worker-src)"),  # whichever comes first
        ("default-src 'self' 'wasm-unsafe-eval'; style-src 'unsafe-inline'", "worker-src"),
        ("connect-src 'none'", "connect-src"),
        ("worker-src blob:; script-src 'self'", "script-src"),  # without 'wasm-unsafe-eval'
        ("require-trusted-types-for 'script'", "require-trusted-types-for"),
    ],
)
def test_a_policy_of_the_hosts_own_is_named_where_it_forbids_the_page(
    visit: Visit, site: Site, policy: str, directive: str
) -> None:
    site.headers["Content-Security-Policy"] = policy
    visit.open(site, ready=False)
    assert_says(visit, "a Content-Security-Policy that forbids what the page needs")
    expect(visit.alert).to_contain_text(re.compile(rf"\({directive}\)"))
    visit.complaints.clear()
    del site.headers["Content-Security-Policy"]
    visit.press_reload()
    visit.awake()


def test_in_a_sandbox_the_page_says_so(visit: Visit, site: Site) -> None:
    """As sites show pages of their users."""
    site.headers["Content-Security-Policy"] = "sandbox allow-scripts"
    visit.open(site, ready=False)
    assert_says(visit, "in a sandbox")


REACHING_OUT = """
const attempts = [
  fetch(%(url)s, { mode: "no-cors" }),
  import(%(url)s + "assets/x.js"),
  new Promise((resolve, reject) => {
    const socket = new WebSocket(%(url)s.replace("http", "ws"));
    Object.assign(socket, { onopen: resolve, onerror: reject });
  }),
];
Promise.allSettled(attempts).then((outcomes) => {
  new BroadcastChannel("outcomes").postMessage(outcomes.map(({ status }) => status));
});
"""


def test_the_worker_is_under_the_policy_on_a_host_that_sends_none(visit: Visit, site: Site, stranger: Site) -> None:
    site.faults = names(site, "worker-*.js", begun_with(REACHING_OUT % {"url": json.dumps(stranger.url)}))
    visit.page.add_init_script(
        "new BroadcastChannel('outcomes').onmessage = ({ data }) => { window.outcomes = data; };"
    )
    visit.open(site)
    outcomes = visit.page.wait_for_function("() => window.outcomes").json_value()
    assert outcomes == ["rejected"] * 3
    assert stranger.requests == []
    visit.requests.clear()  # the browser names those that it has refused
    visit.complaints.clear()


# ---- A model that is whole, and broken -------------------------------------------------------------------------------


def manifest(folder: Path) -> dict[str, Any]:
    """What index.html says of the page's files."""
    found = re.search(f"{ASSETS_BLOCK}(.*?)</script>", (folder / "index.html").read_text(encoding="utf-8"))
    assert found
    assets: dict[str, Any] = json.loads(found[1])
    return assets


@pytest.fixture
def altered(site: Site, tmp_path: Path) -> Site:
    """The site with a copy of its folder, which a test may alter."""
    site.folder = shutil.copytree(site.folder, tmp_path / "page")
    return site


def alter_model(site: Site, alter: Callable[[bytes], bytes]) -> None:
    """Alters the model, and index.html so that the page takes it for the one that it was built with."""
    assets = manifest(site.folder)
    path = site.folder / assets["model"]["url"]
    path.write_bytes(alter(path.read_bytes()))
    index = site.folder / "index.html"
    text = index.read_text(encoding="utf-8")
    altered = assets["model"] | hashes_of(path)
    index.write_text(text.replace(json.dumps(assets["model"]), json.dumps(altered)), encoding="utf-8")


def test_a_model_that_python_or_the_engine_refuses(visit: Visit, altered: Site) -> None:
    alter_model(altered, lambda data: data[:-4] + struct.pack("<f", math.nan))
    visit.open(altered, ready=False)
    assert_says(visit, "output_norm.weight: holds a value that is not a finite number")
    alter_model(altered, lambda data: data.replace(b"token_embd", b"tokin_embd"))
    visit.page.reload()
    assert_says(visit, "tokin_embd")
