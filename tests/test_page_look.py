"""Look inside, in a real browser: how each token was chosen, another way from any of them, what is inside the model."""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from fabella.choice import Choice
from fabella.generate import Ending, Step, generate
from fabella.sampler import Settings

from .conftest import Site, Visit
from .random_models import load
from .stories import PROMPT
from .test_page import AXE

HOW: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 7}
LENGTH = 40


def told(model: Path, **how: Any) -> list[Step]:
    """The story under wasmtime, its prompt left out, with the choices."""
    engine, file = load(model)
    ending = Ending(LENGTH, loops=True, look=True)
    steps = generate(engine, file.tokenizer, PROMPT, Settings(**HOW), ending=ending, **how)
    return [step for step in steps if not step.from_prompt]


@pytest.fixture(scope="module")
def site(built: Callable[[Path], Path], shipped_model: Path) -> Any:
    site = Site(built(shipped_model))
    yield site
    site.close()


@pytest.fixture
def opened(visit: Visit, site: Site) -> Visit:
    """A visitor who has been told a story, and then looks inside."""
    visit.open(site)
    visit.tell(PROMPT, **HOW, repetition_penalty=1, length=LENGTH)
    assert not [url for url in visit.requests if "/look-" in url], "nothing of it is loaded before it is opened"
    visit.page.get_by_role("button", name="Look inside").click()
    expect(candidates(visit).first).to_be_visible()
    return visit


def panel(visit: Visit) -> Locator:
    return visit.page.get_by_role("region", name="Look inside")


def candidates(visit: Visit) -> Locator:
    return panel(visit).locator(".look-bars li")


def walker(visit: Visit) -> Locator:
    return panel(visit).get_by_role("slider", name="Token", exact=True)


def choices(visit: Visit) -> list[Choice]:
    """Those of the story that the worker told last."""
    return [Choice.from_bytes(a2b_base64(step["choice"])) for step in visit.steps() if "choice" in step]


def assert_shows(visit: Visit, choice: Choice) -> None:
    """The panel shows a token's likeliest ten, and the one taken, with the model's own probabilities."""
    for id, _, probability in choice.candidates[:10]:
        row = candidates(visit).filter(has=visit.page.locator(f"[data-token='{id}']"))
        if id == choice.token:
            row = panel(visit).locator(".look-bars [aria-current]")
        expect(row.locator(".look-percent").first).to_have_text(percent(probability))
    if choice.coin is not None:
        expect(panel(visit).locator(".look-coin")).to_contain_text(f"The coin fell at {choice.coin:.4f}")


def percent(share: float) -> str:
    value = 100 * share
    if value < 0.01:
        return "< 0.01 %"
    return f"{value:.{0 if value >= 9.95 else 1 if value >= 0.995 else 2}f} %"


def test_each_tokens_choice_is_shown_by_arrow_by_slider_and_by_pointer(opened: Visit, shipped_model: Path) -> None:
    page, expected = opened.page, [step.choice for step in told(shipped_model)]
    assert choices(opened) == expected, "what it was told again with is what it was told with"
    assert expected[0]
    assert expected[1]
    assert expected[5]
    assert_shows(opened, expected[0])
    expect(walker(opened)).to_be_focused()
    page.keyboard.press("ArrowRight")
    assert_shows(opened, expected[1])
    walker(opened).fill("5")
    assert_shows(opened, expected[5])
    panel(opened).get_by_role("button", name="The token before").click()
    expect(walker(opened)).to_have_value("4")
    # The first letter of the token's word, where it stands on the page.
    x, y = page.evaluate(
        """(before) => {
          const nodes = document.createTreeWalker(document.querySelector("#story"), NodeFilter.SHOW_TEXT);
          for (let node = nodes.nextNode(); node; before -= node.data.length, node = nodes.nextNode()) {
            if (before >= node.data.length) continue;
            const range = new Range();
            range.setStart(node, before);
            range.setEnd(node, before + 1);
            const { left, top, width, height } = range.getBoundingClientRect();
            return [left + width / 2, top + height / 2];
          }
        }""",
        len(PROMPT) + sum(len(step.text) for step in told(shipped_model)[:8]) + 1,
    )
    page.mouse.click(x, y)
    expect(walker(opened)).to_have_value("8")
    assert expected[8]
    assert_shows(opened, expected[8])
    page.get_by_label("Tint the text by probability").check()
    assert page.evaluate("[...CSS.highlights.keys()].length") >= 4


def test_another_way_is_told_as_if_it_had_been_drawn_and_nothing_is_lost(opened: Visit, shipped_model: Path) -> None:
    page = opened.page
    first = told(shipped_model)
    before = opened.story.text_content()
    walker(opened).fill("6")
    choice = first[6].choice
    assert choice
    other = next(id for id, _, _ in choice.candidates if id != choice.token)
    page.locator(f".look-bars [data-token='{other}']").click()
    tokens = [step.token for step in first]
    expected = told(shipped_model, told=tokens[:6], forced=[other])
    text = PROMPT + "".join(step.text for step in first[:6]) + "".join(step.text for step in expected if step.choice)
    expect(opened.story).to_have_text(text, use_inner_text=False)
    assert [step["token"] for step in opened.steps() if not step["from_prompt"]] == [step.token for step in expected]
    expect(page.locator("#branch")).to_have_text("2/2")
    expect(walker(opened)).to_have_value("6")
    expect(panel(opened).locator(".look-coin")).to_contain_text("in its place")
    panel(opened).get_by_role("button", name="The way before").press("Enter")
    expect(opened.story).to_have_text(before or "")
    expect(page.locator("#branch")).to_have_text("1/2")

    page.get_by_label("Or a word of your own").fill("dragon")
    page.keyboard.press("Enter")
    expect(page.locator("#branch")).to_have_text("3/3")
    begun = PROMPT + "".join(step.text for step in first[:6])
    expect(opened.story).to_contain_text(begun.strip() + " dragon")
    expect(opened.tell_button).to_be_visible()


def test_sliders_redraw_at_once_and_the_story_is_retold_from_there(opened: Visit, shipped_model: Path) -> None:
    page, first = opened.page, told(shipped_model)
    walker(opened).fill("3")
    retell = panel(opened).get_by_role("button", name="Retell from here")
    expect(retell).to_be_disabled()
    asked = len(opened.received("steps"))
    panel(opened).get_by_role("slider", name="Temperature").fill("0")
    expect(panel(opened).locator(".look-coin")).to_contain_text("the likeliest is taken")
    assert len(opened.received("steps")) == asked, "no token is computed for it"
    panel(opened).get_by_role("slider", name="Temperature").fill("0.5")
    panel(opened).get_by_role("slider", name="Top-k").fill("2")
    expect(panel(opened).locator(".look-after").filter(visible=True)).not_to_have_count(0)
    expect(candidates(opened).filter(has_text="cut by top-k")).not_to_have_count(0)
    retell.click()
    engine, file = load(shipped_model)
    how = Settings(**{**HOW, "temperature": 0.5, "top_k": 2})
    tokens = [step.token for step in first[:3]]
    steps = list(generate(engine, file.tokenizer, PROMPT, how, ending=Ending(LENGTH, loops=True), told=tokens))
    begun = PROMPT + "".join(step.text for step in first[:3])
    expect(opened.story).to_have_text(begun + "".join(s.text for s in steps if not s.from_prompt), use_inner_text=False)
    expect(page.locator("#branch")).to_have_text("2/2")


def test_word_by_word_the_choice_stands_open(visit: Visit, site: Site) -> None:
    page = visit.page
    visit.open(site)
    page.get_by_role("radio", name="a word").check()
    page.get_by_role("button", name="Look inside").click()
    visit.page.evaluate("""() => { for (const [id, value] of [["temperature", 1], ["length", 60]]) {
      const slider = document.getElementById(id);
      slider.value = value;
      slider.dispatchEvent(new Event("input")); } }""")
    visit.prompt.fill(PROMPT)
    visit.tell_button.click()
    expect(panel(visit).get_by_role("button", name="Next word")).to_be_visible()
    expect(panel(visit).locator(".look-bars li")).not_to_have_count(0)
    text = visit.story.text_content() or ""
    row = panel(visit).locator(".look-bars button").nth(1)
    other = (row.locator("bdi").text_content() or "").replace("␣", " ")
    row.click()
    page.wait_for_function("(text) => document.querySelector('#story').textContent.startsWith(text)", arg=text + other)
    expect(page.locator("#branches")).to_be_hidden()
    panel(visit).get_by_role("button", name="Next word").click()
    page.wait_for_function("(n) => document.querySelector('#story').textContent.length > n", arg=len(text + other))
    page.keyboard.press("Escape")


def test_inside_and_tokens(opened: Visit, shipped_model: Path) -> None:
    page = opened.page
    walker(opened).fill("9")
    page.get_by_role("tab", name="Inside").click()
    engine, file = load(shipped_model)
    tokens = file.tokenizer.encode(PROMPT) + [step.token for step in told(shipped_model)[:9]]
    engine.prefill(tokens[:-1])
    inside = engine.probe(tokens[-1], len(tokens) - 1)
    layers = panel(opened).locator(".look-lens tr")
    expect(layers).to_have_count(len(inside.lens))
    for best, row in zip(inside.lens, layers.all(), strict=True):
        assert row.locator("td small").all_text_contents() == [percent(probability) for _, _, probability in best]
    cell = panel(opened).get_by_role("gridcell", name=re.compile("^Layer 2, head 1:"))
    cell.click()
    weights = inside.attention.tolist()[1][0]  # type: ignore[index]
    expect(cell).to_have_accessible_name(re.compile(re.escape(percent(max(weights))) + "$"))
    expect(panel(opened).get_by_role("heading", name="Where layer 2, head 1 looks")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(panel(opened).get_by_role("heading", name="Where layer 2, head 2 looks")).to_be_visible()

    page.get_by_role("tab", name="Tokens").click()
    opened.prompt.fill("The zebras")
    words = panel(opened).get_by_role("group", name="Your prompt’s tokens").get_by_role("button")
    expect(words).to_have_count(len(list(file.tokenizer.words("The zebras"))))
    words.last.click()
    *_, last = file.tokenizer.words("The zebras")
    expect(panel(opened).locator(".look-merges li")).to_have_count(len(last.steps))


@pytest.mark.parametrize("width", [1200, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits(opened: Visit, screenshots: Path, width: int, scheme: Any) -> None:
    page = opened.page
    page.set_viewport_size({"width": width, "height": 900 if width > 375 else 800})
    page.emulate_media(color_scheme=scheme)
    walker(opened).fill("8")
    page.get_by_label("Tint the text by probability").check()
    page.evaluate(AXE.read_text())
    for name in ("Choice", "Inside", "Tokens"):
        page.get_by_role("tab", name=name).click()
        expect(
            panel(opened).locator(".look-bars li, .look-lens tr, .look-words button").filter(visible=True).first
        ).to_be_visible()
        page.screenshot(path=screenshots / f"look-{width}-{scheme}-{name}.png")
        found = page.evaluate("axe.run()")["violations"]
        serious = [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width
