"""How texts begin that a model tells by itself: what a page around it offers, unless somebody has said better."""

from __future__ import annotations

from fabella.errors import EngineError, short_text
from fabella.generate import generate
from fabella.sampler import Settings
from fabella.tokenizer import Tokenizer

from . import explain
from .model import Llama
from .sample import TorchModel

COUNT = 4
TRIES = 12  # texts begun, of which some may be the same
TOKENS = 16  # of each
WORDS = 8  # of each, at most


def own_beginnings(model: Llama, tokenizer: Tokenizer) -> list[str]:
    """The first words of a few texts that ``model`` tells when nothing is given: up to four, each another, one line.

    They are seeded: the same model begins in the same ways. A model that tells nothing has none.
    """
    found: list[str] = []
    for seed in range(1, TRIES + 1):
        settings = Settings(temperature=0.8, top_p=0.9, seed=seed)
        try:
            steps = list(generate(TorchModel(model), tokenizer, "", settings, min(TOKENS, model.config.seq_len)))
        except EngineError:  # its numbers are not finite: exporting says so
            return []
        words = short_text("".join(step.text for step in steps)).split()
        if len(words) > 1 and steps[-1].end != "end":
            del words[-1]  # it may be cut
        beginning = " ".join(words[:WORDS])
        if beginning and "\ufffd" not in beginning and beginning not in found:  # (bytes that are no character)
            found.append(beginning)
        if len(found) == COUNT:
            break
    return found


if __name__ == "__main__":
    explain(__doc__)
