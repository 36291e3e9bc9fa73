"""What a model file says, whatever its format: the model's shape, where its tensors lie, its tokenizer.

`gguf.py` and `llama2c.py` each turn a file into a `ModelFile`; `engine.py` knows only this description.
Tensors have the names that GGUF gives them, and a matrix of shape (rows, cols) maps a vector of `cols` numbers
to `rows` numbers; its rows lie one after the other in the file.

Whoever works with model files finds here what goes with them, too: Config, the shapes of its tensors, where bytes are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fabella.architectures import expected_shapes, parameter_count
from fabella.card import Card
from fabella.config import LARGEST, Config, Tensor
from fabella.errors import short_text
from fabella.sources import ByteSource, BytesSource, FileSource

if TYPE_CHECKING:
    from fabella.tokenizer import Tokenizer

__all__ = [
    "LARGEST",
    "ByteSource",
    "BytesSource",
    "Config",
    "FileSource",
    "ModelFile",
    "Tensor",
    "expected_shapes",
    "parameter_count",
]


@dataclass(frozen=True)
class ModelFile:
    """All that is known of a model once its file has been read and checked; the weights stay in the file."""

    name: str  # what the file calls itself, as short text; may be empty
    config: Config
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer
    # GGUF's key/value pairs as they are, but for large ones that nothing needs; empty for llama2.c files.
    metadata: dict[str, Any]
    card: Card = field(default_factory=Card)  # its words for those who meet it

    @property
    def license(self) -> str:
        """The licence that the file names, as short text; empty if it names none."""
        return short_text(self.metadata.get("general.license", ""))

    @property
    def chat_template(self) -> str | None:
        """How the model wants conversations to be written down; None if it is not made for them."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None
