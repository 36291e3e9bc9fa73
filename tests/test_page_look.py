"""Look inside, in a real browser: how each token was chosen, another way from any of them, what is inside the model."""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from fabella.again import again_from
from fabella.chat import Conversation, template_of
from fabella.choice import Choice
from fabella.engine import Engine
from fabella.generate import Ending, Step, generate
from fabella.modelfile import Config, ModelFile
from fabella.sampler import Settings
from fabella.session import Session

from .conftest import Handler, Shoot, Site, Visit
from .patience import PATIENCE
from .random_models import load, write_random_model
from .stories import PROMPT
from .test_chat import TEMPLATE
from .test_page import AXE
from .test_shelf import SMALL, drop

# All of them: the shipped model has settings of its own.
HOW: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "min_p": 0, "repetition_penalty": 1, "seed": 7}
LENGTH = 40
# Until it `rests`, no slider has rested long enough for a token to be computed (web/rooms/look.js, REST).
UNRESTING = """() => {
  const { setTimeout } = globalThis;
  globalThis.rests = false;
  globalThis.setTimeout = (callback, milliseconds, ...more) =>
    rests || milliseconds !== 200 ? setTimeout(callback, milliseconds, ...more) : 0;
}"""
DEEP = Config(dim=72, hidden_dim=96, n_layers=30, n_heads=9, n_kv_heads=3, vocab_size=400, seq_len=300)  # as SmolLM2's


@pytest.fixture(scope="module")
def stories(shipped_model: Path) -> tuple[Engine, ModelFile]:
    return load(shipped_model)


@pytest.fixture(scope="module")
def first(stories: tuple[Engine, ModelFile]) -> list[Choice]:
    return choices_of(told(stories))


def told(model: tuple[Engine, ModelFile], prompt: str = PROMPT, length: int = LENGTH, **how: Any) -> list[Step]:
    """The story under wasmtime, its prompt left out, with the choices."""
    engine, file = model
    way = {name: how.pop(name) for name in ("told", "forced") if name in how}
    ending = Ending(length, loops=True, look=True)
    steps = generate(engine, file.tokenizer, prompt, Settings(**HOW | how), ending=ending, **way)
    return [step for step in steps if not step.from_prompt]


def choices_of(steps: list[Step]) -> list[Choice]:
    return [step.choice for step in steps if step.choice]


def text_of(steps: list[Step]) -> str:
    return "".join(step.text for step in steps)


@pytest.fixture(scope="module")
def site(built: Callable[[Path], Path], shipped_model: Path) -> Iterator[Site]:
    site = Site(built(shipped_model))
    yield site
    site.close()


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "deep.gguf", DEEP, template=TEMPLATE)


@pytest.fixture(scope="module")
def chat_site(built: Callable[[Path], Path], deep_model: Path) -> Iterator[Site]:
    site = Site(built(deep_model))
    yield site
    site.close()


@pytest.fixture
def opened(visit: Visit, site: Site) -> Visit:
    """A visitor who has been told a story, and then looks inside."""
    visit.open(site)
    visit.tell(PROMPT, **HOW, length=LENGTH)
    assert not [url for url in visit.requests if "/look-" in url], "nothing of it is loaded before it is opened"
    press(visit, "Look inside")
    expect(candidates(visit).first).to_be_visible()
    return visit


def panel(visit: Visit) -> Locator:
    return visit.page.get_by_role("region", name="Look inside")


def candidates(visit: Visit) -> Locator:
    return panel(visit).locator(".look-bars li")


def candidate(visit: Visit, token: int) -> Locator:
    """What takes it."""
    return panel(visit).locator(f".look-bars [data-token='{token}']")


def walker(visit: Visit) -> Locator:
    return panel(visit).get_by_role("slider", name="Token", exact=True)


def coin(visit: Visit) -> Locator:
    return panel(visit).locator(".look-coin")


def head(visit: Visit) -> Locator:
    """What is said instead if there is nothing to see."""
    return panel(visit).locator(".look-head").filter(visible=True)


def press(visit: Visit, name: str) -> None:
    visit.page.get_by_role("button", name=name, exact=True).click()


def tab(visit: Visit, name: str) -> None:
    visit.page.get_by_role("tab", name=name).click()


def sent(visit: Visit, type: str) -> list[dict[str, Any]]:
    return [message for message in visit.page.evaluate("notebook.sent") if message["type"] == type]


def heard(visit: Visit) -> list[Choice]:
    """How the tokens were chosen that the worker told last."""
    return [Choice.from_bytes(a2b_base64(step["choice"])) for step in visit.steps() if "choice" in step]


def percent(share: float) -> str:
    value = 100 * share
    if value < 0.01:
        return "< 0.01 %"
    return f"{value:.{0 if value >= 9.95 else 1 if value >= 0.995 else 2}f} %"


def assert_shows(visit: Visit, choice: Choice) -> None:
    """The panel shows a token's likeliest ten, and the one taken: what the model said of each, and what was left."""
    if choice.coin is not None:
        expect(coin(visit)).to_contain_text(f"The coin fell at {choice.coin:.4f}")
    shown = [one for rank, one in enumerate(choice.candidates) if rank < 10 or one[0] in (choice.token, choice.picked)]
    left = dict((id, share) for id, _, share in choice.steps[-1].kept) if choice.steps else {choice.picked: 1.0}
    expect(candidates(visit)).to_have_count(len(shown) + 1)
    for row, (id, _, probability) in zip(candidates(visit).all(), shown, strict=False):
        if id == choice.token:
            expect(row).to_have_attribute("aria-current", "true")
            expect(row.locator("> small")).to_contain_text(re.compile("taken|comes next"))
        else:
            expect(row.locator(f"[data-token='{id}']")).to_have_count(1)
        after = percent(left[id]) if id in left else "–"
        expect(row.locator(".look-percent")).to_have_text([percent(probability), after])
    expect(candidates(visit).last).to_contain_text("all others")


def place_of(visit: Visit, character: int, within: str = "#story") -> tuple[float, float]:
    """Where a character of a text stands in the window."""
    x, y = visit.page.evaluate(
        """([within, before]) => {
          const nodes = document.createTreeWalker(document.querySelector(within), NodeFilter.SHOW_TEXT);
          for (let node = nodes.nextNode(); node; before -= node.data.length, node = nodes.nextNode()) {
            if (before >= node.data.length) continue;
            const range = new Range();
            range.setStart(node, before);
            range.setEnd(node, before + 1);
            const { left, top, width, height } = range.getBoundingClientRect();
            return [left + width / 2, top + height / 2];
          }
        }""",
        [within, character],
    )
    return x, y


# ---- Each token's choice ---------------------------------------------------------------------------------------------


def test_each_tokens_choice_is_shown_by_keyboard_and_by_pointer(
    opened: Visit, stories: tuple[Engine, ModelFile], first: list[Choice]
) -> None:
    page = opened.page
    assert heard(opened) == first, "what it was told again with is what it was told with"
    assert_shows(opened, first[0])
    expect(walker(opened)).to_be_focused()
    page.keyboard.press("ArrowRight")
    assert_shows(opened, first[1])
    expect(walker(opened)).to_have_attribute("aria-valuetext", re.compile(percent(first[1].probability)))
    opened.story.focus()  # wherever one is
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert_shows(opened, first[2])
    walker(opened).fill("5")
    assert_shows(opened, first[5])
    press(opened, "The token before")
    expect(walker(opened)).to_have_value("4")
    before = len(PROMPT) + len(text_of(told(stories)[:8]))
    page.mouse.click(*place_of(opened, before + 1))  # the first letter of the token's word
    expect(walker(opened)).to_have_value("8")
    assert_shows(opened, first[8])

    expect(panel(opened).get_by_text("How likely the model held each")).to_be_hidden()
    page.get_by_label("Tint the text by probability").press("Space")
    expect(panel(opened).get_by_text("How likely the model held each")).to_be_visible()
    shares = [choice.probability for choice, step in zip(first, told(stories), strict=True) if step.text]
    for name, least, most in (("below-5", 0, 0.05), ("below-20", 0.05, 0.2), ("below-50", 0.2, 0.5)):
        size = page.evaluate("(name) => CSS.highlights.get(name).size", f"look-{name}")
        assert size == sum(least <= share < most for share in shares), name
    panel(opened).get_by_text("Step by step").click()
    rows = panel(opened).get_by_role("group", name="Step by step").get_by_role("row")
    expect(rows).to_have_count(len(first[8].candidates) + 3)
    assert rows.first.get_by_role("columnheader").all_text_contents() == ["model", "temper\u00adature", "top\u2011p"]
    assert rows.last.get_by_role("cell").all_text_contents() == ["all", "all", str(first[8].steps[-1].total)]


def test_the_story_told_before_has_its_choices(visit: Visit, site: Site, stories: tuple[Engine, ModelFile]) -> None:
    page, asked, free = visit.page, Event(), Event()

    def held_back(handler: Handler, file: Path) -> None:
        asked.set()
        free.wait()
        handler.answer(file.read_bytes())

    (model,) = (site.folder / "assets").glob("stories-*.gguf")
    site.faults[model.name] = held_back
    try:
        visit.open(site, ready=False)
        before = page.get_by_role("region", name="A story told before")
        (seed,) = re.findall(r"with seed (\d+)", before.text_content() or "")
        lines = before.locator("div p").all_text_contents()
        press(visit, "Look inside")
        expect(head(visit)).to_have_text("The model is still waking up: then it tells you.")
        assert asked.wait(PATIENCE)
    finally:
        free.set()
        site.faults.clear()
    prompt = visit.prompt.input_value()
    names = {field.name for field in fields(Settings)}
    how = {name: value for name, value in stories[1].card.settings.items() if name in names}
    expected = told(stories, prompt, 0, **{**how, "seed": int(seed)})
    assert [line for line in (prompt + text_of(expected)).split("\n") if line] == lines
    assert_shows(visit, choices_of(expected)[0])
    walker(visit).fill("11")
    assert_shows(visit, choices_of(expected)[11])
    assert [line for line in (visit.story.text_content() or "").split("\n") if line] == lines, "it stays as it is"
    expect(page.locator("#reason")).to_have_text("The end.")


# ---- Another way -----------------------------------------------------------------------------------------------------


def test_another_way_is_told_as_if_it_had_been_drawn_and_nothing_is_lost(
    opened: Visit, stories: tuple[Engine, ModelFile], first: list[Choice]
) -> None:
    page = opened.page
    story, tokens = opened.story.text_content() or "", [choice.token for choice in first]
    begun = PROMPT + text_of(told(stories)[:6])

    def branch(other: int) -> list[Step]:
        """As if it had been drawn: a fresh story with its first tokens forced."""
        return told(stories, forced=[*tokens[:6], other])

    walker(opened).fill("6")
    one, two = [id for id, _, _ in first[6].candidates[:10] if id != tokens[6]][:2]
    candidate(opened, one).click()
    expected = branch(one)
    expect(opened.story).to_have_text(PROMPT + text_of(expected), use_inner_text=False)
    assert heard(opened) == choices_of(expected)[6:]
    expect(page.locator("#branch")).to_have_text("2/2")
    expect(walker(opened)).to_have_value("6")
    assert_shows(opened, choices_of(expected)[6])
    expect(coin(opened)).to_contain_text("was put in its place")
    walker(opened).fill("7")
    assert_shows(opened, choices_of(expected)[7])

    panel(opened).get_by_role("button", name="The way before").press("Enter")
    expect(opened.story).to_have_text(story, use_inner_text=False)
    expect(page.locator("#branch")).to_have_text("1/2")
    walker(opened).fill("6")
    assert_shows(opened, first[6])
    candidates(opened).get_by_role("button").first.focus()  # and all by keyboard
    for _ in range([id for id, _, _ in first[6].candidates if id != tokens[6]].index(two)):
        page.keyboard.press("ArrowDown")
    expect(candidate(opened, two)).to_be_focused()
    page.keyboard.press("Enter")
    expect(opened.story).to_have_text(PROMPT + text_of(branch(two)), use_inner_text=False)
    expect(page.locator("#branch")).to_have_text("3/3")

    page.get_by_label("Or a word of your own").fill("dragon")
    page.keyboard.press("Enter")
    expect(page.locator("#branch")).to_have_text("4/4")
    expect(opened.story).to_contain_text(begun.strip() + " dragon")
    expect(opened.tell_button).to_be_visible()
    page.get_by_role("button", name="The telling before").click()
    expect(opened.story).to_have_text(PROMPT + text_of(branch(two)), use_inner_text=False)


def test_sliders_redraw_at_once_and_the_story_is_retold_from_there(
    opened: Visit, stories: tuple[Engine, ModelFile], first: list[Choice]
) -> None:
    page = opened.page
    engine, file = stories
    walker(opened).fill("3")
    assert_shows(opened, first[3])
    retell = panel(opened).get_by_role("button", name="Retell from here")
    expect(retell).to_be_disabled()
    panel(opened).get_by_role("slider", name="Temperature").fill("0")
    expect(coin(opened)).to_contain_text("the likeliest is taken")
    expect(candidates(opened).first.locator(".look-percent").last).to_have_text("100 %")

    page.evaluate(UNRESTING)
    panel(opened).get_by_role("slider", name="Temperature").fill("0.5")
    panel(opened).get_by_role("slider", name="Top-k").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    how = Settings(temperature=0.5, top_p=0.9, top_k=2)
    made = again_from(first[3], how, len(file.tokenizer), engine.exp, engine.log)
    assert made.exact[-1]
    left = [dict((id, share) for id, _, share in choice.steps[-1].kept) for choice in (first[3], made.choice)]
    expect(candidates(opened).filter(has_text="cut by top-k")).not_to_have_count(0)
    for row, (id, _, _) in zip(candidates(opened).all()[:10], first[3].candidates, strict=False):
        shares = [percent(side[id]) if id in side else "–" for side in left]
        expect(row.locator(".look-percent")).to_have_text(shares)  # once both steps of the slider are drawn
    assert len(sent(opened, "tell")) == 2, "the story, and once more to look: no token is computed for the sliders"
    asked = [message["request"] for message in sent(opened, "call")]
    assert not [request for request in asked if '"top_k":2' in request and '"exactly"' in request], "nor to be exact"

    page.evaluate("() => { rests = true; }")
    retell.click()
    tokens = [choice.token for choice in first[:3]]
    steps = told(stories, told=tokens, temperature=0.5, top_k=2)
    begun = PROMPT + text_of(told(stories)[:3])
    expect(opened.story).to_have_text(begun + text_of(steps), use_inner_text=False)
    expect(page.locator("#branch")).to_have_text("2/2")
    expect(panel(opened).get_by_role("button", name="As it was")).to_be_disabled()
    panel(opened).get_by_role("slider", name="Temperature").fill("2")  # more than what was kept of it can tell
    panel(opened).get_by_role("slider", name="Top-p").fill("1")
    page.wait_for_function("() => notebook.sent.some(({ request }) => request?.includes('exactly'))")
    expect(coin(opened)).to_contain_text(re.compile("on .* which has the stretch"))


def test_word_by_word_the_choice_stands_open(visit: Visit, site: Site, stories: tuple[Engine, ModelFile]) -> None:
    page = visit.page
    visit.open(site)
    page.get_by_role("radio", name="a word").check()
    visit.set(**HOW, length=80)
    press(visit, "Look inside")
    expect(panel(visit)).to_be_visible()  # it is loaded
    visit.prompt.fill(PROMPT)
    visit.prompt.press("Enter")
    expected = told(stories, length=80)
    tokens = [step.token for step in expected]
    following = panel(visit).get_by_role("button", name="Next word")

    def shown(steps: list[Step]) -> None:
        expect(visit.story).to_have_text(PROMPT + text_of(steps), use_inner_text=False)

    expect(following).to_be_visible()
    shown([])
    expect(walker(visit)).to_have_value("0")
    assert_shows(visit, choices_of(expected)[0])
    expect(candidates(visit).filter(has_text="comes next")).to_have_count(1)
    walker(visit).focus()
    page.keyboard.press("Space")  # what the dice say
    words = [at for at, step in enumerate(expected) if at > 0 and step.text.startswith((" ", "\n"))]
    shown(expected[: words[0]])
    page.keyboard.press("Space")
    shown(expected[: words[1]])
    following.click()
    shown(expected[: words[2]])

    place = words[2]
    assert_shows(visit, choices_of(expected)[place])
    one = [id for id, _, _ in choices_of(expected)[place].candidates if id != tokens[place]][1]
    page.keyboard.press("ArrowDown")
    while candidate(visit, one).evaluate("(button) => button !== document.activeElement"):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    branched = told(stories, length=80, forced=[*tokens[:place], one])
    ends = [at for at in range(place + 1, len(branched)) if branched[at].text.startswith((" ", "\n"))]
    shown(branched[: ends[0]])
    expect(page.locator("#branches")).to_be_hidden()
    walker(visit).fill(str(place))
    expect(coin(visit)).to_contain_text("was put in its place")
    walker(visit).fill(str(ends[0]))
    assert_shows(visit, choices_of(branched)[ends[0]])
    button = candidates(visit).get_by_role("button").last
    other = int(button.get_attribute("data-token") or "")
    button.click()  # by pointer
    taken = [step.token for step in branched[: ends[0]]] + [other]
    again = told(stories, length=80, forced=taken)
    ends = [at for at in range(len(taken), len(again)) if again[at].text.startswith((" ", "\n"))]
    shown(again[: ends[0]])
    page.keyboard.press("Escape")
    expect(visit.tell_button).to_be_visible()
    press(visit, "Close")
    visit.prompt.press("Enter")
    shown(expected[: words[0]])  # nobody looks: the first word waits for nobody


# ---- Inside the model, and the tokenizer -----------------------------------------------------------------------------


def test_attention_the_lens_and_the_tokens_of_the_prompt(
    opened: Visit, stories: tuple[Engine, ModelFile], first: list[Choice]
) -> None:
    page = opened.page
    engine, file = stories
    walker(opened).fill("9")
    page.get_by_role("tab", name="Choice").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Inside")).to_be_focused()
    tokens = file.tokenizer.encode(PROMPT) + [choice.token for choice in first[:9]]
    engine.rewind(0)
    engine.prefill(tokens)
    inside = engine.probe(tokens[-1], len(tokens) - 1)
    layers = panel(opened).locator(".look-lens tr")
    expect(layers).to_have_count(len(inside.lens))
    for best, row in zip(inside.lens, layers.all(), strict=True):
        assert row.locator("td small").all_text_contents() == [percent(probability) for _, _, probability in best]
    attention = inside.attention.tolist()
    cells = panel(opened).get_by_role("gridcell")
    expect(cells).to_have_count(1 + len(attention) * len(attention[0]))  # type: ignore[arg-type]
    cell = panel(opened).get_by_role("gridcell", name=re.compile("^Layer 2, head 1:"))
    cell.click()
    weights: list[float] = attention[1][0]  # type: ignore[index]
    expect(cell).to_have_accessible_name(re.compile(re.escape(percent(max(weights))) + "$"))
    strip = panel(opened).get_by_role("group", name="The text so far").locator("> span")
    shares = strip.evaluate_all("(spans) => spans.map(({ title }) => title)")
    assert shares == [percent(weight) for weight in weights]
    page.keyboard.press("ArrowRight")
    expect(panel(opened).get_by_role("heading", name="Where layer 2, head 2 looks")).to_be_visible()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(panel(opened).get_by_role("heading", name="Where it looks, all heads together")).to_be_visible()

    tab(opened, "Tokens")
    opened.prompt.fill("")
    opened.prompt.press_sequentially("The zebras €")
    words = panel(opened).get_by_role("group", name="Your prompt’s tokens").get_by_role("button")
    expected = list(file.tokenizer.words("The zebras €"))
    expect(words).to_have_count(len(expected))
    assert sum(len(word.ids) for word in expected) == len(file.tokenizer.encode("The zebras €"))
    words.last.press("Enter")
    rows = panel(opened).locator(".look-word tbody tr")
    expect(rows).to_have_count(len(expected[-1].ids))
    expect(rows.last).to_contain_text("⟨AC⟩ part of a character")
    expect(rows.last.locator("td").first).to_have_text(str(expected[-1].ids[-1]))
    at = next(number for number, word in enumerate(expected) if "zeb" in word.text)
    words.nth(at).click()
    expect(panel(opened).locator(".look-merges li")).to_have_count(len(expected[at].steps))
    assert panel(opened).locator(".look-merges li").last.locator("span").all_text_contents() == [
        part.replace("▁", "␣") for part in expected[at].steps[-1]
    ]


def test_before_a_story_from_nothing_stands_what_begins_every_text(visit: Visit, site: Site) -> None:
    visit.open(site)
    visit.tell("", **HOW, length=LENGTH)
    press(visit, "Look inside")
    expect(candidates(visit).first).to_be_visible()
    tab(visit, "Inside")
    strip = panel(visit).get_by_role("group", name="The text so far").locator("> span")
    expect(strip).to_have_count(1)
    walker(visit).fill("2")
    expect(strip).to_have_count(3)
    walker(visit).fill("0")
    expect(strip).to_have_count(1)
    assert len(sent(visit, "tell")) == 2, "the story, and once more to look"


def test_the_tour_is_about_the_visitors_own_prompt(visit: Visit, site: Site) -> None:
    page = visit.page
    visit.open(site)
    visit.setting("Length").fill("30")
    page.set_viewport_size({"width": 375, "height": 760})  # where there is least room
    press(visit, "Look inside")
    expect(candidates(visit).first).to_be_visible()
    assert word_bottom(visit) <= boxes(visit, ".look")[0][2], "the token in view is brought into sight"
    begin = panel(visit).get_by_role("button", name="How does it pick a word?")
    tour = panel(visit).locator(".look-tour")
    begin.focus()
    page.keyboard.press("Enter")
    titles = ["A text", "Tokens", "Numbers", "Attention", "Probabilities", "Dice", "And again"]
    points = [None, "look-words", "look-word", "look-strip", "look-bars", "look-coin", "look-walk"]
    tabs = ["Tokens", "Tokens", "Tokens", "Inside", "Choice", "Choice", "Choice"]
    page.evaluate(AXE.read_text())
    for number, (title, point, name) in enumerate(zip(titles, points, tabs, strict=True), 1):
        expect(tour.get_by_role("heading")).to_have_text(f"{number} of 7: {title}")
        expect(tour.get_by_role("heading")).to_be_focused()
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
        if point:
            expect(panel(visit).locator(".look-pointed")).to_have_count(1)
            expect(panel(visit).locator(f".{point}.look-pointed")).to_be_in_viewport()
            top, part = boxes(visit, ".look-top", f".{point}")
            assert part[2] >= top[2] + top[4] - 1, "what is spoken of is below the words"
        if number == 2:
            expect(tour).to_contain_text("4,096")
            visit.prompt.fill("My own zebra")
            expect(panel(visit).locator(".look-words")).to_contain_text("My")
            visit.tell("My own zebra")
            assert serious(visit) == []
        if number == 4:
            expect(panel(visit).get_by_role("group", name="The text so far")).to_have_text(re.compile("My own zebra$"))
            tour.get_by_role("button", name="Leave").press("Enter")
            expect(tour).to_be_hidden()
            expect(begin).to_be_focused()
            press(visit, "Close")
            press(visit, "Look inside")
            page.get_by_role("button", name="How does it pick a word?").press("Enter")  # it goes on where it was
            expect(tour.get_by_role("heading")).to_have_text("4 of 7: Attention")
        if number == 5:
            expect(panel(visit).locator(".look-context")).to_have_text(re.compile("after My own zebra$"))
            assert_shows(visit, heard(visit)[0])
        tour.get_by_role("button", name=re.compile("Next|Done")).press("Enter")
    expect(tour).to_be_hidden()
    begin.click()
    expect(tour.get_by_role("heading")).to_have_text("1 of 7: A text")


# ---- Who else decides ------------------------------------------------------------------------------------------------


def test_where_the_visitors_code_chose_it_says_so(opened: Visit, first: list[Choice]) -> None:
    page = opened.page
    press(opened, "Close")
    press(opened, "Change the code that chooses")
    editor = page.get_by_role("textbox", name="Code", exact=True)
    editor.focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.press("Delete")
    page.keyboard.insert_text("def choose(logits):\n    return logits.shortlist(2)[len(logits.tokens) % 2][0]\n")
    press(opened, "Look inside")
    expect(panel(opened)).to_be_visible()
    done = len(opened.received("done"))
    editor.press("ControlOrMeta+Enter")
    page.wait_for_function("(n) => notebook.received.filter(({ type }) => type === 'done').length > n", arg=done)
    expect(opened.tell_button).to_be_visible()
    walker(opened).fill("4")
    expect(coin(opened)).to_have_text(re.compile("^Your code chose .*\\.$"))
    choice = heard(opened)[4]
    assert (choice.coin, [step.name for step in choice.steps]) == (None, ["code"])
    assert_shows(opened, choice)
    other = next(id for id, _, _ in choice.candidates if id != choice.token)
    candidate(opened, other).click()
    expect(coin(opened)).to_contain_text("was put in its place")
    expect(coin(opened)).to_contain_text("Your code chose")
    expect(opened.tell_button).to_be_visible()

    # Told again so that one can look: by the sampler, and nobody knows any more what the code had chosen.
    page.reload()
    opened.awake()
    press(opened, "Look inside")
    expect(candidates(opened).first).to_be_visible()
    expect(coin(opened)).to_have_text(re.compile("^Your code had a hand in this text"))
    tokens = [step["token"] for step in opened.steps() if not step["from_prompt"]]
    assert [(message["forced"], message["plainly"]) for message in sent(opened, "tell")] == [(tokens, True)]
    for _ in range(2):
        page.get_by_role("button", name="The telling before").click()
    expect(page.locator("#branch")).to_have_text("1/3")
    assert_shows(opened, first[0])


def test_a_link_with_choices_and_what_code_did_not_choose(
    visit: Visit, site: Site, stories: tuple[Engine, ModelFile], first: list[Choice], shipped_model: Path
) -> None:
    page = visit.page
    visit.open(site)
    model = page.evaluate("JSON.parse(document.querySelector('#assets').text).model.id")
    other = first[6].candidates[3][0]
    page.goto(f"{site.url}#m={model[:12]}&p={PROMPT.replace(' ', '+')}&s=7&t=1&tp=0.9&mp=0&rp=1&n={LENGTH}&c=6.{other}")
    expected = told(stories, forced=[*[None] * 6, other])
    expect(visit.story).to_have_text(PROMPT + text_of(expected), use_inner_text=False)
    expect(visit.tell_button).to_be_visible()
    press(visit, "Look inside")
    assert_shows(visit, choices_of(expected)[0])
    walker(visit).fill("6")
    assert_shows(visit, choices_of(expected)[6])
    expect(coin(visit)).to_contain_text("was put in its place")
    walker(visit).fill("7")
    assert_shows(visit, choices_of(expected)[7])
    candidates(visit).get_by_role("button").first.click()
    expect(page.locator("#branch")).to_have_text("2/2")
    expect(page).to_have_url(re.compile(f"&c=6[.]{other}_7[.]"))  # the address has both


def test_another_model_says_nothing_of_a_story_that_is_not_its_own(opened: Visit, site: Site, tmp_path: Path) -> None:
    """Its worker is another, and fetches anew what it needs."""
    page = opened.page
    tab(opened, "Tokens")
    opened.prompt.fill("w1 w2")
    pieces = panel(opened).locator(".look-words button").last.locator("> span")
    expect(pieces).to_have_text(["␣w", "2"])
    small = write_random_model(tmp_path / "small.gguf", SMALL)
    drop(opened, ("small.gguf", small.read_bytes()))
    page.get_by_role("tabpanel").get_by_role("button", name="load").last.click()
    page.wait_for_function("() => notebook.received.filter(({ type }) => type === 'ready').length === 2")
    opened.becomes("ready")
    expect(pieces).to_have_text(["␣", "w", "2"])
    tab(opened, "Choice")
    expect(opened.story).to_contain_text(PROMPT)
    expect(head(opened)).to_have_text("Another model wrote this: open that to look inside.")
    tab(opened, "Inside")
    expect(head(opened)).to_have_text("Another model wrote this: open that to look inside.")
    opened.prompt.fill("w1 w2 w3")
    opened.tell_button.click()
    tab(opened, "Choice")
    how = sent(opened, "tell")[-1]["settings"]
    expected = told(load(small), "w1 w2 w3", how["length"], temperature=how["temperature"], top_p=how["top_p"])
    expect(opened.story).to_have_text("w1 w2 w3" + text_of(expected), use_inner_text=False)
    assert_shows(opened, choices_of(expected)[0])
    assert len([url for url in site.requests if "further" in url]) >= 2


# ---- Conversations ---------------------------------------------------------------------------------------------------


def test_answers_are_looked_into_as_stories_are(visit: Visit, chat_site: Site, deep_model: Path) -> None:
    page = visit.page
    visit.open(chat_site)
    engine, file = load(deep_model)
    there = Conversation(Session(engine), file.tokenizer, template_of(file))
    settings, ending = Settings(temperature=0.9, top_p=0.9, seed=7), Ending(12, look=True)
    visit.set(temperature=0.9, top_p=0.9, seed=7, length=12, repetition_penalty=1)
    press(visit, "Look inside")
    expect(panel(visit)).to_be_visible()
    box = page.get_by_role("textbox", name="You", exact=True)
    answers: list[list[Choice]] = []
    for text in ("w1 w2", "w3"):
        box.fill(text)
        box.press("Enter")
        visit.becomes("ready")
        answers.append([step.choice for step in there.say(text, settings, ending) if step.choice])
        assert heard(visit) == answers[-1]
    assert_shows(visit, answers[1][0])
    said = page.locator("#chat article .said").nth(1)
    said.locator("p").first.click(position={"x": 8, "y": 12})
    expect(walker(visit)).to_have_value("0")
    assert_shows(visit, answers[0][0])
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    assert_shows(visit, answers[0][1])

    # All of a deep model's heads are seen.
    tab(visit, "Inside")
    grid = panel(visit).get_by_role("grid", name="All heads")
    expect(grid.get_by_role("gridcell")).to_have_count(1 + DEEP.n_layers * DEEP.n_heads)
    for width in (1200, 375):
        page.set_viewport_size({"width": width, "height": 900 if width > 375 else 800})
        assert grid.evaluate("(grid) => grid.scrollWidth <= grid.clientWidth"), width
        assert grid.evaluate("(grid) => grid.offsetHeight") < 600, width
    tokens = file.tokenizer.encode("w1 w2")
    tab(visit, "Tokens")
    expect(panel(visit).locator(".look-words button")).not_to_have_count(0)
    assert len(tokens) > 1
    tab(visit, "Choice")

    other = next(id for id, _, _ in answers[0][1].candidates if id != answers[0][1].token)
    candidate(visit, other).click()
    visit.becomes("ready")
    expect(page.locator("#chat article").last).to_contain_text("2/2")
    there.load(there.messages[:2])
    steps = list(there.go_on(settings, ending, [answers[0][0].token], [other]))
    assert heard(visit) == [step.choice for step in steps if step.choice]
    expect(coin(visit)).to_contain_text("was put in its place")
    panel(visit).get_by_role("button", name="The way before").click()
    expect(page.locator("#chat article")).to_have_count(4)


def test_what_is_told_between_two_frames_is_known(visit: Visit, chat_site: Site) -> None:
    page = visit.page
    visit.open(chat_site)
    visit.set(length=12)
    press(visit, "Look inside")
    expect(panel(visit)).to_be_visible()
    page.evaluate("""() => {
      const { requestAnimationFrame } = window;
      const waiting = [];
      window.requestAnimationFrame = (callback) => waiting.push(callback);
      window.draw = () => waiting.map((callback) => requestAnimationFrame(callback));
    }""")
    box = page.get_by_role("textbox", name="You", exact=True)
    box.fill("w1 w2")
    box.press("Enter")
    visit.becomes("ready")
    page.evaluate("draw()")
    assert_shows(visit, heard(visit)[0])
    assert len(sent(visit, "say")) == 1, "it was not told again to be looked into"


# ---- The page around it ----------------------------------------------------------------------------------------------

BOXES = """(names) => names.map((name) => {
  const { x, y, width, height } = document.querySelector(name).getBoundingClientRect();
  return [name, x, y, width, height];
})"""


def boxes(visit: Visit, *names: str) -> Any:
    return visit.page.evaluate(BOXES, list(names))


def word_bottom(visit: Visit) -> float:
    """Where the token in view ends in the window."""
    bottom: float = visit.page.evaluate("[...CSS.highlights.get('look-word')][0].getBoundingClientRect().bottom")
    return bottom


def serious(visit: Visit, within: str = ".look") -> list[str]:
    found = visit.page.evaluate("(within) => axe.run(within)", within)["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]


def test_nothing_moves_when_it_is_opened_and_closed(visit: Visit, site: Site) -> None:
    page = visit.page
    visit.open(site)
    page.set_viewport_size({"width": 1280, "height": 800})
    visit.tell(PROMPT, temperature=1, seed=2, repetition_penalty=1, length=400)
    settings = ("#margin > fieldset", "#temperature", "#model-title", "#model", "footer")
    page.evaluate("scrollTo(0, 0)")
    text = ("h1", ".tools", "#prompt", "#tell", "#story", "#story p:last-child")
    before = boxes(visit, *settings, *text)
    opener = page.get_by_role("button", name="Look inside")
    opener.press("Enter")
    expect(candidates(visit).first).to_be_visible()
    assert boxes(visit, *text) == before[len(settings) :], "the text stays where it is"
    expect(visit.setting("Seed")).to_be_hidden()
    (_, x, y, width, height), *_ = boxes(visit, ".look")
    assert width >= 330
    assert x + width <= 1280
    assert y + height <= 800 + 1, "all of the panel is in the window"
    assert boxes(visit, ".look-bar .look-before")[0][3] >= 300, "the likeliest one's bar has room"
    page.keyboard.press("ArrowRight")
    page.locator(".look summary").focus()
    page.keyboard.press("Escape")
    expect(panel(visit)).to_be_hidden()
    expect(opener).to_be_focused()
    assert boxes(visit, *settings, *text) == before, "and all is as before"
    assert page.evaluate("[...CSS.highlights.values()].every(({ size }) => size === 0)")

    # Scrolled down it fills the window's height, and follows the token in view.
    page.set_viewport_size({"width": 1000, "height": 600})
    before = boxes(visit, *text)
    opener.evaluate("(button) => button.click()")
    panel(visit).get_by_text("Step by step").evaluate("(summary) => summary.click()")
    expect(panel(visit).get_by_role("table")).to_be_visible()
    assert [size[1:2] + size[3:] for size in boxes(visit, *text)] == [size[1:2] + size[3:] for size in before]
    page.evaluate("scrollTo(0, 900)")
    page.wait_for_function("() => document.querySelector('.look').offsetHeight === innerHeight")
    assert boxes(visit, ".look")[0][2] == 0
    page.keyboard.press("End")  # the token that ends the text, which has none of it
    page.keyboard.press("ArrowLeft")
    expect(walker(visit)).not_to_have_value("0")
    assert 0 < word_bottom(visit) <= 600


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_it_is_accessible_and_fits(opened: Visit, shoot: Shoot, width: int, scheme: Any) -> None:
    page = opened.page
    page.set_viewport_size({"width": width, "height": 900 if width > 375 else 800})
    page.emulate_media(color_scheme=scheme)
    walker(opened).fill("8")
    page.get_by_label("Tint the text by probability").check()
    panel(opened).get_by_text("Step by step").click()
    page.evaluate(AXE.read_text())
    seen = {"Choice": ".look-bars li", "Inside": ".look-lens tr", "Tokens": ".look-words button"}
    for name, what in seen.items():
        tab(opened, name)
        expect(panel(opened).locator(what).first).to_be_visible()
        shoot(page, f"look-{width}-{scheme}-{name}")
        assert serious(opened, "html" if name == "Choice" else ".look") == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for part in (".look", ".look .wide", ".look-grid"):
            assert page.evaluate("(name) => (({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)"
                                 "(document.querySelector(name))", part), (name, part)  # fmt: skip
    tab(opened, "Choice")
    walker(opened).press("ArrowRight")
    assert word_bottom(opened) <= boxes(opened, ".look")[0][2] or width > 375, "the token in view is not covered"


def test_in_forced_colours_all_is_told_apart(opened: Visit, shoot: Shoot) -> None:
    page = opened.page
    page.emulate_media(forced_colors="active")
    page.get_by_label("Tint the text by probability").check()
    background = "(part) => getComputedStyle(part).backgroundColor"
    row = candidates(opened).first
    colours = [row.locator(part).evaluate(background) for part in (".look-before", ".look-after")]
    assert colours[0] != colours[1]
    lines = "(name) => getComputedStyle(document.querySelector(name)).textDecorationStyle"
    assert len({page.evaluate(lines, f".look-legend .look-below-{number}") for number in (50, 20, 5)}) == 3
    shoot(page, "look-forced-Choice")
    tab(opened, "Inside")
    strip = panel(opened).get_by_role("group", name="The text so far").locator("> span")
    expect(strip.first).to_be_visible()
    assert len(set(strip.evaluate_all(f"(parts) => parts.map({background})"))) > 1
    adjust = "(parts) => parts.map((part) => getComputedStyle(part).forcedColorAdjust)"
    assert set(strip.evaluate_all(adjust)) == {"none"}, "the browser leaves them as they are"
    shoot(page, "look-forced-Inside")
    tab(opened, "Tokens")
    expect(panel(opened).locator(".look-words button").first).to_be_visible()
    shoot(page, "look-forced-Tokens")


def test_what_is_loaded_for_it_is_small(site: Site) -> None:
    parts = [*(site.folder / "assets").glob("look-*.js.br"), *(site.folder / "assets").glob("python-further-*.zip")]
    assert len(parts) == 2
    assert sum(part.stat().st_size for part in parts) <= 150_000
