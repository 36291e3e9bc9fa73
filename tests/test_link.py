"""Links to stories: what is written is read again, what is damaged is said in words, and what differs is found."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from typing import IO, Any
from urllib.parse import parse_qs

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.tools import ROOT

MODEL = "1f3a5c7e9b0d" + 52 * "0"
TOKENS = [5, 17, 4095, 2, 3, 3, 99] * 20
LINK = "#v=1&m=1f3a5c7e9b0d&p=Once&s=7&t=0.5&c=3.17_8.2&name=Fabella&h="


class Refused(Exception):
    """A link that is not followed, with the words for the visitor."""


class Links:
    """The page's module, running in Node."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin
        assert process.stdout
        self.input: IO[str] = process.stdin
        self.output: IO[str] = process.stdout

    def __call__(self, name: str, *given: Any) -> Any:
        self.input.write(json.dumps([name, *given]) + "\n")
        self.input.flush()
        said = json.loads(self.output.readline())
        if "damaged" in said:
            raise Refused(said["damaged"])
        assert "failed" not in said, said
        return said["answer"]


@pytest.fixture(scope="module")
def links() -> Iterator[Links]:
    pipe = subprocess.PIPE
    with subprocess.Popen(["node", ROOT / "tests/link.mjs"], stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        yield Links(process)
        assert process.stdin
        process.stdin.close()


def leaf_of(prompt: str, values: dict[str, Any], choices: list[list[int]] | None = None) -> tuple[Any, Any]:
    told: dict[str, Any] = {"id": 1, "parent": 0, "role": "assistant", "text": "", "tokens": TOKENS, "settings": values}
    if choices is not None:
        told["choices"] = choices
    model = {"id": MODEL, "name": "stories"}
    return {"kind": "story", "model": model, "turns": [{"id": 0, "text": prompt}, told], "picked": {}}, told


VALUES = {"temperature": 0.8, "top_p": 0.9, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "length": 0}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
reals = st.floats(0, 1, allow_nan=False).filter(lambda value: value == 0 or value > 1e-6)


@settings(max_examples=150, deadline=None)
@given(
    prompt=texts,
    name=texts,
    seed=st.integers(1, 10**18 - 1).map(str),
    values=st.fixed_dictionaries(
        {"temperature": reals, "top_p": reals, "top_k": st.integers(0, 5000), "min_p": reals}
        | {"repetition_penalty": st.floats(1, 2), "length": st.integers(0, 10**6)}
    ),
    choices=st.dictionaries(st.integers(0, 10**6 - 1), st.integers(0, 300_000), max_size=6),
)
def test_what_is_written_is_read(
    links: Links, prompt: str, name: str, seed: str, values: dict[str, Any], choices: dict[int, int]
) -> None:
    taken = [[place, choices[place]] for place in sorted(choices)]
    leaf, turn = leaf_of(prompt, {**values, "seed": seed}, taken)
    card = {"id": MODEL, "context": 512, "settings": {**VALUES, "length": 0}}
    read = links("parse", links("format", links("write", leaf, turn, card), name, TOKENS))
    assert (read["model"], read["prompt"], read["seed"], read["choices"]) == (MODEL[:12], prompt, seed, taken)
    usual = {**VALUES, "length": 512}
    assert {**usual, **read["settings"]} == values
    assert read["mark"] == links("markOf", TOKENS)
    assert read["code"] == ""
    assert read["name"] in name


def test_the_mark_is_a_hash_of_the_tokens(links: Links) -> None:
    mark = links("markOf", TOKENS)
    data = np.array(TOKENS, "<i4").tobytes()
    assert (mark["count"], mark["hash"], len(mark["checks"])) == (140, sha256(data).hexdigest()[:12], 16)
    assert links("compare", TOKENS, mark) == {"same": True, "after": 140, "before": 140}


def test_a_typical_link_can_be_posted(links: Links) -> None:
    leaf, turn = leaf_of("Once upon a time, there was a little fox", {**VALUES, "seed": "3141592653", "length": 512})
    card = {"id": MODEL, "context": 512, "settings": VALUES}
    link = links("format", links("write", leaf, turn, card), "Fabella Stories", TOKENS)
    print(link)
    assert len(link) < 160


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=80) | st.text("#&=vmpshct017.af_%+-", max_size=60))
def test_any_text_is_read_or_refused(links: Links, text: str) -> None:
    with suppress(Refused):  # any other error fails
        links("parse", f"#{text}")


def good(links: Links) -> str:
    mark = links("markOf", TOKENS)
    return f"{LINK}{mark['count']}.{mark['hash']}.{mark['checks']}"


def test_one_that_is_cut_off_is_refused(links: Links) -> None:
    whole = good(links)
    assert links("parse", whole)["choices"] == [[3, 17], [8, 2]]
    for end in range(5, len(whole)):
        with pytest.raises(Refused, match="damaged, or was cut off"):
            links("parse", whole[:end])


def test_what_stands_behind_it_in_a_sentence_is_no_part_of_it(links: Links) -> None:
    for behind in (".", ").", "”,", "!>", "%22"):
        assert links("parse", good(links) + behind) == links("parse", good(links))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("v=1", "v=2", "of the kind “2”, and this page knows kind 1"),
        ("v=1", "v=1&v=1", "“v” is in it twice"),
        ("m=1f3a5c7e9b0d", "m=1f3a", "names no model"),
        ("m=1f3a5c7e9b0d", "m=<img src=x onerror=alert(1)>", "names no model"),
        ("m=1f3a5c7e9b0d&", "", "names no model"),
        ("&s=7", "&s=0", "no seed"),
        ("&s=7", "&s=7e3", "no seed"),
        ("&s=7", "&s=1234567890123456789", "no seed"),
        ("&p=Once", "", "beginning is not in it"),
        ("&p=Once", "&p=%zz", "“p” is no text"),
        ("&p=Once", "&p=%ff", "“p” is no text"),
        ("&p=Once", "&p=" + "a" * 70_000, "it has 70,0"),
        ("t=0.5", "t=-1", "its temperature is “-1”"),
        ("t=0.5", "t=1e999", "its temperature is “1e999”"),
        ("t=0.5", "t=NaN", "its temperature is “NaN”"),
        ("t=0.5", "t=", "its temperature is “”"),
        ("t=0.5", "tp=1.5", "its top p is “1.5”"),
        ("t=0.5", "tk=2.5", "its top k is “2.5”"),
        ("t=0.5", "rp=0", "its repetition penalty is “0”"),
        ("t=0.5", "n=99999999999999999999", "its length is “99999999999999999999”"),
        ("c=3.17_8.2", "c=8.2_3.17", "choices of words are in no order"),
        ("c=3.17_8.2", "c=3.17_3.17", "choices of words are in no order"),
        ("c=3.17_8.2", "c=__proto__", "choices of words are none"),
        ("c=3.17_8.2", "c=3.999999999", "choices of words are none"),
        ("&name", "&&name", "something in it is empty"),
        ("&name", "&x&name", "“x” says nothing"),
        ("h=140.", "h=x.", "its end is missing"),
    ],
)
def test_what_is_wrong_is_said(links: Links, old: str, new: str, said: str) -> None:
    link = good(links)
    assert old in link
    with pytest.raises(Refused) as refused:
        links("parse", link.replace(old, new))
    assert said in str(refused.value)


def test_a_story_retold_from_its_first_token_has_no_choices_in_its_link(links: Links) -> None:
    address = links("write", *leaf_of("a", {**VALUES, "seed": "1"}, []), None)
    assert links("parse", links("format", address, "n", TOKENS))["choices"] == []


def test_unknown_fields_are_passed_over_and_code_is_text(links: Links) -> None:
    code = "import os\nos.system('x')  # <script>alert(1)</script>"
    packed = links("pack", code)
    read = links("parse", f"{LINK.removesuffix('h=')}later=1&__proto__=1&code={packed}&{good(links)[-35:]}")
    assert read["code"] == packed
    assert links("unpack", packed) == code
    for damaged in ("$", "A", packed[:-9], "x" + packed):
        with pytest.raises(Refused, match="the code in it is none"):
            links("unpack", damaged)
    assert set(read) == {"model", "name", "prompt", "seed", "settings", "choices", "mark", "code"}


def test_a_difference_is_found_where_it_is(links: Links) -> None:
    """By 6 bits at each sixteenth: seldom a later one than the right one is named, never an earlier one."""
    chance = random.Random(1)
    right = 0
    for _ in range(150):
        there = [chance.randrange(4096) for _ in range(chance.randrange(1, 300))]
        here = list(there)
        place = chance.randrange(len(here))
        here[place] ^= 1
        found = links("compare", here, links("markOf", there))
        assert not found["same"]
        assert found["before"] > place or found["after"] == 0
        right += found["after"] <= place < found["before"]
        sixteenth = len(there) / 16 + 1
        assert found["before"] - found["after"] <= sixteenth or found["after"] == 0
    assert right >= 140


def test_a_shorter_and_a_longer_story_are_told_from_another(links: Links) -> None:
    mark = links("markOf", TOKENS)
    assert links("compare", TOKENS[:90], mark) == {"same": False, "after": 90, "before": 90}
    assert links("compare", [*TOKENS, 1], mark) == {"same": False, "after": 140, "before": 140}
    assert links("compare", [], mark) == {"same": False, "after": 0, "before": 0}
    assert links("compare", [], links("markOf", [])) == {"same": True, "after": 0, "before": 0}


def test_the_fragment_is_one_that_servers_would_read_alike(links: Links) -> None:
    leaf, turn = leaf_of("a b&c=d#e+f", {**VALUES, "seed": "1"})
    link = links("format", links("write", leaf, turn, None), "x & y", TOKENS)
    read = parse_qs(link[1:])
    assert (read["p"], read["name"], read["v"]) == (["a b&c=d#e+f"], ["x & y"], ["1"])


def test_markdown_shows_what_was_told_and_nothing_else(links: Links) -> None:
    leaf, turn = leaf_of("# Once *upon*\n1. a time ", {**VALUES, "seed": "1"})
    leaf["turns"][1]["text"] = "there\n\n- was <b>one</b> [x](y)."
    leaf["picked"] = {"": 0, "0": 1}
    card = {"id": MODEL, "title": "A_B", "name": "stories"}
    text = links("markdown", leaf, turn, card, "https://x.example/#v=1")
    assert text == (
        "**# Once \\*upon\\***\n\n**1. a time** there\n\n\\- was \\<b\\>one\\</b\\> \\[x\\](y).\n\n"
        "*Told by A\\_B with seed 1, a small language model in a browser.* [Hear it told](<https://x.example/#v=1>)\n"
    )
