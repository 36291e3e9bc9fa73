"""Stories in somebody else's page: two elements, a frame, and nothing between the two pages but a height."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import FrameLocator, expect

from builder.page import EMBEDDING

from .browsers import wait_for
from .conftest import Handler, Site, Visit
from .stories import PROMPT

# Somebody's page, as strict as one can be that has stories in it.
POLICY = "default-src 'none'; script-src {page}; frame-src {page}"
THEIRS = """<!doctype html><meta charset="utf-8"><title>My garden</title>
<script type="module" src="{page}fabella.js"></script>
<h1>My garden</h1>{element}<p id="after">Roses.</p>"""


class Garden:
    """Somebody's page with one of the elements in it."""

    def __init__(self, visit: Visit, folder: Path, site: Site, same_origin: bool) -> None:
        self.visit = visit
        self.site = site
        self.host = Site(folder, "/garden/")
        self.host.headers["Content-Security-Policy"] = POLICY.format(page=site.url)
        self.url = (site.url if same_origin else self.host.url) + "mine.html"
        if same_origin:
            site.faults["mine.html"] = self.answer
        else:
            self.host.faults["mine.html"] = self.answer
            site.headers["Access-Control-Allow-Origin"] = "*"  # without that no browser runs another host's module
        self.element = ""

    def answer(self, handler: Handler, file: Path) -> None:
        """Sends the page."""
        handler.answer(THEIRS.format(page=self.site.url, element=self.element).encode(), type="text/html")

    def open(self, element: str) -> FrameLocator:
        """Goes to the page; returns what the element shows."""
        self.element = element
        self.visit.page.goto(self.url)
        return self.frame

    @property
    def frame(self) -> FrameLocator:
        """What the element shows."""
        return self.visit.page.frame_locator("iframe")

    def address(self) -> dict[str, list[str]]:
        """What the frame's address says, in its fragment."""
        src = self.visit.page.locator("iframe").get_attribute("src") or ""
        assert src.startswith(f"{self.site.url}#")
        return parse_qs(urlsplit(src).fragment, keep_blank_values=True)

    def height(self) -> float:
        """Of the frame, in CSS pixels."""
        box = self.visit.page.locator("iframe").bounding_box()
        assert box
        return box["height"]


@pytest.fixture(params=["another origin", "the same origin"])
def garden(request: pytest.FixtureRequest, visit: Visit, site: Site, tmp_path: Path) -> Iterator[Garden]:
    """Somebody's page, on a host of its own or on the page's."""
    garden = Garden(visit, tmp_path, site, request.param == "the same origin")
    yield garden
    assert visit.violations() == []
    for url in visit.requests:
        assert urlsplit(url.removeprefix("blob:")).port in (urlsplit(site.url).port, urlsplit(garden.url).port)
    visit.requests.clear()
    garden.host.close()


def ready(frame: FrameLocator) -> None:
    """Waits until a story can be told."""
    expect(frame.get_by_role("status").first).to_have_text("The storyteller is ready.")


def test_a_story_in_somebodys_page(garden: Garden) -> None:
    frame = garden.open(f'<fabella-story prompt="{PROMPT}" seed="7" model="random"></fabella-story>')
    assert garden.address() == {"view": ["leaf"], "mode": ["story"], "p": [PROMPT], "s": ["7"], "m": ["random"]}
    ready(frame)
    expect(frame.get_by_role("textbox", name="Prompt")).to_have_value(PROMPT)
    frame.get_by_role("button", name="Tell", exact=True).click()
    story = frame.get_by_role("region", name="Story", exact=True)
    expect(story).to_have_attribute("aria-busy", "false")
    expect(frame.get_by_text(re.compile("Seed 7"))).to_be_visible()
    expect(story).to_contain_text(PROMPT)
    for hidden in (frame.locator("header"), frame.locator("footer"), frame.get_by_role("group", name="Settings")):
        expect(hidden).to_be_hidden()
    assert all("?" not in path for path in garden.site.requests), "the fragment stays with the browser"


def test_the_frame_is_as_high_as_what_is_in_it(garden: Garden) -> None:
    page = garden.visit.page
    frame = garden.open(f'<fabella-story prompt="{PROMPT}" seed="7"></fabella-story>')
    ready(frame)
    height = """() => document.querySelector("fabella-story").shadowRoot.querySelector("iframe").style.height"""

    def fits() -> bool:
        high = str(page.evaluate(height)).removesuffix("px")
        return bool(high) and abs(float(high) - frame.locator("html").evaluate("(page) => page.offsetHeight")) < 1

    wait_for(fits, "a frame as high as its page")
    before = garden.height()
    frame.get_by_role("button", name="Tell", exact=True).click()
    expect(frame.get_by_text(re.compile("Seed 7"))).to_be_visible()
    wait_for(lambda: fits() and garden.height() > before, "a frame that has grown with the story")
    assert frame.locator("html").evaluate("(page) => page.scrollHeight <= innerHeight + 1"), "nothing is scrolled"
    page.set_viewport_size({"width": 375, "height": 700})
    wait_for(lambda: frame.locator("html").evaluate("() => innerWidth <= 375"), "a narrow frame")
    wait_for(fits, "a frame as high as its narrow page")


def test_heights_come_from_the_frame_alone(garden: Garden) -> None:
    page = garden.visit.page
    ready(garden.open("<fabella-story></fabella-story>"))
    lies = """(origin) => {
      const frame = document.querySelector("fabella-story").shadowRoot.querySelector("iframe");
      const before = frame.style.height;
      const data = { type: "fabella-height", height: 12345 };
      const source = frame.contentWindow;
      dispatchEvent(new MessageEvent("message", { data, source: window, origin }));
      dispatchEvent(new MessageEvent("message", { data, source, origin: "https://evil.example" }));
      for (const odd of [null, 1, "fabella-height", {}, { type: "fabella-height" }, { ...data, type: "x" },
        { ...data, height: "99px" }, { ...data, height: NaN }, { ...data, height: {} }]) {
        dispatchEvent(new MessageEvent("message", { data: odd, source, origin }));
      }
      return [before, frame.style.height];
    }"""
    page.wait_for_function(
        "() => document.querySelector('fabella-story').shadowRoot.querySelector('iframe').style.height"
    )
    before, after = page.evaluate(lies, garden.site.origin)
    assert before == after


def test_a_chat_asks_for_a_chat(garden: Garden) -> None:
    garden.open("<fabella-chat></fabella-chat>")
    assert garden.address() == {"view": ["leaf"], "mode": ["chat"]}


def test_any_text_is_a_prompt(garden: Garden) -> None:
    prompt = '</script><b>"&amp; 100% #1?p=2 + Grüße\n🦊'
    frame = garden.open("<fabella-story></fabella-story>")
    garden.visit.page.evaluate("(text) => document.querySelector('fabella-story').setAttribute('prompt', text)", prompt)
    expect(frame.get_by_role("textbox", name="Prompt")).to_have_value(prompt)


def test_another_prompt_does_not_load_the_page_anew(garden: Garden) -> None:
    frame = garden.open('<fabella-story prompt="One"></fabella-story>')
    ready(frame)
    garden.visit.page.evaluate("document.querySelector('fabella-story').setAttribute('prompt', 'Two')")
    expect(frame.get_by_role("textbox", name="Prompt")).to_have_value("Two")
    ready(frame)
    asked = garden.site.requests
    assert len(set(asked)) == len(asked), "nothing is asked for twice"
    assert garden.visit.page.evaluate("history.length") <= 2, "nothing to go back through"


def test_a_model_that_is_not_there_is_named(garden: Garden) -> None:
    frame = garden.open('<fabella-story model="Nessie"></fabella-story>')
    expect(frame.get_by_role("alert")).to_contain_text("This page has no model that is called “Nessie”.")
    expect(frame.get_by_role("alert")).to_contain_text("“random 0”")
    frame.get_by_role("button", name="Try again").click()
    ready(frame)


def test_screen_readers_are_told_what_the_frame_is(garden: Garden) -> None:
    garden.open("<fabella-story></fabella-story>")
    frame = garden.visit.page.locator("iframe")
    expect(frame).to_have_attribute("title", "A story, told by a small language model")
    garden.open('<fabella-chat title="Ask my garden"></fabella-chat>')
    expect(frame).to_have_attribute("title", "Ask my garden")


def test_an_element_that_leaves_and_comes_back(garden: Garden) -> None:
    ready(garden.open("<fabella-story></fabella-story>"))
    moved = "document.body.append(document.querySelector('fabella-story'))"
    garden.visit.page.evaluate(moved)
    ready(garden.frame)
    assert garden.visit.page.locator("iframe").count() == 1
    expect(garden.frame.locator("header")).to_be_hidden()


def test_by_itself_the_page_is_whole_whatever_its_address_says(visit: Visit, site: Site) -> None:
    visit.page.goto(f"{site.url}#view=leaf")
    visit.awake()
    expect(visit.page.locator("footer")).to_be_visible()


def test_the_script_is_small_and_needs_nothing(site: Site) -> None:
    text = (site.folder / EMBEDDING).read_text(encoding="utf-8")
    assert len(text) < 4000
    assert not re.search(r"^\s*import\b(?!\.)", text, re.MULTILINE)
