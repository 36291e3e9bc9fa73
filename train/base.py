"""The model that a fine-tuning begins with: a GGUF file, a Hugging Face folder, or that of one of our own runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabella.chat import template_of
from fabella.template import ChatTemplate
from fabella.tokenizer import Tokenizer

from . import explain
from .huggingface import CONFIG
from .load import hash_model, load_gguf, load_huggingface, load_run
from .model import Llama
from .run import RunFolder
from .tokenizer import as_tokenizer

TEMPLATE = "tokenizer.chat_template"
TRAINING = "fabella.training."  # how long it was trained and how good it was: no more true of what it becomes


@dataclass(frozen=True)
class Base:
    """A model to fine-tune, and what belongs to it."""

    path: Path
    name: str
    model: Llama
    tokenizer: Tokenizer
    template: ChatTemplate | None
    about: dict[str, Any]  # of its metadata what an export keeps: its words, its licence, its chat template
    hash: str  # SHA-256 of its file, or of its numbers


def load_base(path: Path) -> Base:
    """Load a base, its weights dequantised. Raises ``OSError``, ``ValueError`` or ``FabellaError``, in words."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir() and not (path / CONFIG).is_file():
        folder = RunFolder(path)
        run, tokenizer = load_run(path)
        name = path.resolve().name.encode("utf-8", "replace").decode()
        hash = hash_file(folder.best if folder.best.exists() else folder.checkpoint)
        return Base(path, name, run.build_model(), as_tokenizer(tokenizer), None, {"general.name": name}, hash)
    if path.is_dir():
        model, described = load_huggingface(path)
        hash = hash_model(model)
    else:
        hash = hash_file(path)
        model, described = load_gguf(path)
    kept = ("general.name", "general.license", TEMPLATE)
    about = {
        key: value
        for key, value in described.metadata.items()
        if key in kept or (key.startswith("fabella.") and not key.startswith(TRAINING))
    }
    template = None if described.chat_template is None else template_of(described)
    return Base(path, described.name or path.stem, model, described.tokenizer, template, about, hash)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    explain(__doc__)
