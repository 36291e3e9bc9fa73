"""Reads models into PyTorch: the one room that does, whatever they are stored in."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor

from fabella.architectures import expected_shapes
from fabella.config import Config, Tensor
from fabella.errors import FabellaError, ModelFileError, short_text
from fabella.formats import STORED
from fabella.gguf import read_gguf
from fabella.modelfile import ModelFile
from fabella.sources import FileSource
from fabella.tokenizer import Tokenizer

from . import explain
from .checkpoint import Checkpoint, check_tokenizer
from .huggingface import CONFIG, open_huggingface
from .model import Llama
from .portable import Weights
from .quantize import read_weights
from .run import RunFolder
from .tokenizer import as_tokenizer, load_tokenizer


def load_model(path: Path) -> tuple[Llama, Tokenizer]:
    """The model and tokenizer of a run folder or of a GGUF file."""
    if path.is_dir():
        run, tokenizer = load_run(path)
        return run.build_model(), as_tokenizer(tokenizer)
    model, file = load_gguf(path)
    return model, file.tokenizer


def load_gguf(path: Path) -> tuple[Llama, ModelFile]:
    """Build the model from a GGUF file, its weights dequantised, and return it with what the file says.

    Raises ``OSError``, or ``FabellaError``, which names the file and the field, if it is not a usable model.
    """
    with naming(path), FileSource(path) as source:
        file = read_gguf(source)
        check_plain(file.config, file.tensors)
        weights = {name: torch.from_numpy(read_weights(source, tensor)) for name, tensor in file.tensors.items()}
    return _build(file.config, weights), file


def load_huggingface(folder: Path) -> tuple[Llama, ModelFile]:
    """The same of a Hugging Face folder; of the file that it is no longer, no places of tensors are known."""
    with naming(folder), open_huggingface(folder) as portable:
        config = portable.config()
        check_plain(config, portable.tensors)
        weights = {name: torch.from_numpy(tensor.read()) for name, tensor in portable.tensors.items()}
        name = short_text(portable.metadata["general.name"])
        file = ModelFile(name, config, {}, portable.tokenizer(), portable.metadata)
    return _build(config, weights), file


def _build(config: Config, weights: dict[str, torch.Tensor]) -> Llama:
    model = Llama(config)
    model.load_state_dict(weights)
    return model.eval()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have what is wrong with a model's file say which file it is: a ``ModelFileError`` becomes a ``FabellaError``."""
    try:
        yield
    except ModelFileError as error:
        raise FabellaError(f"{path}: {error}") from error


def check_plain(c: Config, tensors: Mapping[str, Tensor] | Mapping[str, Weights]) -> None:
    """Raise ``ModelFileError`` unless a model is what model.py is, a plain Llama, and its weights can be read here."""
    plain = Config(
        c.dim,
        c.hidden_dim,
        c.n_layers,
        c.n_heads,
        c.n_kv_heads,
        c.vocab_size,
        c.seq_len,
        c.rope_base,
        c.norm_eps,
        c.tied,
    )
    if c != plain or tensors.keys() != expected_shapes(c).keys():
        raise ModelFileError(
            "general.architecture",
            f"this is no plain Llama but one of the family {c.family} with more to it: only the "
            "page and `python -m fabella` can run it",
        )
    for name, tensor in tensors.items():
        if tensor.type not in (*STORED, "I8"):
            raise ModelFileError(
                name, f"is of type {tensor.type}: only {', '.join(STORED)} weights can be read in torch"
            )


def check_own(folder: Path) -> None:
    """Raise ``ValueError`` if a folder is another program's."""
    if (folder / CONFIG).exists():
        command = f"python -m train.convert {shlex.quote(str(folder))} -o base.gguf"
        raise ValueError(f"{folder}: is a Hugging Face folder; make one file of it first: {command}")


def load_run(folder: Path) -> tuple[Checkpoint, SentencePieceProcessor]:
    """The best model in a run's folder and its tokenizer; ``ValueError`` if these two do not belong together."""
    check_own(folder)
    checkpoint = Checkpoint.load_best(folder)
    check_tokenizer(checkpoint, folder)
    return checkpoint, load_tokenizer(RunFolder(folder).tokenizer)


def hash_model(model: Llama) -> str:
    """The SHA-256 of a model's numbers."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, weights in model.state_dict().items():
        digest.update(name.encode() + weights.numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    explain(__doc__)
