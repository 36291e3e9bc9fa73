"""What a visitor can do with a story on the page: another, more of it, back and forth, copy, keep, at a pace."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from .conftest import Site, Visit
from .gate import Gate, stopped_story
from .stories import PROMPT


def press(visit: Visit, name: str) -> None:
    visit.page.get_by_role("button", name=name, exact=True).click()


def told(visit: Visit, count: int) -> str:
    """Waits until so many stories have been told, and returns the one on the page."""
    visit.page.wait_for_function(
        "(count) => notebook.received.filter(({ type }) => type === 'done').length === count", arg=count
    )
    expect(visit.tell_button).to_be_visible()
    return visit.story.text_content() or ""


def test_another_telling_is_a_branch(visit: Visit, site: Site) -> None:
    first = visit.open(site).tell(PROMPT, temperature=1, length=40)
    press(visit, "Again")
    second = told(visit, 2)
    assert second != first
    branch = visit.page.locator("#branch")
    expect(branch).to_have_text("2/2")
    press(visit, "The telling before")
    expect(branch).to_have_text("1/2")
    assert visit.story.text_content() == first
    expect(visit.page.get_by_role("button", name="The telling before")).to_be_disabled()
    press(visit, "The next telling")
    assert visit.story.text_content() == second
    visit.tell_button.click()  # with the same prompt it is one more
    told(visit, 3)
    expect(branch).to_have_text("3/3")
    visit.tell("Another beginning", length=20)
    expect(branch).to_be_hidden()


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_story_goes_on_as_if_it_had_not_ended(visit: Visit, site: Site, temperature: float) -> None:
    settings = {"temperature": temperature, "seed": 5}
    whole = visit.open(site).tell(PROMPT, length=90, **settings)
    short = visit.tell(PROMPT, length=40, **settings)
    assert whole.startswith(short)
    assert whole != short
    visit.setting("Length").fill("90")
    press(visit, "Go on")
    assert told(visit, 3) == whole


def test_a_stopped_story_goes_on(visit: Visit, site: Site) -> None:
    whole = visit.open(site).tell(PROMPT, temperature=0, length=300)
    stopped_story(visit, site, PROMPT)
    part = visit.story.text_content() or ""
    assert whole.startswith(part)
    press(visit, "Go on")
    assert told(visit, 2) == whole


def test_the_command_tells_the_same_story(visit: Visit, site: Site, random_model: Path) -> None:
    import shlex

    from .stories import reference

    visit.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.origin)
    prompt = 'It\'s "his" $HOME'
    story = visit.open(site).tell(prompt, temperature=0.7, top_k=20, length=50)
    press(visit, "Share")
    press(visit, "Copy as command")
    expect(visit.page.get_by_text("The command is copied.")).to_be_visible()
    words = shlex.split(visit.page.evaluate("navigator.clipboard.readText()"))
    assert words[:3] == ["python", "-m", "fabella"]
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    assert flags["-i"] == prompt
    settings = {"temperature": float(flags["-t"]), "top_p": float(flags["-p"]), "top_k": int(flags["-k"])}
    steps = reference(random_model, prompt, int(flags["-n"]), **settings, seed=int(flags["-s"]))
    assert "".join(step.text for step in steps) == story


def test_a_reload_keeps_prompt_settings_and_story(visit: Visit, site: Site) -> None:
    story = visit.open(site).tell(PROMPT, temperature=0.6, length=60, seed=9)
    visit.prompt.fill("The next one")
    visit.page.reload()
    visit.awake()
    expect(visit.story).to_have_text(story)
    expect(visit.prompt).to_have_value("The next one")
    expect(visit.setting("Temperature")).to_have_value("0.6")
    expect(visit.setting("Length")).to_have_value("60")
    expect(visit.setting("Seed")).to_have_value("9")
    press(visit, "Again")
    assert told(visit, 1) == story, "it is the same leaf: same seed, same story"


def test_a_reload_in_the_middle_keeps_what_was_told(visit: Visit, site: Site) -> None:
    gate = Gate(visit, site)
    visit.open(site)
    visit.ask(PROMPT, temperature=0, length=300)
    gate.turns(2)
    visit.page.wait_for_function("() => notebook.received.filter(({ type }) => type === 'steps').length === 2")
    part = visit.story.text_content() or ""
    visit.page.reload()
    expect(visit.story).to_have_text(part)
    visit.awake()
    gate.open()
    press(visit, "Go on")
    assert told(visit, 1).startswith(part)


def test_a_window_that_keeps_nothing_says_so(visit: Visit, site: Site) -> None:
    visit.page.add_init_script("indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); };")
    story = visit.open(site).tell(PROMPT, length=30)
    assert story.startswith(PROMPT)
    visit.page.locator("#shelf-button").click()
    visit.page.get_by_role("tab", name="Kept").click()
    expect(visit.page.get_by_role("tabpanel").get_by_text("This window keeps nothing")).to_be_visible()


# ---- Pace ------------------------------------------------------------------------------------------------------------


def test_word_by_word(visit: Visit, site: Site) -> None:
    visit.open(site)
    visit.page.get_by_label("a word").check()
    visit.ask(PROMPT, temperature=0, length=60)
    expect(visit.stop_button).to_be_visible()
    expect(visit.story).to_contain_text(PROMPT)
    visit.page.wait_for_function("() => notebook.received.some(({ type }) => type === 'done')")
    lengths = [len(visit.story.text_content() or "")]
    for _ in range(3):
        visit.story.click()
        lengths.append(len(visit.story.text_content() or ""))
    assert len(PROMPT) < lengths[0] < lengths[1] < lengths[2] < lengths[3]
    visit.page.keyboard.press("Escape")  # stopped where the reader is
    expect(visit.tell_button).to_be_visible()
    assert len(visit.story.text_content() or "") == lengths[3]
    press(visit, "Go on")
    visit.page.get_by_label("at once").check()
    expect(visit.tell_button).to_be_visible()
    part = visit.story.text_content() or ""
    assert len(part) > lengths[3]
    assert visit.tell(PROMPT, temperature=0, length=60) == part, "no word is lost or doubled"


def test_at_a_readers_pace_all_of_it_comes(visit: Visit, site: Site) -> None:
    visit.open(site)
    visit.page.get_by_label("reading").check()
    story = visit.tell(PROMPT, temperature=0, length=40)
    visit.page.get_by_label("at once").check()
    assert visit.tell(PROMPT) == story


def test_the_pace_is_remembered(visit: Visit, site: Site) -> None:
    visit.open(site)
    expect(visit.page.get_by_label("at once")).to_be_checked()  # for whoever wants less motion
    visit.page.get_by_label("a word").check()
    visit.page.reload()
    expect(visit.page.get_by_label("a word")).to_be_checked()


# ---- Settings, light -------------------------------------------------------------------------------------------------


def test_presets_turn_the_sliders(visit: Visit, site: Site) -> None:
    visit.open(site)
    temperature = visit.setting("Temperature")
    expect(visit.page.get_by_label("balanced")).to_be_checked()
    usual = float(temperature.input_value())
    visit.page.get_by_label("careful").check()
    careful = float(temperature.input_value())
    visit.page.get_by_label("bold").check()
    assert careful < usual < float(temperature.input_value())
    temperature.fill("1.35")
    for name in ("careful", "balanced", "bold"):
        expect(visit.page.get_by_label(name)).not_to_be_checked()
    visit.page.get_by_label("balanced").check()
    assert float(temperature.input_value()) == usual


def test_the_length_of_the_prompt_is_counted(visit: Visit, site: Site, random_model: Path) -> None:
    from .stories import reference

    visit.open(site)
    visit.prompt.fill(PROMPT)
    given = [step for step in reference(random_model, PROMPT, 100, temperature=0.0) if step.from_prompt]
    expect(visit.page.locator("#count")).to_have_text(re.compile(rf"^({len(given)}|{len(given) + 1}) of 3,000$"))


def colours(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_dark_and_light_by_a_switch(visit: Visit, site: Site) -> None:
    visit.open(site)
    light = colours(visit.page)
    press(visit, "Dark")
    dark = colours(visit.page)
    assert dark != light
    visit.page.reload()
    assert colours(visit.page) == dark
    press(visit, "Light")
    assert colours(visit.page) == light
    visit.page.emulate_media(color_scheme="dark")
    assert colours(visit.page) == dark, "the browser's wish counts again"


def test_the_story_begins_below_the_bar(visit: Visit, site: Site) -> None:
    """Wherever the page is scrolled to when it is told again, its first line is in sight."""
    visit.open(site)
    for y in range(0, 700, 70):
        visit.tell(PROMPT, temperature=1, length=400)
        visit.page.evaluate("(y) => scrollTo(0, y)", y)
        visit.page.evaluate("document.querySelector('#retell').click()")
        visit.page.wait_for_function(
            "(n) => notebook.received.filter(({ type }) => type === 'done').length === n", arg=2 * (y // 70) + 2
        )
        top, bar = visit.page.evaluate("""() => {
            const bar = document.querySelector(".bar").getBoundingClientRect();
            return [document.querySelector("#story").getBoundingClientRect().top, Math.max(bar.bottom, 0)];
        }""")
        assert top >= bar - 1, y


def test_characters_that_the_model_has_not_read_are_pointed_out(visit: Visit, site: Site) -> None:
    visit.open(site)
    strange = visit.page.locator("#strange")
    visit.prompt.fill("w1 w2")
    expect(visit.page.locator("#count")).not_to_be_empty()
    visit.prompt.fill("狐狸")
    expect(strange).to_contain_text("2 characters here are outside")
    visit.prompt.fill("")
    expect(strange).to_be_empty()


# ---- Before the storyteller is awake, and on bad days ----------------------------------------------------------------


def test_nothing_jumps_when_it_is_ready(visit: Visit, built: Callable[[Path], Path], shipped_model: Path) -> None:
    """Cumulative layout shift, from the first paint until the storyteller is ready and counts the prompt."""
    visit.page.add_init_script("""
        window.shifts = [];
        new PerformanceObserver((list) => shifts.push(...list.getEntries().map(({ value }) => value)))
            .observe({ type: "layout-shift", buffered: true });
    """)
    site = Site(built(shipped_model))
    try:
        for width in (1200, 375):
            visit.page.set_viewport_size({"width": width, "height": 800})
            visit.open(site)
            expect(visit.page.locator("#count")).not_to_be_empty()
            assert sum(visit.page.evaluate("shifts")) <= 0.01
    finally:
        site.close()


def test_a_story_told_before_stands_there_until_the_first(
    visit: Visit, built: Callable[[Path], Path], shipped_model: Path
) -> None:
    site = Site(built(shipped_model))
    try:
        visit.open(site)
        before = visit.page.get_by_role("region", name="A story told before")
        expect(before).to_contain_text("Told before, with seed")
        (seed,) = re.findall(r"with seed (\d+)", before.text_content() or "")
        lines = before.locator("div p").all_text_contents()
        story = visit.tell(visit.prompt.input_value(), seed=seed)
        assert [line for line in story.split("\n") if line] == lines, "the very story that the page tells"
        expect(before).to_be_hidden()
    finally:
        site.close()


def test_at_twice_the_size_and_in_forced_colours(visit: Visit, site: Site) -> None:
    visit.page.emulate_media(forced_colors="active")
    visit.page.set_viewport_size({"width": 600, "height": 450})  # what 1200 × 900 are at 200 %
    visit.open(site).tell(PROMPT, length=40)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 600
    line = "getComputedStyle(document.querySelector('#story .given')).textDecorationLine"
    assert visit.page.evaluate(line) == "underline", "the visitor's words are told from the model's"
