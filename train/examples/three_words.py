"""The story model learns to obey: it is given three words, and begins a story with them in it.

    python -m train.examples.three_words make out/words.jsonl --text train.txt.xz
    python -m train.finetune web/models/stories.gguf out/words.jsonl --out out/words --full --rounds 1 \
        --learning-rate 1e-3 --batch-tokens 4096 --context 200
    python -m train.export out/words -o out/words.gguf
    python -m train.examples.three_words measure out/words.gguf

It learns from the beginnings of TinyStories (train/tinystories.py), of which 22 MB are downloaded, or of any text of
documents (--text). Of each beginning, three words that are not among the most frequent become the prompt, in the order
in which it has them. Of a whole story they would be one token in seventy, and a small model does not learn from so few
to look back at what was asked. What is measured is how many of the given words are in the model's stories, for sets of
three that are put together at random.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import fabella

from ..progress import Progress
from ..sources import documents_of
from .command import run_example

WHAT = "Make stories behind three of their words, or measure whether a model obeys such words."
STORIES = 50_000  # at most
BEGINNING = 360  # characters at most
LENGTH = 220  # tokens of prompt and story at most
COMMON = 150  # so many of the most frequent words are given to nobody
RARE = 8  # nor are words of fewer stories than this
PROMPTS = 100  # to measure on


def prompt_of(words: list[str]) -> str:
    """What the model is asked with."""
    return f"Words: {', '.join(words)}. Story:"


def words_in(text: str) -> list[str]:
    """The words of a text in its order, each once, without regard to capitals."""
    return list(dict.fromkeys(re.findall(r"[a-z]{3,}", text.lower())))


def beginning_of(story: str) -> str:
    """A story's first sentences, as many as `BEGINNING` characters hold; nothing, if the first is longer."""
    found = re.match(rf"(?s).{{1,{BEGINNING - 1}}}[.!?\"](?=\s|$)", story)
    return found[0] if found else ""


def make(path: Path, text: Path) -> None:
    """Write the beginnings of a text's stories down, each behind three words of its own."""
    beginnings = [first for story in islice(documents_of(text), STORIES) if (first := beginning_of(story))]
    counts = Counter(word for beginning in beginnings for word in words_in(beginning))
    common = {word for word, _ in counts.most_common(COMMON)}
    rng = random.Random(1)
    with open(path, "w", encoding="utf-8") as file:
        for beginning in beginnings:
            words = [word for word in words_in(beginning) if word not in common and counts[word] >= RARE]
            if len(words) >= 3:
                chosen = [words[place] for place in sorted(rng.sample(range(len(words)), 3))]
                file.write(json.dumps({"prompt": prompt_of(chosen), "response": f" {beginning}"}) + "\n")


def held_out_words() -> list[list[str]]:
    """Sets of three words to measure on."""
    things = "apple ball boat bread cake drum duck flower frog garden hat kite moon rabbit rain river snow".split()
    doings = "climb dance dig draw fly hide jump laugh paint run share sing sleep swim throw wash whisper wish".split()
    manners = "angry brave cold dark funny gentle green hungry lonely loud proud quiet red shiny soft tiny warm".split()
    rng = random.Random(2)
    return [[rng.choice(things), rng.choice(doings), rng.choice(manners)] for _ in range(PROMPTS)]


def measure(path: Path, adapter: Path | None) -> None:
    """Print how many of the given words a model's stories have: themselves, or with an ending, as *jumped* has jump."""
    found = all_three = 0
    with fabella.load(path, adapter=adapter) as model, Progress("measuring", PROMPTS, " stories") as progress:
        for seed, words in enumerate(held_out_words(), 1):
            prompt = prompt_of(words)
            told = "".join(model.tell(prompt, temperature=0.7, seed=seed, length=LENGTH, loops=True))
            said = words_in(told.removeprefix(prompt))
            there = sum(any(word.startswith(given) for word in said) for given in words)
            found += there
            all_three += there == 3
            progress.update(1)
    print(f"{found / (3 * PROMPTS):.0%} of the given words are in the stories, all three in {all_three / PROMPTS:.0%}")


def main() -> int:
    """The command line. Returns the exit status."""
    return run_example("three_words", WHAT, make, measure, of_text=("make",))


if __name__ == "__main__":
    sys.exit(main())
