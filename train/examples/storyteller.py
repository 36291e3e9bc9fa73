"""SmolLM2 becomes a storyteller: an adapter of five megabytes, from a few thousand stories for small children.

    python -m train.examples.storyteller make out/stories.txt
    python -m train.finetune SmolLM2-135M-Instruct.Q4_1.gguf out/stories.txt --out out/teller --rounds 1 --rank 8
    python -m train.export out/teller --adapter -o out/teller.gguf
    python -m train.examples.storyteller measure SmolLM2-135M-Instruct.Q4_1.gguf --adapter out/teller.gguf

The stories are TinyStories (train/tinystories.py), of which 22 MB are downloaded, or any text of documents (--text).
What is measured is how well a model foretells the last stories of that text, which it has not learned from: the bits
that it needs for each byte. That needs no judge, and says how near it has come to how such stories are told.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fabella

from ..progress import Progress
from ..sources import END_OF_TEXT, read_documents
from .command import run_example

WHAT = "Write stories to learn from, or measure how well a model foretells others."
STORIES = 2600
MEASURED = 40  # the last of the text


def make(path: Path, text: Path) -> None:
    """Write the first stories of a text."""
    with open(path, "w", encoding="utf-8") as file:
        for story in read_documents(text)[:-MEASURED][:STORIES]:
            file.write(f"{story}\n{END_OF_TEXT}\n")


def measure(path: Path, adapter: Path | None, text: Path) -> None:
    """Print the bits per byte of a model on the last stories of a text."""
    stories = read_documents(text)[-MEASURED:]
    bits = 0.0
    with fabella.load(path, adapter=adapter) as model, Progress("measuring", len(stories), " stories") as progress:
        for story in stories:
            bits += model.perplexity(story) * len(story.encode())
            progress.update(1)
    print(f"{bits / sum(len(story.encode()) for story in stories):.3f} bits per byte on {len(stories)} stories")


def main() -> int:
    """The command line. Returns the exit status."""
    return run_example("storyteller", WHAT, make, measure, of_text=("make", "measure"))


if __name__ == "__main__":
    sys.exit(main())
