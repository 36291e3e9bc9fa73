"""Trainings in processes of their own, so small that they save after every step, for tests that end them."""

from __future__ import annotations

import random
from pathlib import Path

STORY = "One day, Lily took the {} to the {}. She lost it there, and Tom found it. The end.\n<|endoftext|>\n"
WORDS = ("ball", "kite", "boat", "drum", "park", "wood", "house", "river")
SHAPE = (
    "--vocab-size 300 --dim 32 --hidden-dim 32 --layers 1 --heads 2 --kv-heads 1 --context 64 --batch-tokens 256 "
    "--no-compile"
).split()
# Saves after every step, without drawing a curve, so that much of the time is spent in saving. Where PIDS is set, a
# file there, named after the process's rank, says which process it is.
PROGRAM = """
import os, sys, torch, train.announce, train.loop, train.train as t
torch.set_num_threads(1)
train.loop.keep_curve = lambda *_: None
t.SAVE_EVERY, train.announce.SAMPLE = -1, 8
if "PIDS" in os.environ:
    open(os.path.join(os.environ["PIDS"], os.environ["RANK"]), "w").write(str(os.getpid()))
sys.exit(t.main())
"""


def write_stories(path: Path) -> Path:
    """A text to train on; return its path."""
    rng = random.Random(1)
    path.write_text("".join(STORY.format(rng.choice(WORDS), rng.choice(WORDS)) for _ in range(120)))
    return path
