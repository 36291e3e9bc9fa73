"""What the checkpoint of a fine-tuning holds, beside what every run's does (checkpoint.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor, nn

from . import explain
from .base import Base, load_base
from .checkpoint import FINE_TUNING, OtherKind, State
from .lora import add_lora, load_lora_weights, lora_weights
from .model import Llama


@dataclass(kw_only=True)
class FineTuning(State):
    """The state of a fine-tuning.

    What it learns are the weights of an adapter (lora.py) or, if ``options["full"]``, of the whole model. ``base`` is
    the path of the model that it began with, ``base_hash`` says which that was, and ``examples_hash`` of what examples
    the batches are made (SHA-256).
    """

    kind: ClassVar[str] = FINE_TUNING

    base: str
    base_hash: str
    examples_hash: str = ""
    before: float | None = None  # bits per byte on the held-out examples, before it learned any

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """The best weights of a fine-tuning; None if there are none, or another run's. Otherwise raises as `load`."""
        try:
            return cls.load_best(folder)
        except (FileNotFoundError, OtherKind):
            return None

    def load_base(self, given: Path | None) -> Base:
        """The model it began with, for an export. Raises ``ValueError`` if it is another now, and as `load_base`."""
        path = given or Path(self.base)
        if not path.exists():
            raise FileNotFoundError(f"{path}: the model that was fine-tuned is not there; say with --base where it is")
        base = load_base(path)
        self.check(base)
        return base

    def check(self, base: Base) -> None:
        """Raise ``ValueError`` if it did not begin with this model."""
        if base.hash != self.base_hash:
            raise ValueError(f"{base.path}: is not the model that was fine-tuned, or has changed since")

    def prepare(self, model: Llama) -> None:
        """Make ``model``, as it was before, one of which this fine-tuning learns; its weights stay as they are."""
        if not self.options["full"]:
            add_lora(model, self.options["rank"], self.options["alpha"], tuple(self.options["matrices"]))

    def weights_of(self, model: nn.Module) -> dict[str, Tensor]:
        return super().weights_of(model) if self.options["full"] else lora_weights(model)

    def put(self, model: nn.Module) -> None:
        if self.options["full"]:
            super().put(model)
        else:
            load_lora_weights(model, self.model)


if __name__ == "__main__":
    explain(__doc__)
