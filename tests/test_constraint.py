"""Constraints: regular expressions and JSON schemas, and that the loop never tells what one forbids."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabella.constraint import Regex, json_schema
from fabella.engine import Engine
from fabella.errors import ConstraintError
from fabella.generate import Constraint, Ending, Step, generate
from fabella.modelfile import Config
from fabella.sampler import Sampler, Settings
from fabella.tokenizer import Tokenizer

from .random_models import load, write_random_model
from .test_sampler import ListLogits

# ---- Regular expressions ----

PATTERNS = [
    "a*b",
    "(ab|cd)+e?",
    "[a-c]{2,4}x",
    r"\d+\.\d*",
    "[^a]b|.c",
    "(a|b)*abb",
    "x{3}",
    "(a?){3}b",
    "(a*)*b",
    "a(bc)?d{0,2}",
    "(a{0,3}){0,3}c",
    "(?:a|)(?P<name>b*?)c++",
    r"[\w\s]+\S|[^\W\d]",
    r"[]\-^]\\|\n\t\u00e9",
    "",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text("abcdex1.-^]\\\n\té _", max_size=8))
def test_a_text_may_end_where_python_says_that_it_matches(pattern: str, text: str) -> None:
    python = pattern.replace("c++", "c+")  # new in Python 3.11; here they are the same
    assert Regex(pattern)(text, None) == bool(re.fullmatch(python, text))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_text_may_go_on_where_some_text_that_begins_so_matches(pattern: str) -> None:
    """All texts of up to five characters that some match begins with may; those may that matches are found for."""
    chance = random.Random(1)
    constraint = Regex(pattern)
    for _ in range(300):
        text = "".join(chance.choices("abcdx1.", k=chance.randrange(7)))
        if re.fullmatch(pattern, text):
            assert all(constraint(text[:at], text[at:]) for at in range(len(text)))
            assert all(constraint(text[:at], text[at : at + 1]) for at in range(len(text)))


def test_it_may_be_asked_in_any_order() -> None:
    constraint = Regex("abc|abd|xy")
    assert constraint("ab", "c")
    assert constraint("", "x")
    assert not constraint("ab", "x")
    assert constraint("xy", None)
    assert constraint("abd", None)
    assert not constraint("ab", None)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "no regular expression"),
        ("a**", "no regular expression"),
        ("^a$", "cannot look around"),
        ("(?=a)b", "cannot look around"),
        (r"(a)\1", "cannot look around"),
        (r"\bword", "cannot look around"),
        ("(?i:a)", "cannot look around"),
        ("(?i)a", "flags are not known"),
        ("(?s).", "flags are not known"),
        ("(" * 5000 + ")" * 5000, "nested too deeply"),
        ("a" * 30_000, "at most 20000"),
        (None, "at most 20000"),
    ],
)
def test_patterns_that_are_none(pattern: Any, said: str) -> None:
    with pytest.raises(ConstraintError, match=said):
        Regex(pattern)


def test_a_pattern_that_grows_without_end_is_refused() -> None:
    with pytest.raises(ConstraintError, match="too many ways"):
        Regex("((a{0,99}){0,99}b?){0,99}c")("a" * 1000, None)


# ---- JSON ----

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "é\n", None, 1.5]}, "maxItems": 3},
        "home": {"anyOf": [{"const": {"x": [1]}}, {"type": ["boolean", "null"]}]},
    },
    "required": ["name", "home"],
}


@pytest.mark.parametrize(
    ("schema", "texts", "others"),
    [
        (
            PERSON,
            [
                '{"name": "Bo", "home": null}',
                '{"name": "Bo", "age": -3, "home": {"x": [1]}}',
                '{"name": "B\\"\\u00e9", "tags": [], "home": true}',
                '{"name": "Bo", "age": 0, "tags": ["a", null, 1.5], "home": false}',
            ],
            [
                "{}",
                '{"name": "", "home": null}',
                '{"name": "Bo"}',
                '{"home": null, "name": "Bo"}',
                '{"name": "Bo", "tags": ["a", "a", "a", "a"], "home": null}',
                '{"name": "Bo", "age": 01, "home": null}',
                '{"name": "Bo\n", "home": null}',
                '{"name": "Bo", "home": null, "more": 1}',
            ],
        ),
        (
            {"type": "array", "items": {"type": "number"}, "minItems": 1},
            ["[1]", "[-1.5e3, 0]"],
            ["[]", "[1,2]", "[.5]"],
        ),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"type": "string", "pattern": "[a-z]+"}, ['"ab"'], ['""', '"A"']),
        ({"type": "string", "pattern": ".*|[^x]+"}, ['""', '"é"'], ['"a"b"', '"\\"', '"\n"']),
        ({"type": "array", "minItems": 2, "maxItems": 2, "items": {"const": 0}}, ["[0, 0]"], ["[0]", "[0, 0, 0]"]),
        (
            {"type": "object", "properties": {"a": {"type": "null"}, "b": True}},
            ["{}", '{"a": null}', '{"b": "x"}'],
            ["{,}"],
        ),
        (True, ["1", '"a"', "true", "null"], ["[]", "tru"]),
    ],
)
def test_json_of_a_schema(schema: Any, texts: list[str], others: list[str]) -> None:
    constraint = json_schema(schema)
    for text in texts:
        json.loads(text)
        assert constraint(text, None), text
        for at in range(len(text)):
            assert constraint(text[:at], text[at:])
            assert constraint(text[:at], text[at])
    for text in others:
        assert not constraint(text, None), text


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "thing"}, "type 'thing'"),
        ({"$ref": "#"}, "'.ref' is not known"),
        ({"type": "object", "required": ["a"]}, "requires 'a'"),
        ({"type": "string", "maxLength": -1}, "whole numbers"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "whole numbers"),
        (7, "a schema is an object"),
        ({"title": "nothing"}, "type None"),
        ({"enum": 5}, "enum must be a list"),
        ({"enum": []}, "enum must be a list"),
        ({"anyOf": 3}, "anyOf must be a list"),
        ({"anyOf": []}, "anyOf must be a list"),
        ({"const": {1}}, "is no JSON"),
        ({"properties": []}, "properties must be an object"),
        ({"properties": {}, "required": True}, "required a list"),
        ({"properties": {}, "required": [["a"]]}, "does not say what it is"),
        ({"type": "array", "minItems": 2, "maxItems": 0}, "whole numbers"),
        ({"type": "string", "pattern": "a", "minLength": 2}, "how long the string may be"),
    ],
)
def test_schemas_that_are_not_known(schema: Any, said: str) -> None:
    with pytest.raises(ConstraintError, match=said):
        json_schema(schema)


def test_a_schema_of_many_members() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(4):
        schema = {"properties": {f"m{number}": schema for number in range(8)}}
    constraint = json_schema(schema)
    assert constraint('{"m3": {"m1": {}, "m6": {"m0": {"m5": null}}}}', None)
    assert not constraint('{"m3": {}, "m2": {}}', None)


def test_a_schema_that_is_nested_too_deeply() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(30):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ConstraintError, match="nested more than 20 deep"):
        json_schema(schema)


# ---- The loop under a constraint ----

CONFIG = Config(dim=32, hidden_dim=48, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=400, seq_len=256)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Tokenizer]:
    engine, model = load(write_random_model(tmp_path_factory.mktemp("models") / "model.gguf", CONFIG))
    return engine, model.tokenizer


def told(loaded: tuple[Engine, Tokenizer], constraint: Constraint, **knobs: Any) -> tuple[str, Step]:
    """What a random model says under a constraint, and its last step."""
    engine, tokenizer = loaded
    settings = Settings(**({"temperature": 1.5, "top_p": 0.9, "seed": 1} | knobs))
    steps = [
        step
        for step in generate(engine, tokenizer, "w1", settings, ending=Ending(250, constraint=constraint))
        if not step.from_prompt
    ]
    return "".join(step.text for step in steps), steps[-1]


@pytest.mark.parametrize("knobs", [{"temperature": 0}, {"top_p": 1.0}, {"top_k": 5}, {"min_p": 0.3}, {"top_p": 0.1}])
def test_a_random_model_writes_json_of_a_schema(loaded: tuple[Engine, Tokenizer], knobs: dict[str, Any]) -> None:
    for seed in range(1, 6):
        text, last = told(loaded, json_schema(PERSON), **({"seed": seed} | knobs))
        assert last.end == "end"
        person = json.loads(text)
        assert 1 <= len(person["name"]) <= 8
        assert "home" in person


def test_what_it_forbids_is_never_told_in_many_random_runs() -> None:
    """10,000 texts by a source of random logits: each ends, and matches."""
    words = ["", "", "a", "b", "ab", "ba", "c", "bb", "é", "abc"]  # the first two are ends
    chance = random.Random(7)
    pattern = re.compile("(a|bb?c?){1,6}é?")
    constraint = Regex(pattern.pattern)
    for seed in range(1, 10_001):
        knobs = chance.choice(({"top_p": 1.0}, {"top_p": 0.5}, {"top_k": 2}, {"min_p": 0.5}, {"temperature": 0}))
        sampler = Sampler(Settings(**({"seed": seed} | knobs)))
        text = ""
        while True:
            logits = ListLogits([chance.gauss(0, 2) for _ in words])
            allowed = [
                token
                for token, word in enumerate(words)
                if (constraint(text, None) if token < 2 else constraint(text, word))
            ]
            token = sampler.sample(logits, allowed=allowed.__contains__)
            assert token in allowed
            if token < 2:
                break
            text += words[token]
            assert len(text) < 30
        assert pattern.fullmatch(text)


def test_any_function_may_be_one(loaded: tuple[Engine, Tokenizer]) -> None:
    asked: list[tuple[str, str | None]] = []

    def three_words(text: str, added: str | None) -> bool:
        asked.append((text, added))
        words = (text + (added or "")).split()
        return len(words) == 3 if added is None else len(words) <= 3 and all(map(str.isalnum, words))

    text, last = told(loaded, three_words, top_p=0.95)
    assert len(text.split()) == 3
    assert last.end == "end"
    assert asked[0][0] == ""
    assert any(added is None for _, added in asked)


def test_a_constraint_that_leaves_nothing(loaded: tuple[Engine, Tokenizer]) -> None:
    with pytest.raises(ConstraintError, match="forbids every token"):
        told(loaded, lambda text, added: False)


def test_half_a_character_is_not_the_end_of_it(loaded: tuple[Engine, Tokenizer]) -> None:
    """Its first byte counts as U+FFFD, which this allows and does not; then its last one completes it."""
    text, last = told(loaded, Regex("[\u00e0-\u00ef\ufffd]{3}"), top_k=40)
    assert last.end == "end"
    assert len(text) == 3
