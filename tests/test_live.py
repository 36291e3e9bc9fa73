"""Live Python: code in the sampler's place, the examples on the shelf, and what stops code that does not end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from builder.tools import ROOT
from fabella import samplers
from fabella.constraint import Regex
from fabella.errors import CodeError
from fabella.generate import Ending, Step, generate
from fabella.live import PRINTED, Code, LiveLogits
from fabella.page import LiveSampler
from fabella.sampler import Settings, keep_typical
from fabella.session import Session
from fabella.tokenizer import Tokenizer

from .endless import ENDLESS, ENORMOUS
from .random_models import load
from .test_template import in_pyodide

PROMPT = "Once upon a time"
TEXTS = samplers.texts()
EXAMPLES = {example["title"]: example["source"] for example in TEXTS["examples"]}  # type: ignore[attr-defined]


class Teller:
    """A model with a visitor's code, which may be changed at any token."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self.session, self.tokenizer = session, tokenizer
        self.code: Code | None = None

    def use(self, source: str) -> Code:
        if self.code:
            self.code.close()
        self.code = Code(source, self.session, self.tokenizer)
        return self.code

    def tell(self, prompt: str = PROMPT, length: int = 60, told: Any = (), **settings: Any) -> Iterator[Step]:
        ending = Ending(length, sampler=partial(LiveSampler, code=lambda: self.code))
        how = Settings(**{"seed": 1, **settings})
        return generate(self.session, self.tokenizer, prompt, how, ending=ending, told=told)

    def tokens(self, *parameters: Any, **settings: Any) -> list[int]:
        return [step.token for step in self.tell(*parameters, **settings)]

    def said(self, *parameters: Any, **settings: Any) -> str:
        return "".join(step.text for step in self.tell(*parameters, **settings) if not step.from_prompt)


@pytest.fixture(scope="module")
def loaded(shipped_model: Path) -> tuple[Session, Tokenizer]:
    engine, model = load(shipped_model)
    return Session(engine), model.tokenizer


@pytest.fixture
def teller(loaded: tuple[Session, Tokenizer]) -> Iterator[Teller]:
    teller = Teller(*loaded)
    yield teller
    if teller.code:
        teller.code.close()


# ---- The sampler's own source ----------------------------------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.4},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.3, "top_p": 1},
    {"temperature": 1.1, "top_p": 1, "top_k": 12},
    {"temperature": 1.2, "top_p": 0.95, "top_k": 40, "min_p": 0.05},
    {"temperature": 1, "typical_p": 0.5, "top_p": 1},
    {"temperature": 0.9, "typical_p": 0.8, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    {"temperature": 1.5, "top_p": 0, "frequency_penalty": 0.5, "penalty_window": 9},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_shown_source_picks_as_the_sampler_does(teller: Teller, settings: dict[str, Any]) -> None:
    expected = teller.tokens(seed=7, length=120, **settings)
    teller.use(str(TEXTS["chain"]))
    assert teller.tokens(seed=7, length=120, **settings) == expected


def test_every_setting_of_a_sampler_is_met_by_these() -> None:
    """All but what the page has no control for: a bias, and the seed itself."""
    usual = Settings()
    assert {name for some in SETTINGS for name in some} == vars(usual).keys() - {"seed", "logit_bias"}


def test_the_shown_source_is_that_of_the_sampler() -> None:
    source = str(TEXTS["chain"])
    sampler = (ROOT / "py/fabella/sampler.py").read_text(encoding="utf-8")
    for name in ("ranked", "penalised", "keep_typical", "keep_top_k", "keep_top_p", "keep_min_p", "scaled", "draw"):
        function = re.search(rf"^def {name}\(.*?(?=\n\n\n|\Z)", source, re.M | re.S)
        assert function, name
        assert function[0].strip() in sampler


def test_the_help_tells_of_all_there_is() -> None:
    public = {name for name in vars(LiveLogits) if not name.startswith("_")} - {"restore"}
    public |= {"vocab_size", "settings", "memory", "tokens", "ends"}
    told = set(re.findall(r"^(\w+)(?=\(|,|$)|(?<=, )(\w+)$", str(TEXTS["help"]), re.M))
    assert public <= {name for names in told for name in names}


# ---- Its place in the story ------------------------------------------------------------------------------------------

LIKELIEST = "def choose(logits):\n    return logits.shortlist(1)[0][0]\n"
SECOND = "def choose(logits):\n    return logits.shortlist(2)[1][0]\n"


def test_an_edit_counts_from_the_next_token_on(teller: Teller) -> None:
    """In a story that is going on, whoever picked before."""
    steps = teller.tell(temperature=0, length=40)
    before = [next(steps).token for _ in range(12)]
    teller.use(SECOND)
    after = next(steps).token
    teller.code = None
    teller.session.rewind(len(teller.session.tokens) - 1)
    (logits,) = (teller.session.forward(before[-1]),)
    assert [after] == [logits.shortlist(2)[1][0]]
    teller.code = None
    plain = teller.tokens(temperature=0, length=40)
    assert plain[: len(before)] == before
    assert plain[len(before)] != after


def test_code_may_be_taken_away_again(teller: Teller) -> None:
    expected = teller.tokens(length=40)
    steps = teller.tell(length=40)
    told = [next(steps).token for _ in range(15)]
    teller.use(str(TEXTS["chain"]))
    told += [next(steps).token for _ in range(10)]
    teller.code = None
    assert told + [step.token for step in steps] == expected


def test_an_error_leaves_everything_as_it_was(teller: Teller) -> None:
    """The story goes on from there, as if nothing had been."""
    expected = [step.token for step in teller.tell(length=50) if not step.from_prompt]
    for trouble in ("1 / 0", "logits.changed(logits.tokens[-3:], lambda l: [9] * len(l)).__enter__()\n    oops"):
        teller.use(str(TEXTS["chain"]))
        steps = teller.tell(length=50)
        told = [step.token for step in (next(steps) for _ in range(20)) if not step.from_prompt]
        teller.use(f"def choose(logits):\n    logits.coin\n    {trouble}\n")
        with pytest.raises(CodeError):
            next(steps)
        assert [token for token, _ in teller.session.logits.shortlist(1)]
        teller.code = None
        rest = [step.token for step in teller.tell(length=50, told=told) if not step.from_prompt]
        assert told + rest == expected


def test_what_the_code_knows_of_a_text(teller: Teller) -> None:
    """Also after it was gone on with."""
    source = """
def choose(logits):
    logits.memory["tokens"] = logits.memory.get("tokens", 0) + 1
    print(repr([logits.prompt, logits.said, logits.text, logits.memory["tokens"], logits.coin, logits.coin]))
    return logits.shortlist(1)[0][0]
"""
    code = teller.use(source)
    steps = [step for step in teller.tell(length=20) if not step.from_prompt]
    seen = [eval(line) for line in code.console.take().splitlines()]
    for number, (prompt, said, text, count, coin, again) in enumerate(seen):
        assert said == "".join(step.text for step in steps[:number])
        assert (prompt, text, count, coin) == (PROMPT, prompt + said, number + 1, again)
    assert len({line[4] for line in seen}) == len(seen)
    told = [step.token for step in steps[:5]]
    next(step for step in teller.tell(length=20, told=told) if not step.from_prompt)
    prompt, said, _, count, coin, _ = eval(code.console.take().splitlines()[0])
    assert (prompt, said, count, coin) == (PROMPT, "".join(step.text for step in steps[:5]), 1, seen[5][4])
    teller.code = None
    begun = teller.tell(length=30, temperature=0)
    said = "".join(step.text for step in (next(begun) for _ in range(15)) if not step.from_prompt)
    code = teller.use(source)
    next(begun)
    assert eval(code.console.take())[:2] == [PROMPT, said]


def test_what_logits_offer(teller: Teller) -> None:
    source = """
def choose(logits):
    values = logits.array()
    best = logits.shortlist(3)
    assert len(values) == logits.vocab_size and best[0][1] == max(values) and values[best[2][0]] == best[2][1]
    candidates = logits.candidates(logits.vocab_size)
    assert abs(sum(one[2] for one in candidates) - 1) < 1e-6
    assert abs(logits.probability(best[0][0]) - candidates[0][2]) < 1e-6
    assert logits.draw(1, 0) == 0 or True
    assert logits.encode(" the") and logits.decode(logits.encode(" the")[-1]).strip()
    assert all(logits.decode(token) == "" for token in logits.ends)
    with logits.changed([best[0][0]], lambda before: [logit - 100 for logit in before]) as same:
        assert same.shortlist(1)[0][0] == best[1][0]
    assert logits.shortlist(1)[0] == best[0]
    assert logits.mean(0.1) > logits.mean(10)
    return best[0][0]
"""
    teller.use(source)
    expected = teller.tokens(temperature=0, length=24)
    teller.code = None
    assert teller.tokens(temperature=0, length=24) == expected


def test_without_the_prompt(teller: Teller) -> None:
    """To the bit what the same model says after the same words, had it not read the prompt."""
    teller.use("""
def choose(logits):
    print(logits.without_prompt([5, 300, 1000]))
    return logits.shortlist(1)[0][0]
""")
    code = teller.code
    assert code
    steps = [step for step in teller.tell(length=16) if not step.from_prompt]
    seen = [json.loads(line) for line in code.console.take().splitlines()]
    session, bos = teller.session, teller.tokenizer.bos_id
    for number, found in enumerate(seen):
        list(session.read([bos, *(step.token for step in steps[:number])]))
        assert found == [session.logits.log_probability(token) for token in (5, 300, 1000)]  # type: ignore[attr-defined]
    teller.code = None
    assert [step.token for step in teller.tell(length=16, temperature=0) if not step.from_prompt] == [
        step.token for step in steps
    ]


# ---- What goes wrong -------------------------------------------------------------------------------------------------

WRONG = [
    ("def choose(logits)\n    pass", 1, "SyntaxError: expected ':'"),
    ("x = 1\n\ny = x.nothing", 3, "AttributeError: 'int' object has no attribute 'nothing'"),
    ("x = 1", None, "there is no function “choose(logits)”: it is called before each token"),
    ("x = '\\0\0'", None, "source code string cannot contain null bytes"),
    ("raise SystemExit", 1, "SystemExit"),
    ("#" * 100_001, None, "this code has 100,001 characters; 100,000 are the most"),
    ("(" * 5000, 1, "too many nested parentheses"),
]


@pytest.mark.parametrize(("source", "line", "said"), WRONG)
def test_what_is_no_code(teller: Teller, source: str, line: int | None, said: str) -> None:
    with pytest.raises(CodeError) as caught:
        teller.use(source)
    assert said in str(caught.value)
    assert line is None or caught.value.line == line


WRONG_CHOICES = [
    ("return 'fox'", None, "choose() has returned 'fox', but must return the number of a token, from 0 to"),
    ("return True", None, "choose() has returned True"),
    ("return -1", None, "choose() has returned -1"),
    ("return 10 ** 9000", None, "ValueError"),
    ("pass", None, "choose() has returned None"),
    ("return help_me()", 3, "NameError: name 'help_me' is not defined"),
    ("return logits.decode(10**6)", 3, "ValueError: 1000000 is no token: tokens are the numbers 0 to"),
    ("return logits.shortlist(0)", 3, "ValueError: k must be a whole number from 1 on, not 0"),
    ("return logits.candidates(5, 0)", 3, "ValueError: a temperature must be at least 0.000001, not 0"),
    ("with logits.changed([1], lambda l: l * 9): pass", 3, "ValueError: the change of 1 logits has made 9 of them"),
    ("with logits.changed([1], list), logits.changed([2], list): pass", 3, "by one “with” at a time"),
    ("with logits.changed([1], list): logits.without_prompt([3])", 3, "while logits are changed"),
    ("for _ in range(99): logits.without_prompt([3])", 3, "can be asked 8 times for a token"),
    ("raise KeyboardInterrupt", 3, "KeyboardInterrupt"),
    ("class E(Exception):\n        def __str__(self): return 1/0\n    raise E", 5, "E"),
    ("import re\n    re.compile('(')", 4, "missing )"),
    ("def again(): again()\n    again()", 3, "RecursionError: maximum recursion depth exceeded"),
]


@pytest.mark.parametrize(("body", "line", "said"), WRONG_CHOICES)
def test_what_goes_wrong_is_told_with_its_line(teller: Teller, body: str, line: int | None, said: str) -> None:
    teller.use(f"# a sampler\ndef choose(logits):\n    {body}\n")
    with pytest.raises(CodeError) as caught:
        list(teller.tell(length=20))
    assert said in str(caught.value)
    assert caught.value.line == line
    assert len(str(caught.value)) < 400


def test_print_goes_to_a_console_that_is_bounded(teller: Teller) -> None:
    code = teller.use("print('ready')\ndef choose(logits):\n    print('x' * 3000)\n    return 5\n")
    assert code.console.take() == "ready\n"
    list(teller.tell(length=20))
    printed = code.console.take()
    assert len(printed) < PRINTED + 100
    assert re.search(r"… and [\d,]+ characters more\n$", printed)
    assert code.console.take() == ""


# ---- The shelf of examples -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_is_short_and_tells_a_story(teller: Teller, title: str) -> None:
    assert EXAMPLES[title].count("\n") < 25
    code = teller.use(EXAMPLES[title])
    assert len(teller.said(length=50).split()) > 8
    first = teller.tokens(length=30)
    assert teller.tokens(length=30) == first  # by the seed alone
    assert teller.tokens(length=30, seed=2) != first
    assert code.console.take().count("\n") < 500


def watched(teller: Teller, source: str, **settings: Any) -> list[tuple[int, Any]]:
    """The tokens that an example picks, each with what it could pick from: candidates at a temperature."""
    code = teller.use(source)
    seen: list[tuple[int, Any]] = []
    choose = code._choose
    names = choose.__globals__

    def noted(logits: LiveLogits) -> Any:
        candidates = logits.candidates(400, names.get("TEMPERATURE", 1.0))
        token: Any = choose(logits)
        seen.append((token, (candidates, logits.mean(names.get("TEMPERATURE", 1.0)), logits.array())))
        return token

    code._choose = noted
    list(teller.tell(**settings))
    return seen


def test_the_plain_chain_picks_as_the_sampler(teller: Teller) -> None:
    teller.use(EXAMPLES["The plain chain"])
    chosen = teller.tokens(length=120)
    teller.code = None
    assert chosen == teller.tokens(length=120, temperature=0.8, top_p=0.9)


def test_min_p_picks_as_the_sampler(teller: Teller) -> None:
    teller.use(EXAMPLES["Min-p"])
    chosen = teller.tokens(length=120)
    teller.code = None
    assert chosen == teller.tokens(length=120, temperature=1.2, top_p=1, min_p=0.1)


def test_typical_keeps_what_the_sampler_keeps(teller: Teller) -> None:
    for token, (candidates, mean, _) in watched(teller, EXAMPLES["Typical"], length=100):
        assert token in [one[0] for one in keep_typical(candidates, mean, 0.5)]


def test_top_n_sigma_keeps_what_stands_out(teller: Teller) -> None:
    import numpy as np

    for token, (_, _, logits) in watched(teller, EXAMPLES["Top-nσ"], length=60):
        values = np.array(logits, np.float64)
        assert values[token] >= values.max() - values.std() - 1e-6


def test_mirostat_keeps_the_surprise(teller: Teller) -> None:
    """The mean of the tokens' surprises comes near what was asked for."""
    means = {}
    for wanted in (0.5, 1.0):
        source = EXAMPLES["Mirostat"].replace("SURPRISE = 1.2", f"SURPRISE = {wanted}")
        code = teller.use(source)
        printed = []
        for seed in (1, 2):
            for _ in teller.tell(length=200, seed=seed, prompt="Lily and her mom went to"):
                printed += code.console.take().splitlines()
        surprises = [float(line.split()[-2]) for line in printed]
        means[wanted] = sum(surprises) / len(surprises)
    assert means[0.5] == pytest.approx(0.5, abs=0.25)
    assert means[1.0] == pytest.approx(1.0, abs=0.25)


def test_no_letter_e(teller: Teller) -> None:
    teller.use(EXAMPLES["No letter e"])
    said = teller.said(length=100, prompt="A dog and a cat")
    assert len(said.split()) > 20
    assert "e" not in said.lower()


def test_sentences_rhyme(teller: Teller) -> None:
    """Far more of them than by chance."""

    def rhymes(text: str) -> tuple[int, int]:
        ends = re.findall(r"(\w\w)\W*?[.!?]", text.lower())
        pairs = list(pairwise(ends))
        return sum(a == b for a, b in pairs), len(pairs)

    def count() -> tuple[int, int]:
        found = [rhymes(teller.said(length=180, seed=seed)) for seed in range(1, 9)]
        return sum(some for some, _ in found), sum(all for _, all in found)

    by_chance = count()
    teller.use(EXAMPLES["A rhyme"])
    rhymed = count()
    assert rhymed[0] / rhymed[1] > 0.25 > 2 * by_chance[0] / by_chance[1]


def test_contrast_makes_the_prompt_count(teller: Teller) -> None:
    """What follows the prompt is more the prompt's doing: its tokens gain more by it than without the contrast."""

    def gain(source: str) -> float:
        measure = "\ndef choose(logits, inner=choose):\n    token = inner(logits)\n"
        measure += "    gain = math.log(logits.probability(token)) - logits.without_prompt([token])[0]\n"
        measure += "    print(gain)\n    return token\n"
        code = teller.use(source + "\nimport math" + measure)
        gains: list[float] = []
        for prompt in (
            "The old dragon lived in a cold cave. He was",
            "Lily's cat was lost in the snow. She",
            "The king had no shoes. He",
        ):
            list(teller.tell(length=50, prompt=prompt))
            gains += map(float, code.console.take().splitlines())
        return sum(gains) / len(gains)

    contrast = EXAMPLES["Contrast"]
    assert gain(contrast) > 0.1 + gain(contrast.replace("STRENGTH = 1.0", "STRENGTH = 0.0"))


def test_a_regular_expression_is_matched(teller: Teller) -> None:
    found = re.search(r'r"(.+)"', EXAMPLES["A regular expression"])
    assert found
    assert Regex(found[1])
    teller.use(EXAMPLES["A regular expression"])
    for seed in (1, 2):
        assert re.fullmatch(found[1], teller.said(length=150, seed=seed))


# ---- The watchdog ----------------------------------------------------------------------------------------------------

IN_PYODIDE = """
import json, time
from fabella import live
from fabella.errors import CodeError
from fabella.live import Code
from fabella.page import LiveSampler
from fabella.sampler import Settings
from fabella.sentencepiece import SentencePiece
from fabella.session import Session
from tests.endless import ENDLESS, ENORMOUS

class Still:
    "A model, and its logits, of which nothing is asked."
    context, position, vocab_size = 100, 0, 5
    prefill = forward = lambda self, tokens: self
    def rewind(self, position): pass

clock, model = time.perf_counter, Still()
live.LIMIT = 0.05
tokenizer = SentencePiece(["<unk>", "<s>", "</s>", "a", "b"], [0.0] * 5, [2, 3, 3, 1, 1])
session = Session(model)
list(session.read([1, 3]))
started = []

def pick(body):
    code = Code(f"def choose(logits):\\n    {body}\\n    return 4", session, tokenizer, lambda: started.append(body))
    began = clock()
    try:
        return code.choose(LiveSampler(Settings(seed=1), (), lambda: code), model)
    except CodeError as error:
        return clock() - began, str(error), error.line
    finally:
        code.close()

endless = {name: pick(body) for name, body in ENDLESS.items()}
enormous = {name: pick(body) for name, (body, _) in ENORMOUS.items()}
count = len(started)
live.LIMIT = 0.4
stalled = pick("import time\\n    for _ in range(3): time.sleep(0.2)") # the machine had something else to do
print(json.dumps({"endless": endless, "enormous": enormous, "afterwards": stalled, "started": count}))
"""


def test_endless_code_is_stopped_in_the_pages_python(tmp_path: Path) -> None:
    """How long each took is printed."""
    told = json.loads(in_pyodide(tmp_path, IN_PYODIDE, ROOT / "py", ROOT))
    for name, (seconds, message, line) in told["endless"].items():
        print(f"{1000 * seconds:.0f} ms: {name}: {message}")
        assert "stopped after 0.05 seconds" in message or "they took too long" in message, (name, message)
        assert line, name
    for name, (_, message, _) in told["enormous"].items():
        assert re.search(ENORMOUS[name][1], message), (name, message)
    assert told["afterwards"] == 4
    assert told["started"] == 2 * (len(ENDLESS) + len(ENORMOUS))  # the page knows when to listen: before any of it
