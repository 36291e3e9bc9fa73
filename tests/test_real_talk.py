"""SmolLM2 on the page: a conversation token for token that of `python -m fabella chat`, and a second visit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from builder.tools import ROOT

from .conftest import Site, Visit
from .real_models import SMOLLM2, real_model
from .test_talk import Talk

TURNS = ("Hi! Who are you?", "What is the capital of France?", "And of Italy?", "Which is larger?", "Thank you.")
LENGTH, SEED = 24, 7


@pytest.fixture(scope="module")
def site(built: Callable[[Path], Path]) -> Iterator[Site]:
    site = Site(built(real_model(SMOLLM2)))
    yield site
    site.close()


def in_terminal(*lines: str) -> str:
    """What `python -m fabella chat` answers."""
    command = [sys.executable, "-m", "fabella", "chat", str(real_model(SMOLLM2)), "-n", str(LENGTH), "-s", str(SEED)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "py"), "PYTHONIOENCODING": "utf-8"}
    text = "".join(f"{line}\n" for line in lines)
    return subprocess.run(
        command, input=text, capture_output=True, encoding="utf-8", env=environment, check=True
    ).stdout


def test_a_conversation_is_that_of_the_terminal(visit: Visit, site: Site) -> None:
    """Five turns, an answer told again, a turn said otherwise; and all of it there on a second visit."""
    talk = Talk(visit.open(site))
    visit.setting("Seed").fill(str(SEED))
    visit.setting("Length").fill(str(LENGTH))
    answers = [talk.say(text) for text in TURNS]
    assert "".join(f"{answer}\n" for answer in answers) == in_terminal(*TURNS)
    assert [step["token"] for step in visit.steps() if not step["from_prompt"]], "tokens, not only texts"

    talk.press(9, "Again")
    assert talk.answer() == answers[-1], "the same seed answers the same"
    talk.press(2, "Edit")
    visit.page.get_by_role("textbox", name="What you say instead").fill("And of Spain?")
    visit.page.keyboard.press("Enter")
    edited = talk.answer()
    assert f"{answers[0]}\n{edited}\n" == in_terminal(TURNS[0], "And of Spain?")

    downloads = [path for path in site.requests if path.endswith(".gguf")]
    visit.page.reload()
    visit.awake()
    assert [path for path in site.requests if path.endswith(".gguf")] == downloads, "the model was kept"
    expect(talk.turns).to_have_count(4)
    talk.answered = 0
    talk.press(2, "The question before")
    expect(talk.turns).to_have_count(10)
