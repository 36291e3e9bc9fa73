"""What a checkpoint holds: everything that a resumed run, an export or a sample needs. Where it lies: run.py."""

from __future__ import annotations

import io
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fabella.modelfile import Config

from . import explain
from .curve import CURVE_COLUMNS
from .files import Damaged
from .model import Llama
from .progress import say
from .run import ANOTHER_TOKENIZER, RunFolder


@dataclass
class Checkpoint:
    """The state of a run after ``step`` steps.

    ``tokens`` counts those learned from (padding is not), ``seconds`` the training time, and ``curve`` holds rows of
    ``CURVE_COLUMNS`` (bits per byte is None where it was not measured); ``losses`` those of the steps since the last
    row. ``options`` are the command's; ``text_hash``, ``held_out_hash`` and ``tokenizer_hash`` say of what text and
    tokenizer the batches are made (SHA-256).
    """

    config: Config
    options: dict[str, Any]
    text_hash: str = ""
    held_out_hash: str = ""
    tokenizer_hash: str = ""
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
        """Save in a run's folder, beside the checkpoint so far. Raises ``OSError``; nothing was changed then."""
        content = io.BytesIO()  # in memory: the disk's errors are then Python's own, and its checksum is known
        torch.save({**vars(self), "config": asdict(self.config)}, content)
        RunFolder(folder).write_checkpoint(content.getvalue())

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """What was saved last in a run's folder.

        Raises ``FileNotFoundError``, ``Damaged`` (found by its checksum, before anything else is read) or
        ``ValueError`` (of another version).
        """
        content = RunFolder(folder).read_checkpoint()
        try:
            stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return cls(**{**stored, "config": Config(**stored["config"])})
        except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{RunFolder(folder).checkpoint}: was written by another version of this program ({error})"
            ) from error

    @classmethod
    def load_to_go_on(cls, folder: Path) -> Checkpoint:
        """Like `load`; in place of a damaged or missing checkpoint it takes the one before it, and says so."""
        try:
            return cls.load(folder)
        except Damaged as error:
            run = RunFolder(folder)
            if not run.previous.is_file():
                raise Damaged(f"{error}; there is none before it to go on from") from error
            try:
                change = run.restore_previous()
            except Damaged:
                problem = f"is damaged, and so is the one before it ({run.previous.name}); begin anew in another --out"
                raise Damaged(f"{run.checkpoint}: {problem}") from error
            checkpoint = cls.load(folder)
            say(f"{change}, of step {checkpoint.step:,}.")
            return checkpoint

    def build_model(self) -> Llama:
        """The model with the checkpoint's weights, ready to evaluate."""
        model = Llama(self.config)
        model.load_state_dict(self.model)
        return model.eval()


def check_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Raise ``ValueError`` if the tokenizer in the folder is not the one that the checkpoint was trained with."""
    run = RunFolder(folder)
    if run.hash_tokenizer() != checkpoint.tokenizer_hash:
        raise ValueError(
            f"{run.tokenizer}: is not the tokenizer that {run.checkpoint.name} was trained with; {ANOTHER_TOKENIZER}"
        )


if __name__ == "__main__":
    explain(__doc__)
