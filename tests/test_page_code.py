"""Live Python on the page: the editor, the examples, what goes wrong or never ends, what code cannot reach."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from builder.tools import NODE_MODULES
from fabella import samplers
from fabella.modelfile import Config

from .browsers import Missing, firefox
from .conftest import Shoot, Site, Visit
from .random_models import write_random_model
from .reach import found_in, reaching
from .stories import PROMPT, assert_told, reference
from .test_leaf import told
from .test_shelf import drop

SMALL = Config(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=96)
LIKELIEST = "def choose(logits):\n    return logits.shortlist(1)[0][0]\n"
SLOWLY = (
    "import time\n\ndef choose(logits):\n    time.sleep(0.2)\n    print('{}')\n    return logits.shortlist(2)[{}][0]\n"
)
TITLES = [example["title"] for example in samplers.texts()["examples"]]  # type: ignore[attr-defined]
AXE = NODE_MODULES / "axe-core/axe.min.js"

# How long the page waits for code that hangs is the test's affair, and may change while it waits: on a busy machine
# others seem to hang, as does a worker that starts, for which a reason is given along with the time.
WAITS = """{
  const { setTimeout } = globalThis;
  globalThis.hang = 1e8;
  globalThis.setTimeout = (callback, milliseconds, ...rest) => {
    if (![4000, 15000].includes(milliseconds)) return setTimeout(callback, milliseconds, ...rest);
    const since = performance.now();
    const timer = setInterval(() => {
      if (rest.length > 0 || performance.now() - since < hang) return;
      clearInterval(timer);
      callback();
    }, 50);
    return timer;
  };
}"""


@pytest.fixture(scope="module")
def site(built: Callable[[Path], Path], shipped_model: Path) -> Iterator[Site]:
    """The page as it is published."""
    site = Site(built(shipped_model))
    yield site
    site.close()


class Coder:
    """A visitor who writes code."""

    def __init__(self, visit: Visit, site: Site) -> None:
        self.visit, self.page = visit, visit.page
        self.page.add_init_script(WAITS)
        visit.open(site)
        visit.set(temperature=0.8, top_p=0.9, min_p=0, repetition_penalty=1, seed=1, length=60)
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

    def kept(self) -> str:
        """The visitor's own code, of which the editor shows only what is in view."""
        kept = "localStorage.getItem('fabella ' + location.pathname + ' code')"
        return str(self.page.evaluate(kept) or samplers.chain())

    def told(self, count: int) -> str:
        """Waits until so many stories have been told from the start; returns the one on the page."""
        return told(self.visit, count)

    def wait(self, milliseconds: float) -> None:
        """From now on the page waits so long for code that hangs."""
        self.page.evaluate("(milliseconds) => { hang = milliseconds; }", milliseconds)


@pytest.fixture
def coder(visit: Visit, site: Site) -> Coder:
    return Coder(visit, site)


# ---- Choosing --------------------------------------------------------------------------------------------------------


def test_the_editor_has_the_sampler_s_own_source(visit: Visit, site: Site, shipped_model: Path) -> None:
    """It is loaded when it is opened, and Python's part of it when it is run; that tells what the sampler told."""

    def fetched() -> set[str]:
        return {name for url in visit.requests if (name := re.sub(r".*/assets/([a-z-]+)-.*", r"\1", url)) in PARTS}

    PARTS = {"code", "python-further"}
    visit.open(site)
    visit.tell(PROMPT, length=60, seed=1, temperature=0.8, top_p=0.9, min_p=0, repetition_penalty=1)
    expected = reference(shipped_model, PROMPT, 60, temperature=0.8)
    assert_told(visit, expected)
    assert fetched() == set()
    visit.page.get_by_role("button", name="Change the code that chooses").click()
    expect(visit.page.get_by_role("textbox", name="Code", exact=True)).to_be_focused()
    assert fetched() == {"code"}
    visit.page.keyboard.press("ControlOrMeta+Enter")
    told(visit, 2)
    assert fetched() == PARTS
    assert_told(visit, expected)
    expect(visit.page.locator("#code-problem")).to_be_empty()


def test_examples_run_in_the_page(coder: Coder) -> None:
    for number, title in enumerate(TITLES, 1):
        coder.page.get_by_role("combobox", name="Example").select_option(title)
        coder.press("Run")
        assert len(coder.told(number).split()) > 8, title
        expect(coder.problem).to_be_empty()


def test_an_edit_counts_from_the_next_token_on(coder: Coder, shipped_model: Path) -> None:
    coder.visit.setting("Length").fill("400")
    coder.run(SLOWLY.format("first", 0))
    expect(coder.console).to_contain_text("first\nfirst")
    coder.write(SLOWLY.format("second", 1))
    expect(coder.console).to_contain_text("second\nsecond")
    coder.page.keyboard.press("Escape")
    coder.told(1)
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
    coder.run("def choose(logits)\n    pass")
    expect(coder.problem).to_have_text("Line 1: SyntaxError: expected ':'")
    expect(coder.page.get_by_text("The sampler chooses the words")).to_be_visible()
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
    assert coder.told(2) == whole
    expect(coder.problem).to_be_empty()


def test_the_code_stays_where_it_was_and_is_not_run_unasked(coder: Coder, shipped_model: Path) -> None:
    coder.run("print('ready')\ndef choose(logits):\n    print('mine')\n    return 5\n")
    coder.told(1)
    coder.page.reload()
    coder.visit.awake()
    coder.visit.tell(PROMPT)
    assert_told(coder.visit, reference(shipped_model, PROMPT, 60, temperature=0.8))
    coder.open()
    expect(coder.editor).to_contain_text("print('mine')")
    expect(coder.console).to_be_empty()
    coder.press("Reset")
    expect(coder.editor).to_contain_text("How the next token is chosen.")
    assert coder.kept() == samplers.chain()


def test_the_sampler_can_choose_again(coder: Coder, shipped_model: Path) -> None:
    """In a worker of its own, where nothing is left of the code."""
    coder.run("import fabella.engine\n" + LIKELIEST + "fabella.engine.Logits.shortlist = None\n")
    expect(coder.problem).to_contain_text("TypeError: 'NoneType' object is not callable")
    coder.press("Let the sampler choose")
    expect(coder.page.get_by_text("The sampler chooses the words")).to_be_visible()
    expect(coder.editor).to_be_focused()
    coder.visit.awake()
    coder.visit.tell(PROMPT)
    assert_told(coder.visit, reference(shipped_model, PROMPT, 60, temperature=0.8))
    assert len(coder.visit.received("ready")) == 2


def test_files_and_the_self_test_are_for_a_worker_without_code(
    visit: Visit, built: Callable[[Path], Path], random_model: Path, tmp_path: Path
) -> None:
    site = Site(built(random_model))
    coder = Coder(visit, site)
    coder.run("import js\njs.self.onmessage = lambda event: print(event.data)\n" + LIKELIEST)
    expect(coder.page.get_by_text("This code chooses the words.")).to_be_visible()
    other = write_random_model(tmp_path / "other.gguf", SMALL)
    drop(coder.visit, ("other.gguf", other.read_bytes()))
    row = coder.page.get_by_role("tabpanel").get_by_role("listitem").filter(has_text="yours")
    expect(row).to_contain_text("thousand parameters")
    coder.page.keyboard.press("Escape")
    assert len(coder.visit.received("ready")) == 2
    coder.run(
        "def choose(logits):\n    return 5\nimport fabella.selftest\nfabella.selftest.hash_of = lambda logits: 'x'\n"
    )
    expect(coder.page.get_by_text("This code chooses the words.")).to_be_visible()
    coder.press("Computes right?")
    expect(coder.page.get_by_role("button", name="Computes right ✓")).to_be_visible()
    assert len(coder.visit.received("ready")) == 3
    site.close()


# ---- What never ends -------------------------------------------------------------------------------------------------

# What no watchdog reaches, and what the code has done to those who would hear of it.
HANGS = {
    "power": "9 ** 9 ** 9",
    "expression": "__import__('re').match('(a+)+$', 'a' * 50 + 'b')",
    "iterator": "max(iter(int, 1))",
    "sleep": "__import__('time').sleep(1000)",
    "the driver": "exec('import fabella.engine\\ndef f(*a):\\n while True: pass\\nfabella.engine.Engine.forward = f')",
    "the end of the worker": "__import__('js').close()",
    "the end of Python": (
        'exec(\'from pyodide_js import FS\\nFS.createLazyFile("/", "x", "y", True, False)\\nopen("/x").read()\')'
    ),
    "a worker that is deaf": "__import__('js').self.postMessage = int",
    "a promise": (
        "exec('import js\\nfrom pyodide.ffi import create_once_callable as o\\ndef f(*a):\\n while True: pass\\n"
        "js.Promise.resolve(0).then(o(f))')"
    ),
}


def test_what_never_ends_is_stopped_or_costs_the_worker(coder: Coder) -> None:
    """The watchdog names it; where that does not reach, the page starts the storyteller anew with the model kept."""
    coder.run("def choose(logits):\n    while True:\n        print('again')")
    expect(coder.problem).to_have_text(
        re.compile(r"^Line [23]: stopped after 0.4 seconds: a loop without end\? Line [23]:")
    )
    expect(coder.console).to_contain_text("characters more")
    sent = next(m["at"] for m in coder.page.evaluate("notebook.sent") if m["type"] == "tell")
    done = coder.visit.received("done")[0]["at"]
    print(f"stopped after {done - sent:.0f} ms")
    models = sum(url.endswith(".gguf") for url in coder.visit.requests)
    for count, (name, body) in enumerate(HANGS.items(), 2):
        coder.wait(1000)
        coder.run(f"def choose(logits):\n    {body}\n    return 5\n")
        coder.page.wait_for_function(
            "(count) => notebook.received.filter(({ type }) => type === 'ready').length === count", arg=count
        )
        expect(coder.problem).to_contain_text("anew")
        assert coder.kept().startswith(f"def choose(logits):\n    {body}"), name
        expect(coder.visit.alert).to_be_empty()
    expect(coder.problem).to_have_text(
        "Your code did not come back for 4 seconds, and nothing could stop it: a single step that takes too long, as "
        "9**9**9 does. The storyteller was started anew."
    )
    expect(coder.page.get_by_text("The sampler chooses the words")).to_be_visible()
    assert sum(url.endswith(".gguf") for url in coder.visit.requests) == models
    coder.wait(1e8)
    before = len(coder.visit.received("done"))
    coder.run(LIKELIEST)
    coder.told(before + 1)
    expect(coder.problem).to_be_empty()


def test_code_that_lies_in_wait_costs_the_worker_too(coder: Coder) -> None:
    """Between two stories, or in the place of what would hear Stop."""
    later = "import js\nfrom pyodide.ffi import create_once_callable as o\ndef f(*a):\n    while True: pass\n"
    coder.run(f"{later}def choose(logits):\n    if len(logits.tokens) == 59: js.setTimeout(o(f), 1)\n    return 5\n")
    coder.told(1)
    coder.wait(1000)
    coder.visit.tell_button.click()
    expect(coder.problem).to_contain_text("Your code did not come back for 15 seconds")
    coder.page.wait_for_function("() => notebook.received.filter(({ type }) => type === 'ready').length === 2")
    coder.wait(1e8)
    coder.visit.setting("Length").fill("500")
    coder.run(SLOWLY.format("on", 0).replace("time.sleep(0.2)", "import js; js.self.onmessage = None; time.sleep(0.2)"))
    expect(coder.console).to_contain_text("on\non")
    coder.wait(1000)
    coder.visit.stop_button.click()
    expect(coder.problem).to_contain_text("Your code did not come back for 4 seconds")
    expect(coder.page.get_by_text("You stopped the story here.")).to_be_visible()
    coder.visit.awake()


# ---- What code cannot reach ------------------------------------------------------------------------------------------


def test_what_the_code_cannot_reach(coder: Coder, site: Site) -> None:
    """No server, its own included; nothing that is kept; no fresh worker. Nor after the worker was started anew."""
    for _ in range(2):
        stories = len(coder.visit.received("done"))
        coder.run(LIKELIEST)
        coder.told(stories + 1)
        before = len(coder.visit.requests)
        coder.run(reaching(site.url))
        coder.told(stories + 2)
        found = found_in(coder.console.text_content() or "")
        print("\n".join(f"{name}: {what}" for name, what in found.items()))
        assert {name for name, what in found.items() if what[0] == "reached"} == set()
        late = re.compile("/assets/(python-stdlib|helper)-")  # wanted by a worker once it is ready
        assert [url for url in coder.visit.requests[before:] if not late.search(url)] == []
        coder.visit.complaints.clear()  # that JavaScript may not be made of a text, Chromium says in its console
        coder.press("Let the sampler choose")
        coder.visit.awake()


def test_what_the_code_cannot_reach_in_firefox(site: Site) -> None:
    code = "localStorage.setItem('fabella ' + location.pathname + ' code', given[0])"
    button, found = "document.querySelector('#code button')", ""
    try:
        with firefox() as driven:
            driven.open(site.url)
            driven.run(code, reaching(site.url))
            driven.wait("return document.body.dataset.state === 'ready'")
            driven.run("document.querySelector('#code-button').click()")
            driven.wait(f"return {button}")
            driven.run(f"{button}.click()")  # Run
            console = "document.querySelector('#code-console').textContent"
            found = str(driven.wait(f"return {console}.endsWith('over\\n') && {console}"))
    except Missing as missing:
        pytest.skip(str(missing))
    assert {name for name, what in found_in(found).items() if what[0] == "reached"} == set()
    wanted = re.compile(r"/(index\.html|secret|[^/]*micropip[^/]*)$")  # all else the page's service worker may fetch
    assert not [path for path in site.requests if wanted.search(path)]


# What it sends for the story that is being told, whose number it has heard.
SENDS = """
import js
from pyodide.ffi import create_proxy
heard = []
js.self.addEventListener("message", create_proxy(lambda event: heard.append(event.data.id)))
def choose(logits):
    js.postMessage(js.JSON.parse(MESSAGE.replace("ID", str(heard[-1]))))
    return 5
"""
PICTURE = '{"token": 5, "text": "<img src=x>", "from_prompt": false}'
STEPS = '{"type": "steps", "id": ID, "steps": [STEP], "tokens_per_second": 1}'
FORGED = {
    "words of the page's": '{"type": "error", "id": null, "field": null, "message": "Log in!", "way_out": "reload"}',
    "another beginning": '{"type": "ready", "id": 1, "model": {"bytes": 1e99}, "kept": true}',
    "a story without end": STEPS.replace("STEP", ",".join([PICTURE.replace("=x", "=" + "x" * 900)] * 60)),
}


def test_the_page_does_not_believe_what_the_code_sends(coder: Coder) -> None:
    """What is no message costs the worker, and so does a text without end; what is one is shown as text."""

    def send(message: str) -> None:
        coder.run(SENDS.replace("MESSAGE", repr(message)))

    send(STEPS.replace("STEP", PICTURE))
    coder.told(1)
    expect(coder.visit.story).to_contain_text("<img src=x>")
    assert coder.visit.story.locator("img").count() == 0
    for count, message in enumerate(FORGED.values(), 2):
        send(message)
        coder.page.wait_for_function(
            "(count) => notebook.received.filter(({ model }) => model?.name).length === count", arg=count
        )
        expect(coder.problem).to_have_text(
            "Your code has broken the storyteller, which runs beside it. It was started anew."
        )
        coder.visit.awake()
        expect(coder.visit.alert).to_be_empty()


# ---- For everyone ----------------------------------------------------------------------------------------------------


def test_keyboard_phone_and_axe(coder: Coder, shoot: Shoot) -> None:
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
            shoot(page, f"{width}-{scheme}-code")
