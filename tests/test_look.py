"""The glass box: what is shown of a chosen token is what was computed, and another way is as if it had been drawn."""

from __future__ import annotations

import binascii
import html.parser
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fabella
from builder.tools import ROOT
from fabella import glass
from fabella import page as page_module
from fabella.again import again, again_from
from fabella.choice import Choice, look
from fabella.engine import Engine
from fabella.errors import ConstraintError, FabellaError, PromptError, SettingsError
from fabella.generate import Ending, generate
from fabella.hosts import WasmtimeHost
from fabella.live import Code
from fabella.look import Story
from fabella.modelfile import Config
from fabella.page import Page
from fabella.sampler import SHORTLIST, Sampler, Settings, Trace
from fabella.session import Session
from fabella.sources import BytesSource
from fabella.tokenizer import Tokenizer

from .random_models import load, write_random_model
from .test_chat import TEMPLATE

CONFIG = Config(dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, seq_len=200)
SETTINGS = Settings(temperature=0.9, top_p=0.95, seed=11)
LENGTH = 40
LOOKING = Ending(LENGTH, look=True)
Loaded = tuple[Engine, Tokenizer]


@pytest.fixture(scope="module")
def random_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG, template=TEMPLATE)


@pytest.fixture(scope="module", params=["random", "shipped"])
def loaded(request: pytest.FixtureRequest, random_path: Path, shipped_model: Path) -> Loaded:
    engine, file = load(random_path if request.param == "random" else shipped_model)
    return engine, file.tokenizer


@pytest.fixture(scope="module")
def engine(random_path: Path) -> Engine:
    engine, _ = load(random_path)
    engine.prefill([1, 5, 300, 301])
    return engine


# ---- A token's choice ------------------------------------------------------------------------------------------------


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


SEVERAL = [
    SETTINGS,
    Settings(1.0, 1.0, 0, 5),
    Settings(1.4, 1.0, 40, 5),
    Settings(0.7, 0.8, 5, 5, min_p=0.05),
    Settings(0.0, 0.9, 0, 5),
    Settings(1.1, 0.9, 0, 5, typical_p=0.8),
    Settings(0.9, 0.9, 0, 5, repetition_penalty=1.3, frequency_penalty=0.2),
    Settings(0.9, 1.0, 0, 5, presence_penalty=0.5, logit_bias={7: 3.0}),
]


@pytest.mark.parametrize("settings", SEVERAL, ids=str)
def test_a_choice_is_what_the_sampler_did(loaded: Loaded, settings: Settings) -> None:
    engine, tokenizer = loaded
    engine.rewind(0)
    said = tokenizer.encode("w1 w2 Once upon a time")
    logits = engine.prefill(said)
    looking, plain, traced = (Sampler(settings, (2,)) for _ in range(3))
    for _ in range(25):
        values = np.array(logits.to_array(), np.float64)
        truth = softmax(values)
        choice = look(looking, logits, said)
        assert choice.token == choice.picked == plain.sample(logits, said)
        traced.trace = Trace()
        traced.sample(logits, said)

        order = np.lexsort((np.arange(len(values)), -values))
        ids, raw, probabilities = zip(*choice.candidates, strict=True)
        assert list(ids[:SHORTLIST]) == order[:SHORTLIST].tolist()
        assert list(raw) == values[list(ids)].tolist(), "to the bit"
        assert probabilities == pytest.approx(truth[list(ids)], rel=1e-5)
        assert choice.others == pytest.approx(1 - truth[list(ids)].sum(), abs=1e-6)
        assert choice.probability == pytest.approx(truth[choice.token], rel=1e-5)
        assert choice.entropy == pytest.approx(-(truth * np.log(truth)).sum(), rel=1e-5, abs=1e-6)  # of many small ones

        assert [step.name for step in choice.steps] == [name for name, _ in traced.trace.steps]
        for step, (_, kept) in zip(choice.steps, traced.trace.steps, strict=True):
            assert step.kept[:SHORTLIST] == kept[:SHORTLIST], "to the bit"
            assert len(step.kept) <= SHORTLIST + 1
            assert step.total == (len(values) if step.name in ("penalties", "temperature") else len(kept))
        if settings.temperature == 0:
            assert choice.coin is None
        else:
            assert choice.coin is not None
            assert choice.begin <= choice.coin < choice.end + 1e-12
            last = dict((id, probability) for id, _, probability in choice.steps[-1].kept)
            if choice.picked in last:
                assert choice.end - choice.begin == pytest.approx(last[choice.picked], abs=1e-6)

        assert Choice.from_bytes(choice.to_bytes()) == choice
        said.append(choice.token)
        logits = engine.forward(choice.token)


def test_the_coin_lies_on_the_sum_over_all_tokens_where_none_is_taken_away(engine: Engine) -> None:
    """In the order of their numbers, as llama2.c draws."""
    sampler = Sampler(Settings(1.2, 1.0, 0, 3))
    sums = np.cumsum(softmax(np.array(engine.logits.to_array(), np.float64) / 1.2))
    for _ in range(50):
        choice = look(sampler, engine.logits)
        assert choice.end == pytest.approx(sums[choice.token], abs=1e-6)
        assert choice.begin == pytest.approx(sums[choice.token - 1] if choice.token else 0, abs=1e-6)


def test_the_penalised_draw_shows_the_penalised_sum(engine: Engine) -> None:
    sampler = Sampler(Settings(1.0, 1.0, 0, 3, logit_bias={7: 100.0}))
    choice = look(sampler, engine.logits)
    assert choice.token == 7
    assert [choice.begin, choice.end] == pytest.approx([0, 1], abs=1e-6)
    assert choice.steps[0].kept[0][2] == pytest.approx(1)
    assert choice.probability < 0.5, "the model itself held it for unlikely"


def test_a_constraint_is_a_step(engine: Engine) -> None:
    choice = look(Sampler(SETTINGS), engine.logits, allowed=lambda token: token % 2 == 1)
    assert choice.steps[-1].name == "constraint"
    assert all(id % 2 for id, _, _ in choice.steps[-1].kept)
    with pytest.raises(ConstraintError):
        look(Sampler(SETTINGS), engine.logits, allowed=lambda token: False)


def test_what_is_kept_is_bounded_and_has_the_taken_token(engine: Engine) -> None:
    """Also of a distribution so flat that hundreds of tokens are left."""
    sampler = Sampler(Settings(3.0, 0.99, 300, 3))
    for _ in range(30):
        choice = look(sampler, engine.logits)
        assert choice.token in [id for id, _, _ in choice.candidates]
        assert choice.token in [id for id, _, _ in choice.steps[-1].kept]
        assert choice.begin <= choice.coin < choice.end  # type: ignore[operator]
        assert len(choice.to_bytes()) <= 60 + 16 * (SHORTLIST + 2) * 5
    usual = look(Sampler(SETTINGS), engine.logits)
    assert len(usual.to_bytes()) < 1000


def test_bytes_of_another_kind(engine: Engine) -> None:
    right = look(Sampler(SETTINGS), engine.logits).to_bytes()
    for wrong in (b"", b"x" * 50, bytes(100), b"\xff" * 2000, right[:-1], right + b"\0"):
        with pytest.raises(FabellaError, match="not what was kept"):
            Choice.from_bytes(wrong)


def test_whoever_looks_is_told_the_same_story(loaded: Loaded) -> None:
    engine, tokenizer = loaded
    for settings in SEVERAL:
        plain = list(generate(engine, tokenizer, "w1 Once", settings, LENGTH))
        seen = list(generate(engine, tokenizer, "w1 Once", settings, ending=LOOKING))
        assert [step._replace(choice=None) for step in seen] == plain
        sampled = [step for step in seen if not step.from_prompt]
        assert all(step.choice and step.choice.token == step.token for step in sampled)
        assert not any(step.choice for step in seen if step.from_prompt)
        begun = len(tokenizer.encode("w1 Once"))
        assert [step.choice.position for step in sampled if step.choice] == list(range(begun, begun + len(sampled)))


def test_look_is_true_or_false() -> None:
    with pytest.raises(SettingsError, match="look"):
        Ending(look=1)  # type: ignore[arg-type]


# ---- Another way -----------------------------------------------------------------------------------------------------


class Counted:
    """An engine that counts what it computes."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.context, self.computed = engine, engine.context, 0

    @property
    def position(self) -> int:
        return self.engine.position

    def prefill(self, tokens: Sequence[int]) -> Any:
        self.computed += len(tokens)
        return self.engine.prefill(tokens)

    def forward(self, token: int) -> Any:
        self.computed += 1
        return self.engine.forward(token)

    def rewind(self, position: int) -> None:
        self.engine.rewind(position)


@pytest.mark.parametrize("settings", [SETTINGS, Settings(0.0), Settings(1.2, 1.0, 0, 4)], ids=str)
def test_another_way_is_as_if_it_had_been_drawn(loaded: Loaded, settings: Settings) -> None:
    """The same steps, to the bit, as in a fresh run with that token forced; and nothing before it is computed again."""
    engine, tokenizer = loaded
    prompt, counted = "w1 Once", Counted(engine)
    session = Session(counted)
    story = [s for s in generate(session, tokenizer, prompt, settings, ending=LOOKING) if not s.from_prompt]
    tokens = [step.token for step in story]
    for at in (0, 7, len(tokens) - 3):
        choice = story[at].choice
        assert choice
        other = next(id for id, _, _ in choice.candidates if id != choice.token and id not in tokenizer.stop_ids)
        counted.computed = 0
        steps = generate(session, tokenizer, prompt, settings, ending=LOOKING, told=tokens[:at], forced=[other])
        first = next(step for step in steps if not step.from_prompt)
        assert counted.computed == 1, "the token before, for its logits"
        assert first.choice == choice._replace(token=other)
        assert first.choice.is_given
        branch = [first, *(step for step in steps if not step.from_prompt)]
        fresh = generate(Session(engine), tokenizer, prompt, settings, ending=LOOKING, forced=[*tokens[:at], other])
        sampled = [step for step in fresh if not step.from_prompt]
        assert [step[:5] for step in sampled[:at]] == [step[:5] for step in story[:at]]
        assert sampled[at:] == branch
        told = [*tokens[:at], other]
        gone_on = list(generate(session, tokenizer, prompt, settings, ending=LOOKING, told=told))
        assert [step for step in gone_on if not step.from_prompt] == branch[1:]
        session = Session(counted)
        again_told = [s for s in generate(session, tokenizer, prompt, settings, ending=LOOKING) if not s.from_prompt]
        assert again_told == story, "the first way is not lost"


def test_the_drawn_token_forced_changes_nothing(loaded: Loaded) -> None:
    engine, tokenizer = loaded
    story = list(generate(engine, tokenizer, "w1", SETTINGS, ending=LOOKING))
    tokens = [step.token for step in story if not step.from_prompt]
    assert list(generate(engine, tokenizer, "w1", SETTINGS, ending=LOOKING, forced=tokens)) == story


def test_words_of_ones_own(loaded: Loaded) -> None:
    engine, tokenizer = loaded
    typed = tokenizer.encode_on(" a dragon")
    story = "".join(step.text for step in generate(engine, tokenizer, "Once", SETTINGS, 40, forced=typed))
    assert story.startswith("Once a dragon")
    assert tokenizer.encode_on("") == []
    typed = tokenizer.encode_on("let")
    assert "".join(s.text for s in generate(engine, tokenizer, "A book", SETTINGS, 40, forced=typed))[:9] == "A booklet"


def test_a_branch_that_ends(loaded: Loaded) -> None:
    engine, tokenizer = loaded
    *_, last = generate(engine, tokenizer, "w1", SETTINGS, ending=LOOKING, forced=[tokenizer.eos_id])
    assert last.end == "end"
    assert last.choice
    assert last.choice.token == tokenizer.eos_id


@pytest.mark.parametrize(
    ("forced", "said"),
    [([-1], "tokens of the model's"), ([400], "from 0 to 399"), ([2, 5], "after the token that ends")],
)
def test_tokens_that_cannot_be_taken(random_path: Path, forced: list[int], said: str) -> None:
    engine, file = load(random_path)
    with pytest.raises(PromptError, match=said):
        generate(engine, file.tokenizer, "w1", SETTINGS, forced=forced)


# ---- Sliders that answer ---------------------------------------------------------------------------------------------

OTHERS = [
    Settings(temperature, top_p, top_k, 5, min_p=min_p)
    for temperature in (0.2, 0.6, 1.0, 1.3, 2.0)
    for top_p, top_k, min_p in (
        (1.0, 0, 0.0),
        (0.5, 0, 0.0),
        (0.9, 0, 0.0),
        (1.0, 5, 0.0),
        (1.0, 40, 0.0),
        (1.0, 0, 0.1),
    )
]


def test_other_settings_from_what_was_kept_are_those_from_the_logits_wherever_they_say_so(loaded: Loaded) -> None:
    engine, tokenizer = loaded
    told = list(generate(engine, tokenizer, "w1 Once", Settings(0.8, 0.9, 0, 3), ending=LOOKING))
    choices = [step.choice for step in told if step.choice]
    session = Session(engine)
    list(session.read([*tokenizer.encode("w1 Once"), *(choice.token for choice in choices)]))
    certain: Counter[bool] = Counter()
    for choice in choices[::4]:
        logits = session.visit(choice.position - 1)
        for settings in OTHERS:
            exactly = again(logits, settings, choice.coin)  # type: ignore[arg-type]
            assert all(exactly.exact)
            roughly = again_from(choice, settings, len(tokenizer), engine.exp, engine.log)
            assert [step.name for step in roughly.choice.steps] == [step.name for step in exactly.choice.steps]
            for step, known, is_exact in zip(exactly.choice.steps, roughly.choice.steps, roughly.exact, strict=True):
                certain[is_exact] += 1
                if is_exact:
                    assert known.total == step.total
                    assert [id for id, _, _ in known.kept] == [id for id, _, _ in step.kept]
                    assert [p for _, _, p in known.kept] == pytest.approx([p for _, _, p in step.kept], abs=3e-6)
            if roughly.choice.token >= 0 and abs(exactly.choice.end - choice.coin) > 1e-5:  # type: ignore[operator]
                assert roughly.choice.token == exactly.choice.token
        assert again_from(choice, Settings(0.0), len(tokenizer), engine.exp, engine.log).choice.token == (
            again(logits, Settings(0.0), None).choice.token  # type: ignore[arg-type]
        )
    assert certain[True] > 50, "often it suffices"


def test_the_settings_that_chose_it_make_the_same_of_it(loaded: Loaded) -> None:
    engine, tokenizer = loaded
    for settings in SEVERAL:
        told = list(generate(engine, tokenizer, "w1 Once", settings, ending=LOOKING))
        session = Session(engine)
        tokens = [*tokenizer.encode("w1 Once"), *(step.token for step in told if not step.from_prompt)]
        list(session.read(tokens))
        for choice in [step.choice for step in told if step.choice][::9]:
            logits = session.visit(choice.position - 1)
            said = tokens[: choice.position]
            same = again(logits, settings, choice.coin, said, spared=tokenizer.stop_ids)  # type: ignore[arg-type]
            assert same.choice == choice, "to the bit"


def test_penalties_stay_as_they_were_in_what_was_kept(engine: Engine) -> None:
    penalised = Settings(0.8, 0.9, 0, 3, repetition_penalty=1.5)
    choice = look(Sampler(penalised), engine.logits, [301, 302, 303, engine.logits.shortlist(1)[0][0]])
    same = again_from(choice, penalised, CONFIG.vocab_size, engine.exp, engine.log)
    assert same.choice.steps[0] == choice.steps[0]
    for settings in (penalised, Settings(0.8, 0.9)):
        steps = again_from(choice, settings, CONFIG.vocab_size, engine.exp, engine.log).choice.steps
        assert [step.name for step in steps] == ["penalties", "temperature", "top-p"]


def test_a_vocabulary_that_was_kept_whole_is_always_exact(tmp_path: Path) -> None:
    small = replace(CONFIG, vocab_size=12)
    engine, _ = load(write_random_model(tmp_path / "small.gguf", small))
    logits = engine.prefill([1, 5])
    choice = look(Sampler(SETTINGS), logits)
    for settings in OTHERS:
        made = again_from(choice, settings, 12, engine.exp, engine.log)
        expected = again(logits, settings, choice.coin)
        assert all(made.exact)
        for step, other in zip(made.choice.steps, expected.choice.steps, strict=True):
            assert [p for _, _, p in step.kept] == pytest.approx([p for _, _, p in other.kept], abs=1e-6)


def test_what_needs_all_logits_says_so(engine: Engine) -> None:
    choice = look(Sampler(SETTINGS), engine.logits)
    with pytest.raises(FabellaError, match="need all logits"):
        again_from(choice, Settings(typical_p=0.5), CONFIG.vocab_size, engine.exp, engine.log)
    choice = look(Sampler(SETTINGS), engine.logits, allowed=lambda token: True)
    with pytest.raises(FabellaError, match="need all logits"):
        again_from(choice, SETTINGS, CONFIG.vocab_size, engine.exp, engine.log)


# ---- The page's door -------------------------------------------------------------------------------------------------


@pytest.fixture
def page(random_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setattr(page_module, "BrowserFile", BytesSource)
    monkeypatch.setattr(page_module, "BrowserHost", lambda _exports: WasmtimeHost())
    return Page(None, random_path.read_bytes())


ASKED = {"temperature": 0.9, "top_p": 0.9, "top_k": 0, "seed": "7", "length": 40}


def steps_of(page: Page) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    while True:
        told = json.loads(page.advance(1000))
        steps += told["steps"]
        if told["end"]:
            return [step for step in steps if not step["from_prompt"]]


def tell(page: Page, **asked: Any) -> list[dict[str, Any]]:
    page.tell(json.dumps({"prompt": "w1 w2", "settings": ASKED | {"look": True}} | asked))
    return steps_of(page)


def seen_in(page: Page, what: str, asked: dict[str, Any]) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(glass.answer(page, json.dumps({"what": what} | asked)))
    return seen


def test_the_page_is_told_how_each_token_was_chosen(page: Page) -> None:
    steps = tell(page)
    plain = tell(page, settings=ASKED)
    assert [(step["token"], step["text"]) for step in steps] == [(step["token"], step["text"]) for step in plain]
    assert not any("choice" in step or "probability" in step for step in plain)
    for step in steps:
        assert len(step["choice"]) < 1400
        seen = seen_in(page, "choice", {"choice": step["choice"]})
        assert (seen["token"], seen["picked"]) == (step["token"], step["token"])
        assert len(seen["candidates"]) >= 10
        assert sum(p for _, _, p in seen["candidates"]) + seen["others"] == pytest.approx(1)
        assert step["probability"] == next(p for id, _, p in seen["candidates"] if id == step["token"])
        assert seen["begin"] <= seen["coin"] < seen["end"]
        assert [left["name"] for left in seen["steps"]] == ["temperature", "top-p"]
        assert all(left["exact"] for left in seen["steps"])
        assert seen["tokens"][str(step["token"])].keys() == {"id", "text", "kind"}


def test_the_page_moves_sliders(page: Page) -> None:
    steps = tell(page)
    kept = steps[9]["choice"]
    for settings in (ASKED, ASKED | {"temperature": 0.3, "top_k": 4}):
        asked = {"choice": kept, "settings": settings}
        exactly = seen_in(page, "choice", asked | {"exactly": True})["again"]
        roughly = seen_in(page, "choice", asked)["again"]
        assert all(left["exact"] for left in exactly["steps"])
        assert [left["name"] for left in roughly["steps"]] == [left["name"] for left in exactly["steps"]]
    seen = seen_in(page, "choice", {"choice": kept, "settings": ASKED, "exactly": True})
    assert {key: seen[key] for key in seen["again"]} == seen["again"], "with its own settings it is the same"
    tell(page, prompt="w7")
    with pytest.raises(PromptError, match="another text"):
        seen_in(page, "choice", {"choice": kept, "settings": ASKED, "exactly": True})


def test_the_page_takes_another_way(page: Page) -> None:
    steps = tell(page)
    tokens = [step["token"] for step in steps]
    other = seen_in(page, "choice", {"choice": steps[5]["choice"]})["candidates"][9][0]
    branch = tell(page, told=tokens[:5], forced=[other])
    assert branch[0]["token"] == other
    fresh = tell(page, forced=[*tokens[:5], other])
    assert fresh[5:] == branch
    typed = tell(page, told=tokens[:5], typed=" w5 w6")
    assert "".join(step["text"] for step in typed).startswith(" w5 w6")
    for wrong in ({"forced": "x"}, {"forced": [999]}, {"typed": 5}, {"told": [1.5]}, {"typed": "w1 " * 2000}):
        with pytest.raises(PromptError):
            tell(page, **wrong)


def test_a_visitors_code_is_named_where_it_chose(page: Page) -> None:
    plain = tell(page)
    source = "def choose(logits):\n    return logits.shortlist(len(logits.tokens) % 3 + 1)[-1][0]\n"
    assert json.loads(page.use_code(Code, source, lambda: None))["problem"] is None
    steps = tell(page)
    for step in steps:
        choice = Choice.from_bytes(binascii.a2b_base64(step["choice"]))
        assert choice.token == choice.picked == choice.candidates[choice.position % 3][0] == step["token"]
        assert (choice.coin, choice.begin, choice.end) == (None, 0.0, 1.0)
        (left,) = choice.steps
        assert (left.name, left.total) == ("code", 1)
        assert left.kept == [(choice.token, choice.candidates[choice.position % 3][1], 1.0)]
        seen = seen_in(page, "choice", {"choice": step["choice"], "settings": ASKED})
        assert [left["name"] for left in seen["again"]["steps"]] == ["temperature", "top-p"], (
            "what the sampler would have"
        )

    # Told again so that one can look, it is not asked.
    assert tell(page, plainly=True) == plain
    forced = [step["token"] for step in steps]
    again = [Choice.from_bytes(binascii.a2b_base64(step["choice"])) for step in tell(page, plainly=True, forced=forced)]
    assert [choice.token for choice in again] == forced
    assert all(choice.coin is not None for choice in again)


def test_an_answer_goes_another_way(page: Page) -> None:
    def say(messages: list[dict[str, str]], **more: Any) -> list[dict[str, Any]]:
        page.say(json.dumps({"messages": messages, "settings": ASKED | {"look": True, "length": 20}} | more))
        return steps_of(page)

    asked = [{"role": "user", "content": "w1 w2"}]
    answer = say(asked)
    tokens = [step["token"] for step in answer]
    said = [*asked, {"role": "assistant", "content": "".join(step["text"] for step in answer)}]
    other = seen_in(page, "choice", {"choice": answer[4]["choice"]})["candidates"][8][0]
    branch = say(said, told=tokens[:4], forced=[other])
    assert branch[0]["token"] == other
    assert "choice" in branch[0]
    assert say(said, told=[], forced=[*tokens[:4], other])[4:] == branch
    assert say(said, told=tokens[:4]) == answer[4:], "the first way is still there"
    typed = say(said, told=tokens[:4], typed=" w9")
    assert "w9" in "".join(step["text"] for step in typed)
    with pytest.raises(PromptError, match="ends"):
        say(said, told=[2])


def test_the_page_looks_inside(page: Page) -> None:
    steps = tell(page)
    position = seen_in(page, "choice", {"choice": steps[3]["choice"]})["position"]
    asked = {"position": position - 1, "token": steps[2]["token"]}
    seen = seen_in(page, "inside", asked)
    assert seen_in(page, "inside", asked | {"choice": steps[3]["choice"]}) == seen
    with pytest.raises(PromptError, match="another text"):
        seen_in(page, "inside", asked | {"choice": steps[7]["choice"]})
    assert (seen["layers"], seen["heads"], len(seen["tokens"])) == (2, 4, position)
    attention = np.frombuffer(binascii.a2b_base64(seen["attention"]), "<f4").reshape(2, 4, position)
    assert attention.sum(axis=-1) == pytest.approx(1)
    assert [id for id, _, _ in seen["lens"][-1]] == [
        id for id, _, _ in seen_in(page, "choice", {"choice": steps[3]["choice"]})["candidates"][:3]
    ]
    for wrong in ({}, {"position": "x"}, {"position": 5}, {"position": 5, "token": None}, {"position": 4, "token": -1}):
        with pytest.raises(PromptError):
            seen_in(page, "inside", wrong)
    with pytest.raises(FabellaError, match="cannot be looked into"):
        seen_in(page, "inside", {"position": 5000})
    begins = {"position": 0, "token": None, "choice": tell(page, prompt="")[0]["choice"]}
    assert [token["kind"] for token in seen_in(page, "inside", begins)["tokens"]] == ["control"]


def test_a_story_goes_on_while_the_page_looks(page: Page) -> None:
    expected = tell(page)
    page.tell(json.dumps({"prompt": "w1 w2", "settings": ASKED | {"look": True}}))
    steps: list[dict[str, Any]] = []
    while not (told := json.loads(page.advance(0)))["end"]:
        steps += told["steps"]
        if not steps[-1]["from_prompt"]:
            seen_in(page, "choice", {"choice": steps[-1]["choice"], "settings": ASKED, "exactly": True})
            seen_in(page, "tokens", {"text": "w1 w2"})
    assert [step for step in [*steps, *told["steps"]] if not step["from_prompt"]] == expected


def of_another_model() -> str:
    kept = Choice(3, 5000, 5000, 1.0, [(5000, 1.0, 0.5)], [], None, 0.0, 1.0).to_bytes()
    return binascii.b2a_base64(kept).decode()


def test_the_page_sees_the_tokenizer_at_work(page: Page) -> None:
    seen = seen_in(page, "tokens", {"text": "w1 é"})
    assert "".join(word["text"] for word in seen["words"]) == "<s>▁w1▁é"
    last = seen["words"][-1]
    assert [(token["text"], token["kind"], token["bytes"]) for token in last["tokens"]] == [
        (" ", "text", "20"),
        ("⟨C3⟩", "bytes", "c3"),
        ("⟨A9⟩", "bytes", "a9"),
    ]
    assert seen["words"][0]["tokens"][0]["kind"] == "control"
    assert seen_in(page, "merges", {"text": "w1 é", "word": 2}) == {"steps": [["▁", "é"]]}
    for what, wrong in (
        ("merges", {"text": "w1", "word": 9}),
        ("merges", {"text": "w1", "word": -1}),
        ("tokens", {}),
        ("tokens", {"text": "w1 " * 5000}),
        ("weather", {}),
        ("choice", {}),
        ("choice", {"choice": "x"}),
        ("choice", {"choice": 5}),
        ("choice", {"choice": of_another_model()}),
    ):
        with pytest.raises(FabellaError):
            seen_in(page, what, wrong)


# ---- In a notebook ---------------------------------------------------------------------------------------------------


class Checked(html.parser.HTMLParser):
    """HTML whose tags are closed in their order, and which has neither scripts nor anything from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("p", "small", "span", "b", "i", "table", "tr", "th", "td")
        assert {name for name, _ in attrs} <= {"style", "title"}
        assert "url" not in str(attrs)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_a_story(shipped_model: Path) -> None:
    with fabella.load(shipped_model) as model:
        plain = "".join(model.tell("Once upon a time", seed=3, length=40))
        story = Story(model.tell("Once upon a time", seed=3, length=40, look=True))
        assert str(story) == plain
        assert Checked(story._repr_html_()).text.startswith(plain)
        seen = Checked(story[-1]._repr_html_()).text
        assert "temperature" in seen
        assert "top-p" in seen
        assert "The coin" in seen
        assert "given by the prompt" in Checked(story[0]._repr_html_()).text
        *_, greedy = Story(model.tell("Once", seed=3, length=3, temperature=0, look=True))
        assert "likeliest is taken" in Checked(greedy._repr_html_()).text
        view = model.inside("Once upon a time there was")
        assert view.attention.shape == (8, 8, len(view.tokens))
        assert len(view.lens) == 8
        assert "head 8" in Checked(view._repr_html_()).text
        with pytest.raises(PromptError):
            model.inside("word " * 2000)
        assert len(story._repr_html_()) < 500 * len(story)
        with pytest.raises(SettingsError, match="look"):
            Story(model.tell("Once", seed=3, length=4))


def test_what_a_model_says_is_no_html(random_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "<script>alert(1)</script>\"'&"
    with fabella.load(random_path) as model:
        model.tokenizer.pieces[300:] = [evil] * 100
        story = Story(model.tell("w1", seed=1, length=30, look=True))
        assert evil in Checked(story._repr_html_()).text
        for piece in story:
            Checked(piece._repr_html_())
        Checked(model.inside("w1")._repr_html_())


def test_the_notebook_runs(
    shipped_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without Jupyter: its cells one after the other, the last expression of each shown."""
    notebook = json.loads((ROOT / "py/fabella/look.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    monkeypatch.chdir(shipped_model.parent)
    names: dict[str, Any] = {}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        *before, last = "".join(cell["source"]).split("\n")
        try:
            code = compile(last, "cell", "eval")
        except SyntaxError:
            exec("\n".join([*before, last]), names)
            continue
        exec("\n".join(before), names)
        value = eval(code, names)
        if hasattr(value, "_repr_html_"):
            shown.append(Checked(value._repr_html_()).text)
    names["model"].close()
    assert len(shown) == 3
    assert "the coin:" in capsys.readouterr().out
