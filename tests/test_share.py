"""Sharing in a real browser: a link that is confirmed to the bit, or says what is wrong; text, Markdown, a picture."""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from fabella import samplers
from fabella.generate import Ending, Step, generate
from fabella.sampler import Settings

from .browsers import Missing, firefox
from .conftest import RANDOM_CONFIG, Shoot, Site, Visit
from .gate import stopped_story
from .random_models import load, write_random_model
from .stories import PROMPT
from .test_link import Links, links
from .test_page import AXE
from .test_page_code import LIKELIEST, Coder
from .test_shelf import drop

__all__ = ["links"]  # a fixture


def counted(link: str) -> int:
    """How many tokens the story in a link has."""
    return int(link.partition("&h=")[2].partition(".")[0])


def same(link: str) -> str:
    """What the page says of a story that is the same as the link's, to the last of the tokens that the link counts."""
    count = counted(link)
    return f"The same, bit for bit, as the story in the link: all {count} token{'s' * (count != 1)}."


def shared(visit: Visit) -> str:
    """The link of the story on the page."""
    visit.page.get_by_role("button", name="Share", exact=True).click()
    link = visit.page.get_by_role("dialog", name="Share").get_by_role("textbox", name="Link").input_value()
    visit.page.keyboard.press("Escape")
    return link


def follow(visit: Visit, link: str) -> Page:
    """A friend's tab, in which the link is opened."""
    friend = visit.context.new_page()
    friend.goto(link)
    return friend


def test_a_link_tells_the_same_story_and_says_so(visit: Visit, site: Site) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.origin)
    story = visit.open(site).tell(PROMPT, temperature=0.9, length=50)
    address = visit.page.url
    link = shared(visit)
    assert link.startswith(f"{site.url}#v=1&{address.partition('#')[2]}&name=random+0&h=")
    assert len(link) - len(site.url) < 150
    visit.page.get_by_role("button", name="Share", exact=True).click()
    visit.page.get_by_role("button", name="Copy the link").click()
    expect(visit.page.get_by_text("The link is copied.")).to_be_visible()
    assert visit.page.evaluate("navigator.clipboard.readText()") == link
    visit.page.keyboard.press("Escape")
    visit.page.get_by_role("button", name="Copy", exact=True).click()
    expect(visit.page.get_by_text("The story is copied.")).to_be_visible()
    assert visit.page.evaluate("navigator.clipboard.readText()") == story

    friend = follow(visit, link)
    expect(friend.locator("#confirmed")).to_have_text(same(link))
    assert friend.locator("#story").text_content() == story
    assert not [url for url in visit.requests if "#" in url or "Once" in url], "no server hears of it"
    friend.get_by_role("button", name="Again").click()  # another story
    expect(friend.locator("#branch")).to_have_text("2/2")
    expect(friend.locator("#confirmed")).to_be_empty()
    friend.goto("about:blank")
    friend.goto(link)
    expect(friend.locator("#confirmed")).to_have_text(same(link))
    friend.close()


def test_a_reload_confirms_it_without_telling_it_anew(visit: Visit, site: Site) -> None:
    visit.open(site).tell(PROMPT, temperature=0.9, length=50)
    link = shared(visit)
    confirmed = visit.page.locator("#confirmed")
    visit.page.goto(link)  # only the fragment is another
    expect(confirmed).to_have_text(same(link))
    assert len(visit.received("done")) == 1
    visit.page.reload()
    expect(confirmed).to_have_text(same(link))
    assert visit.received("steps") == []


def test_one_that_is_shared_where_it_was_stopped_ends_there(visit: Visit, site: Site, random_model: Path) -> None:
    stopped_story(visit, site, PROMPT)
    story = visit.story.text_content()
    site.faults.clear()  # no gate for the friend
    link = shared(visit)
    friend = follow(visit, link)
    expect(friend.locator("#confirmed")).to_have_text(same(link))
    decoder = load(random_model)[1].tokenizer.decoder()
    text = "".join([decoder.push(step["token"]) for step in visit.steps()])
    assert text == story
    assert friend.locator("#story").text_content() == text + decoder.flush(), "a character that was cut is seen to be"


def test_one_that_went_on_beyond_a_loop_does_so_again(visit: Visit, site: Site) -> None:
    visit.open(site).tell(PROMPT, temperature=0, length=RANDOM_CONFIG.seq_len)
    expect(visit.page.get_by_text("it had begun to say the same words again")).to_be_visible()
    first = len(visit.steps())
    visit.page.get_by_role("button", name="Go on").click()
    visit.page.wait_for_function("() => notebook.received.filter(({ type }) => type === 'done').length === 2")
    expect(visit.tell_button).to_be_visible()
    story = visit.story.text_content()
    link = shared(visit)
    assert counted(link) > first
    friend = follow(visit, link)
    expect(friend.locator("#confirmed")).to_have_text(same(link))
    assert friend.locator("#story").text_content() == story


def choosing(model: Path, choices: dict[int, int], length: int) -> list[Step]:
    """A story under wasmtime in which some tokens are taken in the place of those drawn."""
    engine, file = load(model)
    forced = [choices.get(place) for place in range(max(choices) + 1)]
    how, ending = Settings(temperature=0.9, top_p=0.9, seed=11), Ending(length, loops=True)
    return list(generate(engine, file.tokenizer, PROMPT, how, ending=ending, forced=forced))


def link_of(links: Links, site: Site, model: str, steps: list[Step], choices: dict[int, int]) -> str:
    """A link to a story, as a page would make it whose reader has taken these tokens."""
    values = {"temperature": 0.9, "top_p": 0.9, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "length": 60}
    turn: dict[str, Any] = {"id": 1, "parent": 0, "settings": {**values, "seed": "11"}}
    turn["choices"] = [[place, token] for place, token in choices.items()]
    leaf = {"model": {"id": model}, "turns": [{"id": 0, "text": PROMPT}, turn]}
    told = [step.token for step in steps if not step.from_prompt]
    return site.url + str(links("format", links("write", leaf, turn, None), "random 0", told))


def test_choices_of_words_travel_with_it(visit: Visit, site: Site, links: Links, random_model: Path) -> None:
    choices = {2: 700, 3: 701, 20: 702}
    steps = choosing(random_model, choices, 60)
    told = [step.token for step in steps if not step.from_prompt]
    assert [told[place] for place in choices] == list(choices.values())
    link = link_of(links, site, id_of(random_model), steps, choices)
    friend = visit.page
    friend.goto(link)
    expect(friend.locator("#confirmed")).to_have_text(same(link))
    assert friend.locator("#story").text_content() == "".join(step.text for step in steps)
    assert "c=2.700_3.701_20.702" in friend.url, "they stay in the address,"
    friend.reload()
    friend.get_by_role("button", name="Share", exact=True).click()
    again = friend.get_by_role("dialog", name="Share").get_by_role("textbox", name="Link").input_value()
    assert again.partition("&c=")[2] == link.partition("&c=")[2], "and go into the next link"


def test_a_story_that_is_another_is_told_where(visit: Visit, site: Site) -> None:
    visit.open(site).tell(PROMPT, temperature=0.9, length=60)
    link = shared(visit)
    other = re.sub(r"&s=\d+", "&s=77", link)
    friend = follow(visit, other)
    confirmed = friend.locator("#confirmed")
    expect(confirmed).to_contain_text("Not the same as the story in the link: ")
    expect(confirmed).to_contain_text("there is another")
    shorter = re.sub(r"&n=\d+", "&n=30", link)
    friend.goto("about:blank")
    friend.goto(shorter)
    expect(confirmed).to_contain_text(re.compile(r"the 1\d tokens here are the same, but the link’s has 4\d"))


# ---- Links that are none ---------------------------------------------------------------------------------------------

BAD = {
    "cut off": lambda link: link[:-9],
    "of a later kind": lambda link: link.replace("v=1", "v=9"),
    "hostile": lambda link: link.replace("&p=", "&p=%3Cscript%3Edocument.title=1%3C/script%3E&p="),
    "enormous": lambda link: link.replace("&p=", "&p=" + 80_000 * "a"),
    "no text": lambda link: link.replace("&p=", "&p=%f0%28"),
    "out of range": lambda link: link.replace("&p=", "&tp=7&p="),
    "no code": lambda link: link.replace("&name=", "&code=AAAA&name="),
}


def test_a_damaged_link_says_so_and_changes_nothing(visit: Visit, site: Site) -> None:
    story = visit.open(site).tell(PROMPT, temperature=0.9, length=40)
    link = shared(visit)
    visit.prompt.fill("What I was writing")
    visit.setting("Temperature").fill("0.3")
    title = visit.page.title()
    for damage in BAD.values():
        visit.page.evaluate("(hash) => { location.hash = hash; }", damage(link).partition("#")[2])
        expect(visit.alert).to_contain_text("This link is damaged, or was cut off: ")
        expect(visit.alert).to_contain_text("Nothing was told, and nothing has changed.")
        assert visit.story.text_content() == story
        expect(visit.prompt).to_have_value("What I was writing")
        expect(visit.setting("Temperature")).to_have_value("0.3")
        visit.page.evaluate("() => { location.hash = ''; }")
    assert len(visit.received("done")) == 1
    assert visit.page.title() == title
    assert visit.page.locator("script[src='']").count() == 0


def test_a_damaged_link_in_a_new_tab_leaves_the_page_of_use(visit: Visit, site: Site, random_model: Path) -> None:
    link = f"{site.url}#v=1&m={id_of(random_model)[:12]}&p=Once&s=7&n=20&name=x&h=3.0123456789ab.AAAAAAAAAAAAAAAA"
    for damage in BAD.values():
        visit.page.goto("about:blank")
        visit.page.goto(damage(link))
        expect(visit.alert).to_contain_text("This link is damaged, or was cut off: ")
        expect(visit.page.locator("#ending")).to_be_hidden()
    visit.setting("Length").fill("120")
    visit.tell_button.click()
    expect(visit.page.locator("#ending")).to_be_visible()
    expect(visit.page.locator("#confirmed")).to_be_empty()


def id_of(model: Path) -> str:
    """The SHA-256 of a model's file."""
    return hashlib.sha256(model.read_bytes()).hexdigest()


def test_settings_that_the_model_refuses_are_told_in_words(visit: Visit, site: Site, random_model: Path) -> None:
    begin, mark = f"#v=1&m={id_of(random_model)[:12]}&p=Once&s=7", "&name=x&h=3.0123456789ab.AAAAAAAAAAAAAAAA"
    visit.page.goto(f"{site.url}{begin}&n=1{mark}")
    expect(visit.alert).to_contain_text("the length asked for is 1: shorten it")
    visit.page.goto(f"{site.url}{begin}&c=2.9999{mark}")
    expect(visit.alert).to_contain_text("must be tokens of the model")
    expect(visit.page.locator("#confirmed")).to_be_empty()


def test_a_model_that_the_page_lacks_is_named_and_may_be_opened(
    visit: Visit, site: Site, tmp_path: Path, links: Links
) -> None:
    other = write_random_model(tmp_path / "other.gguf", RANDOM_CONFIG, seed=5)
    id = id_of(other)
    steps = choosing(other, {0: 300}, 60)
    link = link_of(links, site, id, steps, {0: 300}).replace("random+0", "King+James")
    visit.page.goto(link)
    expect(visit.alert).to_contain_text("The story in this link was told by another model, “King James” ")
    expect(visit.alert).to_contain_text(f"its SHA-256 begins with {id[:12]}")
    expect(visit.alert).to_contain_text("open its file here, and you hear the story")
    visit.becomes("ready")  # with the page's own
    drop(visit, ("other.gguf", other.read_bytes()))
    row = visit.page.get_by_role("tabpanel").get_by_role("listitem").filter(has_text="yours")
    row.get_by_role("button", name="load").click()
    expect(visit.page.locator("#confirmed")).to_have_text(same(link))
    assert visit.story.text_content() == "".join(step.text for step in steps)


# ---- Links with code -------------------------------------------------------------------------------------------------

SECOND = """def choose(logits):  # </pre><img src=x onerror="alert(1)">
    print("ran")
    return logits.shortlist(2)[1][0]
"""
MINE = "def choose(logits):\n    return 7  # mine\n"


def dialog(visit: Visit) -> Locator:
    """The dialog to share, opened."""
    visit.page.get_by_role("button", name="Share", exact=True).click()
    return visit.page.get_by_role("dialog", name="Share")


def test_code_in_a_link_is_read_first_and_then_run(visit: Visit, site: Site) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.origin)
    coder = Coder(visit, site)
    coder.run(SECOND)
    story = coder.told(1)
    expect(dialog(visit)).to_contain_text("It carries the code that chose the words. Whoever opens it reads that first")
    expect(visit.page.get_by_role("button", name="Copy as command")).to_have_count(0)
    visit.page.keyboard.press("Escape")
    link = shared(visit)
    assert len(link) - len(site.url) < 400
    coder.write(MINE)
    expect(coder.editor).to_contain_text("mine")
    assert coder.kept() == MINE
    coder.press("Let the sampler choose")
    visit.awake()
    visit.tell("w1", length=30)  # or the link's story would stand there already

    before = len(visit.requests)
    visit.page.goto("about:blank")
    visit.page.goto(link)
    region = visit.page.get_by_role("region", name="Code in the link")
    expect(region).to_contain_text("nothing of it has run, and nothing was told. Read it first:")
    assert region.locator("pre").text_content() == SECOND
    region.get_by_role("button", name="Copy the code").click()
    expect(region.get_by_text("The code is copied.")).to_be_visible()
    assert visit.page.evaluate("navigator.clipboard.readText()").replace("\r", "") == SECOND
    visit.awake()
    assert [sent["type"] for sent in visit.page.evaluate("notebook.sent")] == ["load"]
    assert not [url for url in visit.requests[before:] if "python-further" in url]
    expect(visit.page.locator("#confirmed")).to_be_empty()
    visit.page.evaluate(AXE.read_text())
    assert serious(visit.page) == []

    region.get_by_role("button", name="Run this code and hear the story").click()
    expect(visit.page.locator("#confirmed")).to_have_text(same(link))
    assert visit.story.text_content() == story
    expect(region).to_be_hidden()
    expect(coder.console).to_contain_text("ran\nran")
    expect(coder.editor).to_contain_text("<img src=x")
    expect(coder.page.get_by_text("This stands in the place of your own, which is kept.")).to_be_visible()
    assert coder.kept() == MINE
    coder.write(f"{SECOND}# changed")
    coder.press("Back to mine")
    expect(coder.editor).to_contain_text("mine")
    assert coder.kept() == MINE
    coder.page.get_by_role("combobox", name="Example").select_option(index=3)
    coder.press("Keep this one instead")
    assert coder.kept() == samplers.texts()["examples"][2]["source"]  # type: ignore[index]


def test_code_of_a_link_is_not_kept_as_the_visitors_own_until_they_change_it(visit: Visit, site: Site) -> None:
    coder = Coder(visit, site)
    coder.run(SECOND)
    coder.told(1)
    link = shared(visit)
    coder.press("Let the sampler choose")
    visit.awake()
    visit.tell("w1", length=30)  # or the link's story would stand there already
    visit.page.evaluate("localStorage.clear()")
    visit.page.goto("about:blank")
    visit.page.goto(link)
    visit.page.get_by_role("button", name="Run this code and hear the story").click()
    expect(visit.page.locator("#confirmed")).to_have_text(same(link))
    assert coder.kept() == samplers.chain()
    coder.write(f"{SECOND}# changed")
    expect(coder.editor).to_contain_text("changed")
    assert coder.kept() == f"{SECOND}# changed"


def test_a_story_that_no_link_tells_again_says_why(visit: Visit, site: Site) -> None:
    coder = Coder(visit, site)
    coder.run(LIKELIEST)
    coder.told(1)
    visit.setting("Length").fill("70")
    coder.press("Go on")
    coder.told(2)
    expect(dialog(visit)).to_contain_text("code of yours chose some of its words, but not all of them in one go")
    expect(visit.page.get_by_role("textbox", name="Link")).to_have_count(0)
    visit.page.keyboard.press("Escape")
    noise = "".join(random.Random(1).choices(string.ascii_letters, k=6000))
    coder.run(f"{LIKELIEST}# {noise}")
    coder.told(3)
    expect(dialog(visit)).to_contain_text(re.compile(r"it would have [4-6],\d{3} characters, and 4,000 are what most"))
    expect(visit.page.get_by_role("textbox", name="Link")).to_have_count(0)
    visit.page.keyboard.press("Escape")
    coder.press("Let the sampler choose")
    visit.awake()
    visit.tell(PROMPT)
    assert "&code=" not in shared(visit)


# ---- Text and picture ------------------------------------------------------------------------------------------------


def test_it_is_taken_along_as_markdown_text_and_picture(visit: Visit, site: Site, tmp_path: Path) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.origin)
    story = visit.open(site).tell(PROMPT, temperature=0.9, length=60, seed=3)
    link = shared(visit)
    visit.page.get_by_role("button", name="Share", exact=True).click()
    dialog = visit.page.get_by_role("dialog", name="Share")
    dialog.get_by_role("button", name="Copy as Markdown").click()
    expect(dialog.get_by_text("The Markdown is copied.")).to_be_visible()
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"**{PROMPT}**")
    assert copied.endswith(f"[Hear it told](<{link}>)\n")
    with visit.page.expect_download() as saving:
        dialog.get_by_role("button", name="Save as text").click()
    assert saving.value.suggested_filename.startswith(PROMPT)
    text = Path(saving.value.path()).read_text(encoding="utf-8")
    assert text == f"{story.strip()}\n\nTold by random 0 with seed 3, a small language model in a browser.\n{link}\n"
    seen = []
    for light in ("light", "dark"):
        dialog.get_by_role("radio", name=light).check(force=True)
        with visit.page.expect_download() as saving:
            dialog.get_by_role("button", name="Save the picture").click()
        seen.append(Path(saving.value.path()).read_bytes())
        assert seen[-1].startswith(b"\x89PNG")
        width, height = (int.from_bytes(seen[-1][at : at + 4], "big") for at in (16, 20))
        assert width == 1080
        assert 400 < height < 3000
    assert seen[0] != seen[1]
    assert not [url for url in visit.requests if url.startswith("blob:") and "png" in url]


@pytest.fixture
def words() -> list[str]:
    """Texts of which pictures are drawn: without spaces, from right to left, enormous, empty."""
    return ["故事" * 400, "كان يا ما كان " * 40, "word " * 20_000, "\n\n", "x" * 3000, "🦊" * 200]


def test_pictures_of_any_text_can_be_drawn(visit: Visit, site: Site, words: list[str]) -> None:
    """By what stands on the page: the model of the tests cannot tell such stories."""
    visit.open(site).tell(PROMPT, temperature=0.9, length=20)
    for text in words:
        sizes = visit.page.evaluate(DRAWN, text)
        assert sizes["width"] == 1080
        assert 300 <= sizes["height"] <= 12_000


# Drops a file with a story on the page, opens it on the shelf, and shares it.
DRAWN = """async (text) => {
  const turn = { dropped: 0, seconds: 0, rate: 0, tokens: [], reason: "end", settings: null };
  const turns = [
    { ...turn, id: 0, parent: null, role: "user", text: "", reason: null },
    { ...turn, id: 1, parent: 0, role: "assistant", text: text || "x" },
  ];
  const model = { id: "0", name: "x" };
  const id = [...crypto.getRandomValues(new Uint8Array(12))].map((n) => n.toString(16).padStart(2, "0")).join("");
  const leaf = { id, kind: "story", title: "t" + id, model, system: "", changed: 1, turns, picked: { "": 0, 0: 1 } };
  const file = new File([JSON.stringify({ fabella: 1, leaves: [leaf] })], "a.json");
  const dropped = new DataTransfer();
  dropped.items.add(file);
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true }));
  const until = async (find) => {
    for (;;) {
      const found = find();
      if (found) return found;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  const title = "t" + id;
  (await until(() => [...document.querySelectorAll("#shelf .title")].find((one) => one.textContent === title))).click();
  document.querySelector("#share").click();
  const canvas = await until(() => document.querySelector("#sharing[open] canvas"));
  const size = { width: canvas.width, height: canvas.height };
  document.querySelector("#sharing").close();
  return size;
}"""


# ---- Looks -----------------------------------------------------------------------------------------------------------


def serious(page: Page) -> list[str]:
    """What axe-core finds, once it is there."""
    found = page.evaluate("axe.run()")["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sharing_is_for_everyone(visit: Visit, site: Site, scheme: Any, shoot: Shoot) -> None:
    """By keyboard, on a phone, in the dark."""
    visit.page.set_viewport_size({"width": 375, "height": 700})
    visit.page.emulate_media(color_scheme=scheme)
    visit.open(site).tell(PROMPT, temperature=0.9, length=60)
    button = visit.page.get_by_role("button", name="Share", exact=True)
    button.focus()
    visit.page.keyboard.press("Enter")
    dialog = visit.page.get_by_role("dialog", name="Share")
    expect(dialog).to_be_visible()
    visit.page.evaluate(AXE.read_text())
    assert serious(visit.page) == []
    assert visit.page.evaluate("document.querySelector('#sharing').scrollWidth") <= 375
    shoot(visit.page, f"share-{scheme}-375")
    reached = set()
    for _ in range(14):
        reached.add(visit.page.evaluate("document.activeElement.textContent || document.activeElement.value"))
        visit.page.keyboard.press("Tab")
    assert {
        "Close",
        "Copy the link",
        "Copy as Markdown",
        "Save as text",
        "Copy as command",
        "Save the picture",
    } <= reached
    assert {"light", "dark"} & reached
    visit.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()


def test_nothing_of_it_is_loaded_before_it_is_wanted(visit: Visit, site: Site) -> None:
    visit.open(site).tell(PROMPT, temperature=0.9, length=30)
    rooms = ("share-", "proof-")
    assert not [url for url in visit.requests if any(f"/{room}" in url and url.endswith(".js") for room in rooms)]
    shared(visit)
    assert len([url for url in visit.requests if "/share-" in url and url.endswith(".js")]) == 1


# ---- Another browser -------------------------------------------------------------------------------------------------


def test_a_link_told_in_chromium_is_confirmed_in_firefox(visit: Visit, fast: Site) -> None:
    story = visit.open(fast).tell("The fox said", temperature=0.9, length=120)
    link = shared(visit)
    try:
        with firefox() as driven:
            driven.open(link)
            confirmed = "return document.querySelector('#confirmed')?.textContent"
            assert driven.wait(confirmed) == same(link)
            assert driven.run("return document.querySelector('#story').textContent") == story
    except Missing as missing:
        pytest.skip(str(missing))


def test_code_in_a_link_made_in_chromium_runs_in_firefox(visit: Visit, site: Site) -> None:
    coder = Coder(visit, site)
    coder.run(SECOND)
    story = coder.told(1)
    link = shared(visit)
    button = "[...document.querySelectorAll('button')].find((one) => one.textContent.startsWith('Run this code'))"
    try:
        with firefox() as driven:
            driven.open(link)
            driven.wait(f"return {button}")
            driven.run(f"{button}.click()")
            confirmed = "return document.querySelector('#confirmed')?.textContent"
            assert driven.wait(confirmed) == same(link)
            assert driven.run("return document.querySelector('#story').textContent") == story
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def fast(built: Callable[[Path], Path], shipped_model: Path) -> Iterator[Site]:
    """The published page."""
    site = Site(built(shipped_model))
    yield site
    site.close()
