"""What the checkpoint of a fine-tuning holds: what was learned, and all that a resumed one or an export needs.

It lies in a folder like that of a training (run.py), with the same care for what is on the disk.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import explain
from .base import Base, load_base
from .checkpoint import OTHER_VERSION, unpack
from .files import Damaged
from .lora import add_lora, load_lora_weights, lora_weights
from .model import Llama
from .progress import say
from .run import RunFolder

KIND = "fine-tuning"


@dataclass
class FineTuning:
    """The state of a fine-tuning after ``step`` steps.

    ``weights`` are those learned last and ``best`` those of ``best_bits``, the least bits per byte on the held-out
    examples: of an adapter (lora.py), or, if ``options["full"]``, of the whole model. ``examples_hash`` says of what
    examples the batches are made, ``base_hash`` what model it began with (SHA-256).
    """

    options: dict[str, Any]
    base: str
    base_hash: str
    examples_hash: str = ""
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[tuple[Any, ...]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the steps since the curve's last row
    best_bits: float | None = None
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: RunFolder) -> None:
        """Save in the run's folder, beside the checkpoint so far. Raises ``OSError``; nothing was changed then."""
        content = io.BytesIO()
        torch.save({"kind": KIND, **vars(self)}, content)
        folder.write_checkpoint(content.getvalue())

    @classmethod
    def load(cls, folder: RunFolder) -> FineTuning:
        """What was saved last. Raises ``OSError``, or ``ValueError`` if it is damaged or no fine-tuning's."""
        stored = unpack(folder.read_checkpoint(), folder.checkpoint)
        if stored.get("kind") != KIND:
            raise ValueError(f"{folder.checkpoint}: is of a training (train.train), not of a fine-tuning")
        return cls._of(stored, folder)

    @classmethod
    def find(cls, folder: RunFolder) -> FineTuning | None:
        """Like `load`, but None if nothing can be read there but a best model, or something else's checkpoint."""
        try:
            stored = unpack(folder.read_checkpoint(), folder.checkpoint)
        except Damaged:
            if folder.best.exists():  # a training's, which can be exported
                return None
            raise
        except (OSError, ValueError):
            return None
        return cls._of(stored, folder) if stored.get("kind") == KIND else None

    @classmethod
    def _of(cls, stored: dict[str, Any], folder: RunFolder) -> FineTuning:
        try:
            return cls(**{name: value for name, value in stored.items() if name != "kind"})
        except TypeError as error:
            raise ValueError(f"{folder.checkpoint}: {OTHER_VERSION} ({error})") from error

    @classmethod
    def load_to_go_on(cls, folder: RunFolder) -> FineTuning:
        """Like `load`; in place of a damaged or missing checkpoint it takes the one before it, and says so."""
        try:
            return cls.load(folder)
        except Damaged as error:
            change = folder.restore_previous(error)
            run = cls.load(folder)
            say(f"{change}, of step {run.step:,}.")
            return run

    def load_base(self, given: Path | None = None) -> Base:
        """The model it began with. Raises ``ValueError`` if the file is another one now, and as `load_base` does."""
        path = given or Path(self.base)
        if not path.exists():
            raise FileNotFoundError(f"{path}: the model that was fine-tuned is not there; say with --base where it is")
        base = load_base(path)
        if base.hash != self.base_hash:
            raise ValueError(f"{path}: is not the model that was fine-tuned, or has changed since")
        return base

    def prepare(self, model: Llama) -> None:
        """Make ``model``, as it was before, one of which this fine-tuning learns; its weights stay as they are."""
        if not self.options["full"]:
            add_lora(model, self.options["rank"], self.options["alpha"], tuple(self.options["matrices"]))

    def weights_of(self, model: Llama) -> dict[str, Tensor]:
        """The weights of ``model`` that are learned."""
        return dict(model.state_dict()) if self.options["full"] else lora_weights(model)

    def put(self, model: Llama, weights: dict[str, Tensor]) -> None:
        """Give ``model`` the weights that were learned."""
        if self.options["full"]:
            model.load_state_dict(weights)
        else:
            load_lora_weights(model, weights)


if __name__ == "__main__":
    explain(__doc__)
