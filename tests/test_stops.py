"""Stop strings: a text ends before the first of them, and what is told is never taken back."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fabella.stops import Stops

ab = st.text("ab\n", max_size=12)


def pushed(stops: Stops, pieces: list[str]) -> str:
    """What is told of these pieces."""
    told = ""
    for piece in pieces:
        told += stops.push(piece)
        if stops.found:
            break
    return told + stops.flush()


@given(pieces=st.lists(ab), strings=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_what_is_told_is_the_text_up_to_the_first_stop_string(pieces: list[str], strings: list[str]) -> None:
    stops = Stops(strings)
    told = pushed(stops, pieces)
    text = "".join(pieces)
    ends = [at for string in strings if (at := text.find(string)) >= 0]
    assert told == text[: min(ends, default=None)]
    assert stops.found == bool(ends)


@example(told="a", pieces=["b", "b"], string="abb")
@given(told=ab, pieces=st.lists(ab), string=st.text("ab\n", min_size=1, max_size=4))
def test_one_may_begin_with_the_end_of_what_was_told_before(told: str, pieces: list[str], string: str) -> None:
    """If it was not within that: then it has been told."""
    kept = told[max(0, len(told) - len(string) + 1) :]
    more = pushed(Stops([string], kept), pieces)
    at = (kept + "".join(pieces)).find(string)
    assert more == ("".join(pieces) if at < 0 else "".join(pieces)[: max(0, at - len(kept))])


@pytest.mark.parametrize(
    ("strings", "pieces", "told"),
    [
        (["\n\n"], ["a", "\n", "b"], ["a", "", "\nb"]),
        (["\n\n"], ["a", "\n", "\nb"], ["a", "", ""]),
        (["User:"], ["So", "Us", "a"], ["So", "", "Usa"]),
        ([], ["a", "b"], ["a", "b"]),
        (["abc", "b"], ["xab"], ["xa"]),
    ],
)
def test_what_may_be_the_beginning_of_one_is_held_back(strings: list[str], pieces: list[str], told: list[str]) -> None:
    stops = Stops(strings)
    assert [stops.push(piece) for piece in pieces] == told
