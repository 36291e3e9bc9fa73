"""A training run on disk: everything that a resumed run, an export or a sample needs."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .model import Llama, ModelConfig

CURVE_COLUMNS = ("step", "tokens", "learning_rate", "train_loss", "valid_bits_per_byte", "seconds")


@dataclass
class Checkpoint:
    """The state of a run after ``step`` steps.

    ``tokens`` counts those learned from (padding is not), ``seconds`` the training time, and ``curve`` holds rows of
    ``CURVE_COLUMNS`` (bits per byte is None where it was not measured); ``losses`` those of the steps since the last
    row. ``options`` are the command's.
    """

    config: ModelConfig
    options: dict[str, Any]
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[tuple[Any, ...]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    model: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def bits_per_byte(self) -> float | None:
        """The last one measured."""
        measured = [row[CURVE_COLUMNS.index("valid_bits_per_byte")] for row in self.curve]
        return next((value for value in reversed(measured) if value is not None), None)

    def save(self, folder: Path) -> None:
        """Write ``folder/checkpoint.pt``: beside the old one first, so that a crash leaves one of them whole."""
        temporary = folder / "checkpoint.tmp"
        content = {**vars(self), "config": asdict(self.config)}
        torch.save(content, temporary)
        temporary.replace(folder / "checkpoint.pt")

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read ``folder/checkpoint.pt``; ``FileNotFoundError`` or ``ValueError`` if that cannot be done."""
        path = folder / "checkpoint.pt"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint; train first (python -m train.train)")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            return cls(**{**content, "config": ModelConfig(**content["config"])})
        except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path}: not a checkpoint of this program ({error})") from error

    def build_model(self) -> Llama:
        """The model with the checkpoint's weights, ready to evaluate."""
        model = Llama(self.config)
        model.load_state_dict(self.model)
        return model.eval()
