"""Conversations on the page: turns, branches, edits, markdown, what the model no longer sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from fabella.chat import Conversation, template_of
from fabella.generate import Ending
from fabella.modelfile import Config
from fabella.sampler import Settings
from fabella.session import Session

from .conftest import Site, Visit
from .random_models import load, write_random_model
from .test_chat import TEMPLATE

CONFIG = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, seq_len=300)
PLAIN = Settings(temperature=0.9, top_p=0.9, seed=7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG, template=TEMPLATE)


@pytest.fixture(scope="module")
def site(built: Callable[[Path], Path], model: Path) -> Iterator[Site]:
    site = Site(built(model))
    yield site
    site.close()


@pytest.fixture
def talk(visit: Visit, site: Site) -> Talk:
    return Talk(visit.open(site))


class Talk:
    """A conversation on the page."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.page = visit.page
        self.box = visit.page.get_by_role("textbox", name="You", exact=True)
        self.turns = visit.page.locator("#chat .turn")
        self.answered = 0

    def say(self, text: str, **settings: object) -> str:
        self.visit.set(**settings)
        self.box.fill(text)
        self.box.press("Enter")
        return self.answer()

    def answer(self) -> str:
        """Waits for one answer more, and returns the text of the last turn as the worker told it."""
        self.answered += 1
        self.page.wait_for_function(
            "(n) => notebook.received.filter(({ type }) => type === 'done').length === n", arg=self.answered
        )
        expect(self.page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
        expect(self.visit.alert).to_be_empty()
        return "".join(step["text"] for step in self.visit.steps() if not step["from_prompt"])

    def last_asked(self) -> dict[str, Any]:
        asked: dict[str, Any] = self.page.evaluate("notebook.sent.at(-1)")
        return asked

    def turn(self, number: int) -> Locator:
        return self.turns.nth(number)

    def press(self, number: int, name: str) -> None:
        self.turn(number).get_by_role("button", name=name, exact=True).click()


def own(steps: Any) -> str:
    return "".join(step.text for step in steps if not step.from_prompt)


def test_five_turns_are_those_under_wasmtime(talk: Talk, model: Path) -> None:
    """Token for token, with an answer told again and a turn said otherwise."""
    engine, file = load(model)
    there = Conversation(Session(engine), file.tokenizer, template_of(file))
    ending = Ending(12)
    talk.visit.setting("Temperature").fill("0.9")
    talk.visit.setting("Seed").fill("7")
    talk.visit.setting("Length").fill("12")
    for text in ("Hello", "Who are you?", "And I?", "Why?", "Goodbye"):
        assert talk.say(text) == own(there.say(text, PLAIN, ending)), text
    talk.visit.setting("Seed").fill("8")
    talk.press(9, "Again")
    again = Settings(temperature=0.9, top_p=0.9, seed=8)
    assert talk.answer() == own(there.regenerate(again, ending))
    talk.press(2, "Edit")
    talk.page.get_by_role("textbox", name="What you say instead").fill("Where are you?")
    talk.page.keyboard.press("Enter")
    there.load(there.messages[:2])
    assert talk.answer() == own(there.say("Where are you?", again, ending))


def test_what_came_after_an_edited_turn_is_another_branch(talk: Talk) -> None:
    talk.say("One", length=8)
    talk.say("Two")
    expect(talk.turns).to_have_count(4)
    before = talk.page.locator("#chat").inner_text()
    talk.press(0, "Edit")
    box = talk.page.get_by_role("textbox", name="What you say instead")
    expect(box).to_have_value("One")
    box.fill("Uno")
    talk.page.get_by_role("button", name="Ask again").click()
    talk.answer()
    expect(talk.turns).to_have_count(2)
    expect(talk.turn(0)).to_contain_text("2/2")
    talk.press(0, "The question before")
    expect(talk.turns).to_have_count(4)
    after = talk.page.locator("#chat").inner_text()
    assert after.replace("‹\n1/2\n›\n", "").split()[:4] == before.split()[:4]
    expect(talk.turn(2)).to_contain_text("Two")


def test_an_edit_that_is_left_changes_nothing(talk: Talk) -> None:
    talk.say("One", length=8)
    talk.box.press("ArrowUp")  # the empty box: the last turn is to be said otherwise
    box = talk.page.get_by_role("textbox", name="What you say instead")
    expect(box).to_be_focused()
    box.fill("Never mind")
    box.press("Escape")
    expect(talk.turn(0)).to_contain_text("One")
    expect(talk.turns).to_have_count(2)


def test_an_answer_cut_by_its_length_goes_on(talk: Talk, model: Path) -> None:
    first = talk.say("Hello", length=8, seed=7, temperature=0.9)
    talk.press(1, "Go on")
    more = talk.answer()
    engine, file = load(model)
    there = Conversation(Session(engine), file.tokenizer, template_of(file))
    assert first == own(there.say("Hello", PLAIN, Ending(8)))
    assert more == own(there.go_on(PLAIN, Ending(8)))
    expect(talk.turns).to_have_count(2)
    assert talk.last_asked()["messages"][-1] == {"role": "assistant", "content": first}


def test_the_system_prompt_comes_first(talk: Talk) -> None:
    talk.page.get_by_role("textbox", name="System prompt").fill("You are a cat.")
    talk.say("Hello", length=8)
    assert talk.last_asked()["messages"][0] == {"role": "system", "content": "You are a cat."}
    talk.page.get_by_role("button", name="New conversation").click()
    expect(talk.turns).to_have_count(0)
    talk.page.get_by_role("textbox", name="System prompt").fill("")
    talk.say("Hello", length=8)
    assert [message["role"] for message in talk.last_asked()["messages"]] == ["user"]


def test_turns_that_no_longer_fit_are_marked(talk: Talk) -> None:
    talk.visit.setting("Length").fill("40")
    for number in range(6):
        talk.say(f"This is sentence number {number} of this conversation, and it is long.")
    expect(talk.page.locator("#chat .unseen")).to_have_count(1)
    expect(talk.page.locator("#chat .turn:first-child + .turn")).to_be_visible()
    assert talk.page.locator("#chat > :first-child").get_attribute("class") == "turn", "there is something above it"
    dropped = max(step.get("dropped", 0) for message in talk.visit.received("steps") for step in message["steps"])
    assert dropped > 0
    above = talk.page.evaluate(
        "[...document.querySelector('#chat').children].findIndex((e) => e.className === 'unseen')"
    )
    assert above == dropped


def test_what_is_refused_is_back_in_the_box(talk: Talk) -> None:
    long = "word " * 400
    talk.box.fill(long)
    talk.box.press("Enter")
    expect(talk.visit.alert).not_to_be_empty()
    expect(talk.box).to_have_value(long)
    expect(talk.turns).to_have_count(0)
    assert talk.say("Hello", length=8) is not None


def test_a_model_that_talks_can_tell(talk: Talk, model: Path) -> None:
    talk.say("Hello", length=8)
    talk.page.get_by_role("radio", name="story").check()
    story = talk.visit.tell("Once", temperature=0, length=30)
    assert story.startswith("Once")
    talk.page.get_by_role("radio", name="chat").check()
    expect(talk.page.locator("#chat")).to_be_visible()
    expect(talk.visit.story).to_be_hidden()


def test_a_conversation_is_there_after_a_reload(talk: Talk, site: Site) -> None:
    first = talk.say("Hello", length=8, seed=7)
    talk.page.reload()
    talk.visit.awake()
    expect(talk.turns).to_have_count(2)
    talk.answered = 0
    talk.say("And now?")
    messages = talk.last_asked()["messages"]
    assert [message["content"] for message in messages] == ["Hello", first, "And now?"]


# ---- Markdown --------------------------------------------------------------------------------------------------------

MARKDOWN = """# Title & more

Some *emphasis*, **strength**, `code <b>` and ~~nothing~~.

1. one
2. two
   - inner

| a | b |
|---|---|
| 1 | 2 |

> quoted

```python
print("<script>")
```

<img src=x onerror="document.title='stolen'"> <script>document.title='stolen'</script>
[good](https://example.org/) [bad](javascript:alert(1)) ![picture](https://example.org/x.png)
"""


def answer_with(visit: Visit, text: str, done: bool = True) -> None:
    """Has the worker seem to answer so."""
    visit.page.evaluate(
        """({ text, done }) => {
            const id = notebook.sent.at(-1).id;
            const say = (data) => notebook.worker.dispatchEvent(new MessageEvent("message", { data: { id, ...data } }));
            say({ type: "steps", steps: [{ token: 5, text, from_prompt: false }], tokens_per_second: 9 });
            if (done) say({ type: "done", reason: "end", tokens: 1, seconds: 1, tokens_per_second: 9 });
        }""",
        {"text": text, "done": done},
    )


@pytest.fixture
def mute(visit: Visit, site: Site) -> Talk:
    """A conversation whose worker hears no question: the test answers."""
    talk = Talk(visit.open(site))
    visit.page.evaluate("() => { notebook.worker.postMessage = (data) => notebook.sent.push(data); }")
    return talk


def test_markdown_becomes_elements_and_html_stays_text(mute: Talk) -> None:
    title = mute.page.title()
    mute.box.fill("Hello")
    mute.box.press("Enter")
    answer_with(mute.visit, MARKDOWN)
    said = mute.turn(1).locator(".said")
    expect(said.locator("h3")).to_have_text("Title & more")
    expect(said.locator("em")).to_have_text("emphasis")
    expect(said.locator("strong")).to_have_text("strength")
    expect(said.locator("p code")).to_have_text("code <b>")
    expect(said.locator("del")).to_have_text("nothing")
    assert said.locator("ol > li").count() == 2
    expect(said.locator("ol li ul li")).to_have_text("inner")
    assert said.locator("th, td").all_inner_texts() == ["a", "b", "1", "2"]
    expect(said.locator("blockquote")).to_have_text("quoted")
    expect(said.locator("pre")).to_have_text('print("<script>")')
    expect(said.locator("a")).to_have_attribute("href", "https://example.org/")
    assert said.locator("a").count() == 1
    assert said.locator("img, script, b").count() == 0
    expect(said).to_contain_text("<img src=x onerror=")
    expect(said).to_contain_text("picture")
    assert mute.page.title() == title


def test_code_can_be_copied(mute: Talk, site: Site) -> None:
    mute.visit.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.origin)
    mute.box.fill("Hello")
    mute.box.press("Enter")
    answer_with(mute.visit, MARKDOWN)
    mute.turn(1).locator(".code button").click()
    expect(mute.turn(1).locator(".code button")).to_have_text("Copied")
    assert mute.page.evaluate("navigator.clipboard.readText()") == 'print("<script>")'


def test_a_half_told_fence_is_code_already(mute: Talk) -> None:
    mute.box.fill("Hello")
    mute.box.press("Enter")
    said = mute.turn(1).locator(".said")
    answer_with(mute.visit, "Look:\n\n```python\ndef f", done=False)
    expect(said.locator("pre")).to_have_text("def f")
    answer_with(mute.visit, "():\n    return 1\n```\n\nThat", done=False)
    expect(said.locator("pre")).to_have_text("def f():\n    return 1")
    expect(said.locator("p").last).to_have_text("That")


HOSTILE = [
    '<img src=x onerror="document.title=1">',
    "<svg onload=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](data:text/html,<script>1</script>)",
    '<a href="javascript:alert(1)">x</a>',
    "![x](x onerror=alert(1))",
    "<iframe srcdoc='<script>parent.document.title=1</script>'>",
    "```\n</code></pre><script>document.title=1</script>\n```",
    "| <script>document.title=1</script> |\n|---|\n| <b onclick=1>x |",
    "[x]: javascript:alert(1)\n\n[x]",
    "<https://example.org/'onmouseover=alert(1)>",
    "`<img src=x onerror=document.title=1>`",
]


def test_nothing_that_is_said_becomes_a_program(mute: Talk) -> None:
    title = mute.page.title()
    for text in HOSTILE:
        mute.box.fill(text)
        mute.box.press("Enter")
        answer_with(mute.visit, text)
        expect(mute.page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    found = mute.page.evaluate("""() => [...document.querySelectorAll("#chat *")].filter((element) =>
        ["IMG", "SCRIPT", "SVG", "IFRAME", "STYLE", "FORM"].includes(element.tagName.toUpperCase())
        || [...element.attributes].some(({ name, value }) =>
            name.startsWith("on") || /^\\s*(javascript|data):/i.test(value))
    ).map((element) => element.outerHTML)""")
    assert found == []
    assert mute.page.title() == title
    assert mute.visit.violations() == []
