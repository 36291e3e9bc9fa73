"""Live Python on the page: the editor, the examples, what goes wrong or never ends, what code cannot reach."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from builder.tools import NODE_MODULES
from fabella import samplers

from .conftest import Site, Visit
from .stories import PROMPT, assert_told, reference
from .test_leaf import told

LIKELIEST = "def choose(logits):\n    return logits.shortlist(1)[0][0]\n"
SLOWLY = (
    "import time\n\ndef choose(logits):\n    time.sleep(0.05)\n    print('{}')\n    return logits.shortlist(2)[{}][0]\n"
)
TITLES = [example["title"] for example in samplers.texts()["examples"]]  # type: ignore[attr-defined]
AXE = NODE_MODULES / "axe-core/axe.min.js"


@pytest.fixture
def site(built: Callable[[Path], Path], shipped_model: Path) -> Iterator[Site]:
    """The page as it is published."""
    site = Site(built(shipped_model))
    yield site
    site.close()


class Coder:
    """A visitor who writes code."""

    def __init__(self, visit: Visit, site: Site) -> None:
        self.visit, self.page = visit, visit.page
        visit.open(site)
        visit.setting("Temperature").fill("0.8")
        visit.setting("Repetition penalty").fill("1")
        visit.setting("Seed").fill("1")
        visit.setting("Length").fill("60")
        visit.page.get_by_role("radio", name="at once").check()
        visit.prompt.fill(PROMPT)
        self.open()

    def open(self) -> None:
        self.page.get_by_role("button", name="Change the code that chooses").click()
        expect(self.editor).to_be_focused()

    @property
    def editor(self) -> Locator:
        return self.page.get_by_role("textbox", name="Code", exact=True)

    @property
    def console(self) -> Locator:
        return self.page.get_by_role("log", name="Console")

    @property
    def problem(self) -> Locator:
        return self.page.locator("#code-problem")

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def write(self, source: str) -> None:
        self.editor.focus()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.press("Delete")  # Chromium would keep a selection's style, inline, which the policy forbids
        self.page.keyboard.insert_text(source)

    def run(self, source: str) -> None:
        """Writes code and has it choose, by keyboard."""
        self.write(source)
        self.page.keyboard.press("ControlOrMeta+Enter")

    def text(self) -> str:
        """All that is in the editor, of which it shows only what is in view."""
        kept = "localStorage.getItem('fabella ' + location.pathname + ' code')"
        return str(self.page.evaluate(kept) or samplers.chain())


@pytest.fixture
def coder(visit: Visit, site: Site) -> Coder:
    return Coder(visit, site)


def test_the_editor_is_loaded_when_it_is_opened(visit: Visit, site: Site) -> None:
    def fetched() -> set[str]:
        return {name for url in visit.requests if (name := re.sub(r".*/assets/(\w+)-.*", r"\1", url)) in PARTS}

    PARTS = {"code", "samplers", "live"}
    visit.open(site)
    visit.tell(PROMPT, length=20)
    assert fetched() == set()
    visit.page.get_by_role("button", name="Change the code that chooses").click()
    expect(visit.page.get_by_role("textbox", name="Code", exact=True)).to_be_focused()
    assert fetched() == {"code", "samplers"}
    visit.page.keyboard.press("ControlOrMeta+Enter")
    told(visit, 2)
    assert fetched() == PARTS


def test_the_sampler_s_own_source_tells_the_same_story(coder: Coder, shipped_model: Path) -> None:
    coder.press("Run")
    told(coder.visit, 1)
    assert_told(coder.visit, reference(shipped_model, PROMPT, 60, temperature=0.8))
    expect(coder.problem).to_be_empty()


def test_examples_run_in_the_page(coder: Coder) -> None:
    for number, title in enumerate(TITLES, 1):
        coder.page.get_by_role("combobox", name="Example").select_option(title)
        coder.press("Run")
        assert len(told(coder.visit, number).split()) > 8, title
        expect(coder.problem).to_be_empty()


def test_an_edit_counts_from_the_next_token_on(coder: Coder, shipped_model: Path) -> None:
    coder.visit.setting("Length").fill("400")
    coder.run(SLOWLY.format("first", 0))
    expect(coder.console).to_contain_text("first\nfirst")
    coder.write(SLOWLY.format("second", 1))
    expect(coder.console).to_contain_text("second\nsecond")
    coder.page.keyboard.press("Escape")
    told(coder.visit, 1)
    assert len([sent for sent in coder.page.evaluate("notebook.sent") if sent["type"] == "tell"]) == 1
    printed = (coder.console.text_content() or "").split()
    first = printed.count("first")
    assert printed == ["first"] * first + ["second"] * (len(printed) - first)
    tokens = [step["token"] for step in coder.visit.steps()]
    likeliest = [step.token for step in reference(shipped_model, PROMPT, 400, temperature=0)]
    given = len(tokens) - len(printed)
    assert tokens[: given + first] == likeliest[: given + first]
    assert tokens[given + first] != likeliest[given + first]


def test_an_error_shows_its_line_and_the_story_waits(coder: Coder, shipped_model: Path) -> None:
    source = samplers.chain()
    wrong = source.replace(
        '    """Return the next token: this is called before each."""\n', "    if len(logits.tokens) == 30: oops\n"
    )
    line = 1 + wrong[: wrong.index("oops")].count("\n")
    coder.run(wrong)
    expect(coder.problem).to_have_text(f"Line {line}: NameError: name 'oops' is not defined")
    expect(coder.page.locator(".cm-wrong")).to_contain_text("oops")
    expect(coder.page.locator("#reason")).to_have_text("It waits here: your code went wrong.")
    expected = reference(shipped_model, PROMPT, 60, temperature=0.8)
    begun = coder.visit.story.text_content() or ""
    whole = "".join(step.text for step in expected)
    assert whole.startswith(begun)
    assert whole != begun
    coder.run(source)  # and it goes on, as if nothing had been
    assert told(coder.visit, 2) == whole
    expect(coder.problem).to_be_empty()


def test_what_is_no_python_is_not_used(coder: Coder) -> None:
    coder.run("def choose(logits)\n    pass")
    expect(coder.problem).to_have_text("Line 1: SyntaxError: expected ':'")
    expect(coder.page.get_by_text("The sampler chooses the words")).to_be_visible()
    coder.visit.tell(PROMPT)


def test_an_endless_loop_is_stopped_and_named(coder: Coder) -> None:
    coder.run("def choose(logits):\n    while True:\n        print('again')")
    expect(coder.problem).to_have_text(
        re.compile(r"^Line [23]: stopped after 0.4 seconds: a loop without end\? Line [23]:")
    )
    expect(coder.console).to_contain_text("characters more")
    expect(coder.visit.alert).to_be_empty()
    sent = next(m["at"] for m in coder.page.evaluate("notebook.sent") if m["type"] == "tell")
    done = coder.visit.received("done")[0]["at"]
    print(f"stopped after {done - sent:.0f} ms")
    coder.run(LIKELIEST)
    told(coder.visit, 2)


# What no watchdog reaches.
HANGS = {
    "power": "9 ** 9 ** 9",
    "expression": "__import__('re').match('(a+)+$', 'a' * 50 + 'b')",
    "iterator": "max(iter(int, 1))",
    "the driver": "exec('import fabella.engine\\ndef f(*a):\\n while True: pass\\nfabella.engine.Engine.forward = f')",
    "the end of the worker": "__import__('js').close()",
}


@pytest.mark.parametrize("name", HANGS)
def test_what_hangs_costs_the_worker_and_nothing_else(coder: Coder, name: str) -> None:
    """The storyteller is started anew by the page itself, with the model that is kept."""
    models = sum(url.endswith(".gguf") for url in coder.visit.requests)
    coder.run(f"def choose(logits):\n    {HANGS[name]}\n    return 5\n")
    expect(coder.problem).to_contain_text("The storyteller was started anew.")
    expect(coder.page.locator("body")).to_have_attribute("data-state", "ready")
    expect(coder.visit.alert).to_be_empty()
    assert HANGS[name].split("\\n")[0] in coder.text()
    coder.run(LIKELIEST)
    expect(coder.problem).to_be_empty()
    coder.page.wait_for_function(
        "() => notebook.received.some(({ type, reason }) => type === 'done' && reason !== 'code')"
    )
    assert sum(url.endswith(".gguf") for url in coder.visit.requests) == models


# Each is a way out that a visitor's code might try; what it finds there is printed.
WAYS_OUT = {
    "another host": "js.fetch('https://example.com/')",
    "the page's own host": "js.fetch('index.html')",
    "pyodide's way to a host": "__import__('pyodide.http', fromlist=['x']).pyfetch('index.html').send(None)",
    "a request": "js.XMLHttpRequest.new()",
    "a socket": "js.WebSocket.new('wss://example.com')",
    "Python's socket": "__import__('urllib.request', fromlist=['x']).urlopen('http://127.0.0.1')",
    "conversations": "js.indexedDB.open('fabella')",
    "models": "js.navigator.storage.getDirectory()",
    "caches": "js.caches.open('x')",
    "another worker": "js.Worker.new('blob:x')",
    "other pages": "js.BroadcastChannel.new('x')",
    "JavaScript": "js.eval('1')",
    "a function": "js.Function.new('return 1')",
    "pyodide's JavaScript": "__import__('pyodide.code', fromlist=['x']).run_js('1')",
    "the prototype": "js.Object.getPrototypeOf(js.Object.getPrototypeOf(js.self)).indexedDB.open('x')",
    "a file": "open('/etc/passwd').read()",
    "files": "print(__import__('os').listdir('/home/pyodide')) or 1/len(__import__('os').listdir('/home/pyodide'))",
    "the page's memory": "js.localStorage.getItem('x')",
    "the page itself": "js.document.body",
}

REACH = """
import js, json
WAYS_OUT = {}
try:
    __import__("pyodide_js").loadPackage("micropip")  # which asks for it, or not, a moment later
except BaseException:
    pass
def choose(logits):
    for name, way in WAYS_OUT.items():
        try:
            found = eval(way)
            print(json.dumps([name, "reached", repr(found)[:60]]))
        except BaseException as error:
            print(json.dumps([name, type(error).__name__, str(error)[:60]]))
    print("over")
    return 5
"""


def test_what_the_code_cannot_reach(coder: Coder) -> None:
    """No server, its own included; nothing that is kept here; no fresh worker."""
    before = len(coder.visit.requests)
    coder.visit.setting("Length").fill("8")
    coder.run(REACH.replace("{}", json.dumps(WAYS_OUT), 1))
    expect(coder.console).to_contain_text("over")
    lines = (coder.console.text_content() or "").split("over")[0].splitlines()
    found: dict[str, Any] = {
        name: what for name, *what in map(json.loads, [line for line in lines if line.startswith("[")])
    }
    print("\n".join(f"{name}: {what}" for name, what in found.items()))
    assert found.keys() == WAYS_OUT.keys()
    assert {name for name, what in found.items() if what[0] == "reached"} == set()
    assert [url for url in coder.visit.requests[before:] if "/assets/live-" not in url] == []
    coder.visit.complaints.clear()  # that JavaScript may not be made of a text, Chromium says in its console


def test_the_code_stays_where_it_was_and_is_not_run_unasked(coder: Coder) -> None:
    coder.write("def choose(logits):\n    print('mine')\n    return 5\n")
    coder.page.reload()
    coder.visit.awake()
    coder.visit.tell(PROMPT)
    coder.open()
    expect(coder.editor).to_contain_text("print('mine')")
    expect(coder.console).to_be_empty()
    coder.press("Reset")
    expect(coder.editor).to_contain_text("How the next token is chosen.")
    assert coder.text() == samplers.chain()


def test_the_sampler_can_choose_again(coder: Coder, shipped_model: Path) -> None:
    coder.run(LIKELIEST)
    told(coder.visit, 1)
    expect(coder.page.get_by_role("button", name="Share link")).to_be_hidden()  # settings alone do not tell it again
    coder.press("Let the sampler choose")
    expect(coder.page.get_by_text("The sampler chooses the words")).to_be_visible()
    coder.visit.tell_button.click()
    told(coder.visit, 2)
    assert_told(coder.visit, reference(shipped_model, PROMPT, 60, temperature=0.8))
    expect(coder.page.get_by_role("button", name="Share link")).to_be_visible()


def test_keyboard_phone_and_axe(coder: Coder, screenshots: Path) -> None:
    page = coder.page
    coder.run("def choose(logits):\n    print('here')\n    return logits.nothing\n")
    expect(coder.problem).to_contain_text("Line 3: AttributeError")
    page.keyboard.press("Tab")  # the editor lets go of it
    expect(coder.console).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(coder.editor).to_be_focused()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate("axe.run()")["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
        for width in (1200, 375):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.locator("#code").scroll_into_view_if_needed()
            page.screenshot(path=screenshots / f"{width}-{scheme}-code.png")
