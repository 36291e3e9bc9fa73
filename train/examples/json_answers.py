"""SmolLM2 learns a fixed form of answer: JSON with four keys, from 300 examples.

    python -m train.examples.json_answers make out/people.jsonl
    python -m train.finetune SmolLM2-135M-Instruct.Q4_1.gguf out/people.jsonl --out out/people
    python -m train.export out/people --adapter -o out/people.gguf
    python -m train.examples.json_answers measure SmolLM2-135M-Instruct.Q4_1.gguf --adapter out/people.gguf

Each prompt is a sentence or two about somebody, who is to be written down as {"name", "age", "city", "likes"}. The
people to measure on have other names, other cities and other hobbies, and are told of in other sentences.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import fabella

from ..progress import Progress
from .command import run_example

WHAT = "Make the examples of JSON answers, or measure a model on others."
EXAMPLES = 300
PROMPTS = 60  # to measure on
KEYS = ("name", "age", "city", "likes")
ASKED = "Write this down as JSON with name, age, city and likes: "

TO_LEARN = {
    "name": "Anna Ben Clara David Elena Felix Greta Hugo Irene Jonas Karin Leo Maria Nils Olga Peter Rosa".split(),
    "city": "Athens Berlin Cairo Dublin Geneva Hanoi Istanbul Lima Madrid Nairobi Oslo Paris Quito Rome Seoul".split(),
    "likes": "chess cooking dancing fishing football gardening hiking music painting reading sailing tennis".split(),
    "sentences": [
        "{name} is {age} years old, lives in {city} and likes {likes}.",
        "{name} from {city} loves {likes}. Next year will be birthday number {next}.",
        "Meet {name}, {age}. Home is {city}, and the hobby is {likes}.",
        "At the age of {age}, {name} moved to {city} and discovered {likes}.",
        "In {city} there is someone called {name}, aged {age}, who spends every weekend on {likes}.",
        "{likes}, always {likes}: that is {name}, {age} years old, of {city}.",
        "My neighbour {name} is {age}. We live in {city}, and {likes} is all that counts for {name}.",
        "{name} turned {age} today. All friends in {city} brought presents to do with {likes}.",
    ],
}
TO_MEASURE = {
    "name": "Adam Bella Carlos Diana Emil Fatima George Helen Ivan Julia Kamal Laura Marco Nina Oscar".split(),
    "city": "Boston Chicago Denver Glasgow Helsinki Kyoto London Lyon Milan Mumbai Prague Sydney Tokyo Vienna".split(),
    "likes": "baking cycling drawing knitting photography rowing running singing skiing swimming writing".split(),
    "sentences": [
        "{name}, a {age}-year-old from {city}, is fond of {likes}.",
        "Everybody in {city} knows {name}: {age} years old and mad about {likes}.",
        "For {name}, who is {age} and lives in {city}, nothing is better than {likes}.",
        "{city} is where {name} lives. Aged {age}, {name} enjoys {likes}.",
    ],
}


def people(words: dict[str, list[str]], count: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """So many people: what is said of each, and what is to be written down."""
    rng = random.Random(seed)
    result = []
    for _ in range(count):
        person: dict[str, Any] = {key: rng.choice(words[key]) for key in ("name", "city", "likes")}
        person = {"name": person["name"], "age": rng.randint(18, 80), "city": person["city"], "likes": person["likes"]}
        sentence = rng.choice(words["sentences"]).format(**person, next=person["age"] + 1)
        result.append((ASKED + sentence[0].upper() + sentence[1:], person))
    return result


def make(path: Path) -> None:
    """Write the examples to learn from."""
    with open(path, "w", encoding="utf-8") as file:
        for prompt, person in people(TO_LEARN, EXAMPLES, seed=1):
            file.write(json.dumps({"prompt": prompt, "response": json.dumps(person)}) + "\n")


def measure(path: Path, adapter: Path | None) -> None:
    """Print how many of a model's answers are JSON with the four keys, and how many of the values are right."""
    formed = right = all_right = 0
    with fabella.load(path, adapter=adapter) as model, Progress("measuring", PROMPTS, " answers") as progress:
        for prompt, person in people(TO_MEASURE, PROMPTS, seed=2):
            answer = "".join(model.chat().say(prompt, temperature=0, length=80))
            try:
                found = json.loads(answer)
            except ValueError:
                found = None
            if isinstance(found, dict) and tuple(found) == KEYS:
                formed += 1
                right += sum(found[key] == person[key] for key in KEYS)
                all_right += found == person
            progress.update(1)
    print(
        f"{formed / PROMPTS:.0%} of the answers have the form; {right / PROMPTS / len(KEYS):.0%} of the values are "
        f"there and right, all four in {all_right / PROMPTS:.0%} of the answers"
    )


def main() -> int:
    """The command line. Returns the exit status."""
    return run_example("json_answers", WHAT, make, measure)


if __name__ == "__main__":
    sys.exit(main())
