"""Fabella: run small Llama models, in a web page, a terminal or a program, with the same tokens everywhere.

An example::

    import fabella

    with fabella.load("stories.gguf") as model:
        for piece in model.tell("Once upon a time", temperature=0.8, seed=1):
            print(piece, end="")

The parts, in the order in which a token meets them: a model file is read by :mod:`fabella.gguf` (or
:mod:`fabella.llama2c`), text becomes tokens in :mod:`fabella.tokenizer`, :mod:`fabella.engine` has C compute the
logits inside ``run.wasm``, :mod:`fabella.sampler` picks the next token, and :mod:`fabella.generate` goes round;
:mod:`fabella.chat` makes conversations of it. :mod:`fabella.model` is the door to all this, and :mod:`fabella.look`
shows it at work: why this token, and what goes on inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabella.model import Chat, Model, load

__all__ = ["Chat", "Model", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Get what the door is made of when it is asked for: the page has one of its own."""
    if name not in ("Chat", "Model", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fabella import model

    return getattr(model, name)
