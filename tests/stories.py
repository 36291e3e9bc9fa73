"""Stories of the page beside those under wasmtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fabella.generate import Ending, Step, generate
from fabella.sampler import Settings

from .conftest import Visit
from .random_models import load

PROMPT = "Once upon a time"


def reference(model: Path, prompt: str, length: int, **settings: Any) -> list[Step]:
    """The same story under wasmtime, which ends, like the page's, when it has begun to loop."""
    engine, description = load(model)
    how, ending = Settings(**{"seed": 1, **settings}), Ending(length, loops=True)
    return list(generate(engine, description.tokenizer, prompt, how, ending=ending))


def assert_told(visit: Visit, expected: list[Step]) -> None:
    """The page has told this very story, token for token and letter for letter."""
    assert [step["token"] for step in visit.steps()] == [step.token for step in expected]
    assert visit.story.text_content() == "".join(step.text for step in expected)
