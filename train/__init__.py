"""Offline training in PyTorch: data, tokenizer, model, train, evaluate, sample, export. Begin with model.py."""

import sys
from pathlib import Path

# The driver need not be installed: its source beside this folder is enough.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "py"))
