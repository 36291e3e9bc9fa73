"""Texts that begin to loop are stopped, and others are not; a story that was cut goes on as if it had not been."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabella import page
from fabella.chat import Conversation
from fabella.errors import PromptError, SettingsError
from fabella.generate import Ending, Step, generate
from fabella.hosts import WasmtimeHost
from fabella.loops import EVERY, FEWEST, LONGEST, TIMES, Loops
from fabella.modelfile import Config
from fabella.sampler import Settings
from fabella.session import Session
from fabella.sources import BytesSource
from fabella.template import ChatTemplate

from .random_models import load, write_random_model

SHIPPED = Path(__file__).resolve().parent.parent / "web/models/stories.gguf"
CONFIG = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, seq_len=200)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG)


# ---- Loops -----------------------------------------------------------------------------------------------------------


def found_at(tokens: list[int]) -> int | None:
    """After how many tokens a loop is seen."""
    loops = Loops()
    return next((count for count, token in enumerate(tokens, 1) if loops.push(token)), None)


@given(before=st.lists(st.integers(0, 9), max_size=40), sequence=st.lists(st.integers(10, 40), min_size=1, max_size=40))
def test_what_is_said_again_and_again_is_a_loop(before: list[int], sequence: list[int]) -> None:
    """Once it is long enough, and at the latest when it is looked at next."""
    at = found_at(before + sequence * 100)
    periods = [n for n in range(1, len(sequence) + 1) if sequence * 2 == (sequence[:n] * 100)[: 2 * len(sequence)]]
    if periods[0] > LONGEST:
        assert at is None
    else:
        enough = len(before) + max(FEWEST, TIMES * periods[0])
        assert at is not None
        assert enough <= at < enough + EVERY


@given(st.lists(st.integers(0, 3), max_size=300))
def test_only_what_is_said_again_and_again_is_a_loop(tokens: list[int]) -> None:
    at = found_at(tokens)
    if at is not None:
        ends = ((n, tokens[at - max(FEWEST, TIMES * n) : at]) for n in range(1, LONGEST + 1) if at >= TIMES * n)
        assert any(end == (end[:n] * FEWEST)[: len(end)] for n, end in ends)


def test_songs_and_lists_are_no_loops() -> None:
    row = [1, 2, 1, 2, 1, 3, 4, 5, 2]  # row, row, row your boat,
    gently, merrily, life = [6, 7, 8, 9], [10, 2] * 4, [11, 12, 13, 14, 15]
    verse = row + gently + merrily + life
    assert found_at(verse * 3) is None
    assert found_at([1, 2] * 20 + [3] + [1, 2] * 20) is None
    numbers = itertools.chain.from_iterable((7, digit, 8, 9) for digit in range(20, 60))
    assert found_at(list(numbers)) is None


def test_whoever_goes_on_with_a_loop_is_not_stopped_at_once() -> None:
    looped = [5, 6] * (FEWEST // 2)
    assert found_at(looped) == FEWEST
    loops = Loops(looped)
    assert [loops.push(token) for token in looped] == [False] * (FEWEST - 1) + [True]


def told(path: Path, prompt: str, ending: Ending, **settings: Any) -> list[Step]:
    engine, file = load(path)
    return list(generate(engine, file.tokenizer, prompt, Settings(**settings), ending=ending))


@pytest.mark.parametrize("prompt", ["la la la la", "aaaa"])
def test_the_shipped_model_s_loops_are_stopped(prompt: str) -> None:
    ends = []
    for seed in range(1, 17):
        without = told(SHIPPED, prompt, Ending(), temperature=0.8, seed=seed)
        if without[-1].end != "context":
            continue
        steps = told(SHIPPED, prompt, Ending(loops=True), temperature=0.8, seed=seed)
        ends.append(steps[-1].end)
        assert [step.token for step in steps] == [step.token for step in without][: len(steps)]
        assert (len(steps) < len(without)) == (ends[-1] == "loop")
    assert ends.count("loop") >= 2, "another prompt makes it loop, perhaps"
    assert ends.count("loop") > len(ends) / 2


@pytest.mark.parametrize("prompt", ["Once upon a time", "Row, row, row your boat, gently down the stream", "The clock"])
def test_the_shipped_model_s_stories_are_not(prompt: str) -> None:
    ends = {told(SHIPPED, prompt, Ending(loops=True), temperature=0.8, seed=seed)[-1].end for seed in (1, 2, 3)}
    assert "loop" not in ends


def test_whether_loops_end_a_text_is_yes_or_no() -> None:
    with pytest.raises(SettingsError):
        Ending(loops="yes")  # type: ignore[arg-type]


# ---- Going on --------------------------------------------------------------------------------------------------------


def tokens_of(steps: list[Step]) -> list[int]:
    return [step.token for step in steps if not step.from_prompt]


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"temperature": 0}, {}),
        ({"temperature": 0, "repetition_penalty": 1.3}, {}),
        ({"temperature": 0.8}, {}),
        ({"temperature": 1.2, "top_p": 1.0}, {}),
        ({"temperature": 1.0, "top_k": 40, "min_p": 0.02, "typical_p": 0.9}, {}),
        ({"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2, "penalty_window": 20}, {}),
        ({"temperature": 1.0}, {"loops": True}),
        ({"temperature": 1.0}, {"stop": ("w1 w", "zzz")}),
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_story_that_was_cut_goes_on_as_if_it_had_not_been(
    model: Path, settings: dict[str, Any], more: dict[str, Any], fresh: bool
) -> None:
    """To the token and the letter, in the same session and, as after a reload, in another one."""
    how = Settings(**{"seed": 11, **settings})
    engine, file = load(model)
    session = Session(engine)

    def story(length: int, so_far: list[int]) -> list[Step]:
        return list(generate(session, file.tokenizer, "w3 w4", how, ending=Ending(length, **more), told=so_far))

    whole, begun = story(120, []), story(40, [])
    if fresh:
        session = Session(load(model)[0])
    going_on = story(120, tokens_of(begun))
    assert tokens_of(begun) + tokens_of(going_on) == tokens_of(whole)
    assert going_on[-1].end == whole[-1].end
    assert "".join(step.text for step in begun + going_on) == "".join(step.text for step in whole)
    assert all(step.text == "" for step in going_on if step.from_prompt)


def test_a_loop_is_seen_by_whoever_goes_on() -> None:
    engine, file = load(SHIPPED)
    session, how = Session(engine), Settings(temperature=0.8, seed=5)
    whole = list(generate(session, file.tokenizer, "aaaa", how, ending=Ending(loops=True)))
    assert whole[-1].end == "loop"
    so_far: list[int] = []
    for length in range(30, 600, 37):
        ending = Ending(min(length, engine.context), loops=True)
        steps = list(generate(session, file.tokenizer, "aaaa", how, ending=ending, told=so_far))
        so_far += tokens_of(steps)
        if steps[-1].end != "length":
            break
    assert (so_far, steps[-1].end) == (tokens_of(whole), "loop")


def test_what_cannot_go_on_is_refused(model: Path) -> None:
    engine, file = load(model)

    def refused(told: Any, length: int = 0) -> str:
        with pytest.raises(PromptError) as caught:
            generate(engine, file.tokenizer, "w3", Settings(seed=1), length, told=told)
        return str(caught.value)

    assert "has come to its end" in refused([5, file.tokenizer.eos_id])
    assert "must be tokens" in refused([5, 400])
    assert "must be tokens" in refused([5, -1])
    assert "must be tokens" in refused(["5"])
    assert "tokens long, but the model's context is 200: it cannot go on" in refused([5] * 200)
    assert "the length asked for is 20: it cannot go on" in refused([5] * 30, 20)
    (last,) = [step for step in generate(engine, file.tokenizer, "", Settings(seed=1), told=[5] * 199) if step.end]
    assert last.end in ("context", "end")


# ---- The page --------------------------------------------------------------------------------------------------------


SETTINGS = {"temperature": 0.9, "top_p": 0.9, "top_k": 0, "seed": "3", "length": 0}


@pytest.fixture
def opened(model: Path, monkeypatch: pytest.MonkeyPatch) -> page.Page:
    """The page's side of the driver, under wasmtime."""
    monkeypatch.setattr(page, "BrowserHost", lambda _exports: WasmtimeHost())
    monkeypatch.setattr(page, "BrowserFile", BytesSource)
    return page.Page(None, model.read_bytes())


def advanced(opened: page.Page, **request: Any) -> dict[str, Any]:
    """All steps of a story, and how it ended."""
    settings = SETTINGS | request.pop("settings", {})
    opened.tell(json.dumps({"prompt": "w3 w4", "settings": settings} | request))
    steps: list[dict[str, Any]] = []
    while True:
        turn = json.loads(opened.advance(1000))
        steps += turn["steps"]
        if turn["end"]:
            return turn | {"steps": steps}


def test_the_page_goes_on_with_a_story(opened: page.Page) -> None:
    def sampled(story: dict[str, Any]) -> list[int]:
        return [step["token"] for step in story["steps"] if not step["from_prompt"]]

    whole = advanced(opened, settings={"length": 90})
    begun = advanced(opened, settings={"length": 30})
    going_on = advanced(opened, settings={"length": 90}, told=sampled(begun))
    assert sampled(begun) + sampled(going_on) == sampled(whole)
    for told in ("w1", [1.5], {"a": 1}, [True]):
        with pytest.raises(PromptError):
            opened.tell(json.dumps({"prompt": "", "told": told, "settings": SETTINGS}))


@pytest.mark.parametrize("seed", ["0", "01", "1" + "0" * 18, "-1", "1_0", 5])
def test_the_page_s_seeds_are_those_of_its_field(opened: page.Page, seed: Any) -> None:
    with pytest.raises(SettingsError):
        advanced(opened, settings={"seed": seed})
    assert advanced(opened, settings={"seed": "9" * 18, "length": 9})


def test_the_page_stops_at_loops_if_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "BrowserHost", lambda _exports: WasmtimeHost())
    monkeypatch.setattr(page, "BrowserFile", BytesSource)
    opened = page.Page(None, SHIPPED.read_bytes())
    how = {"temperature": 0.8, "seed": "5"}
    assert advanced(opened, prompt="aaaa", settings=how | {"loops": True})["end"] == "loop"
    assert advanced(opened, prompt="aaaa", settings=how)["end"] == "context"
    with pytest.raises(SettingsError):
        advanced(opened, settings={"loops": 1})


def test_a_prompt_s_tokens_are_counted_while_a_story_is_told(opened: page.Page, model: Path) -> None:
    _, file = load(model)

    def count(text: str) -> int:
        return opened.count(json.dumps({"prompt": text}))

    assert count("") == 1  # what every text begins with
    assert count("w3 w4") == len(file.tokenizer.encode("w3 w4"))
    assert count("x" * 1_000_000) > CONFIG.seq_len
    alone = advanced(opened)
    opened.tell(json.dumps({"prompt": "w3 w4", "settings": SETTINGS}))
    steps: list[dict[str, Any]] = []
    while True:
        turn = json.loads(opened.advance(0))
        steps += turn["steps"]
        assert count("w5") == len(file.tokenizer.encode("w5"))
        if turn["end"]:
            break
    assert steps == alone["steps"]
    with pytest.raises(PromptError):
        opened.count(json.dumps({"prompt": None}))


# ---- Conversations ---------------------------------------------------------------------------------------------------


def test_an_answer_that_begins_to_loop_is_stopped_and_can_go_on() -> None:
    engine, file = load(SHIPPED)
    template = ChatTemplate("{{ messages[-1].content }}", "", "", file.tokenizer.controls)
    conversation = Conversation(Session(engine), file.tokenizer, template)
    how = Settings(temperature=0.8, seed=4)
    steps = list(conversation.say("aaaa", how, Ending(loops=True)))
    assert (steps[-1].end, conversation.turns[-1].end) == ("loop", "loop")
    begun = conversation.turns[-1].text
    going_on = list(conversation.go_on(how, Ending(loops=True)))
    assert len(tokens_of(going_on)) >= FEWEST
    assert conversation.turns[-1].text.startswith(begun)
