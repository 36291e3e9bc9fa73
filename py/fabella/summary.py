"""What there is to say of a model before it is loaded: told by its file's header, in words and numbers for the page."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fabella.architectures import family_title, parameter_count
from fabella.errors import ModelFileError
from fabella.memory import cache_size, model_size, weights_size
from fabella.modelfile import ModelFile

MOST_MEMORY = 4 << 30  # bytes: what WebAssembly can address
MIXED = 0.5  # part of the bytes from which on a number format is the model's


def summary(model: ModelFile, size: int) -> dict[str, Any]:
    """Return the `Card` of web/messages.js, but for its id.

    Parameters
    ----------
    model
        What the file says.
    size
        Bytes of the file.

    Raises
    ------
    ModelFileError
        If its weights cannot be in memory.
    """
    config, card = model.config, model.card
    weights = weights_size(model.tensors.values())
    if weights >= MOST_MEMORY:
        raise ModelFileError(
            "size",
            f"its weights take {weights / 1e9:.1f} GB of memory, but there are {MOST_MEMORY / 1e9:.1f} GB at most",
        )
    return {
        "name": model.name,
        "title": card.title or None,
        "about": card.about or None,
        "beginnings": card.beginnings,
        "language": card.language or None,
        "settings": card.settings,
        "family": family_title(config),
        "quantization": _quantization(model),
        "bytes": size,
        "parameters": parameter_count(model.tensors),
        "context": config.seq_len,
        "vocab_size": config.vocab_size,
        "layers": config.n_layers,
        "dim": config.dim,
        "license": model.license or None,
        "chats": model.chat_template is not None,
        "memory": model_size(config, model.tensors),
        "memory_per_token": cache_size(config),
    }


def _quantization(model: ModelFile) -> str:
    """The number format of most of the file's weights, by their bytes."""
    sizes: Counter[str] = Counter()
    for tensor in model.tensors.values():
        sizes[tensor.type] += tensor.size
    ((type, most),) = sizes.most_common(1)
    return type if most > MIXED * sizes.total() else "mixed"
