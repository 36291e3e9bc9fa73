"""Notes what PyTorch tells with a model, for the page's self-test (py/fabella/selftest.py).

    python -m train.reference web/models/stories.gguf     writes web/models/stories.torch.json

The model's weights, in whatever format they are stored, become F32, exactly, and PyTorch goes on with a few texts,
always by the likeliest token. The build takes the file along with the model beside which it lies.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from fabella.console import run_command
from fabella.selftest import weights_hash
from fabella.sources import FileSource

from .load import load_gguf
from .model import Llama

PROMPTS = ("Once upon a time, there was a little fox", "Lily and her mom went to", 'The dragon said, "I')
TOKENS = 64  # of a story, the prompt's included


def story_of(model: Llama, prompt: list[int], tokens: int = TOKENS) -> list[int]:
    """Return the prompt and what PyTorch goes on with it, greedily, each time reading all that is there."""
    story = list(prompt)
    with torch.no_grad():
        while len(story) < tokens:
            story.append(int(model(torch.tensor([story]))[0, -1].argmax()))
    return story


def reference_of(path: Path) -> dict[str, Any]:
    """Return a model's .torch.json: ``{"weights", "torch", "stories": [{"prompt", "given", "tokens"}, …]}``."""
    model, file = load_gguf(path)
    stories = []
    for prompt in PROMPTS:
        given = file.tokenizer.encode(prompt)
        stories.append({"prompt": prompt, "given": len(given), "tokens": story_of(model, given)})
    with FileSource(path) as source:
        weights = weights_hash(source, file)
    return {"weights": weights, "torch": torch.__version__.partition("+")[0], "stories": stories}


def main() -> None:
    """Write the file beside the model that the command line names."""
    parser = argparse.ArgumentParser(prog="train.reference", description="Note what PyTorch tells with a model.")
    parser.add_argument("model", type=Path, help="GGUF file of a plain Llama")
    path = parser.parse_args().model
    target = path.with_suffix(".torch.json")
    target.write_text(json.dumps(reference_of(path)) + "\n", encoding="utf-8")
    print(f"Wrote {target}.")


if __name__ == "__main__":
    sys.exit(run_command("train.reference", main))
