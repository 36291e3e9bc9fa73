"""What a checkpoint holds: everything that a resumed run, an export or a sample needs. Where it lies: run.py."""

from __future__ import annotations

import io
import warnings
import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fabella.modelfile import Config

from . import explain
from .curve import CURVE_COLUMNS
from .files import Damaged
from .model import Llama
from .progress import say
from .run import ANOTHER_TOKENIZER, RunFolder

OTHER_VERSION = "was written by another version of this program"
TRAINING, FINE_TUNING = "training", "fine-tuning"
PROGRAMS = {TRAINING: "train.train", FINE_TUNING: "train.finetune"}


class OtherKind(ValueError):
    """A checkpoint is of another kind of run."""


@dataclass(kw_only=True)
class State:
    """The state of a run after ``step`` steps, whatever is trained.

    ``tokens`` counts those learned from (padding is not), ``seconds`` the training time, and ``curve`` holds rows of
    ``CURVE_COLUMNS`` (bits per byte is None where it was not measured); ``losses`` those of the steps since the last
    row. ``options`` are the command's. A round has ``round_tokens`` to learn from, and one of them spells
    ``bytes_per_token`` on average. ``model`` holds the weights that are learned, by their names.
    """

    kind: ClassVar[str]  # which of `PROGRAMS`

    options: dict[str, Any]
    round_tokens: int = 0
    bytes_per_token: float = 1.0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[tuple[Any, ...]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def measured(self) -> list[tuple[int, float]]:
        """The bits per byte of held-out text that were measured, as (tokens, bits per byte)."""
        tokens, value = (CURVE_COLUMNS.index(name) for name in ("tokens", "valid_bits_per_byte"))
        return [(row[tokens], row[value]) for row in self.curve if row[value] is not None]

    @property
    def bits_per_byte(self) -> float | None:
        """The last one measured."""
        return self.measured[-1][1] if self.measured else None

    def weights_of(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights of ``model`` that are learned."""
        return model.state_dict()

    def put(self, model: nn.Module) -> None:
        """Give ``model`` the weights that were learned."""
        model.load_state_dict(self.model)

    def save(self, folder: Path) -> None:
        """Save in a run's folder, beside the checkpoint so far. Raises ``OSError``; nothing was changed then."""
        RunFolder(folder).write_checkpoint(self._packed())

    def save_best(self, folder: Path) -> None:
        """Save, without what only a resumed run needs, as the best model so far. Raises ``OSError`` like `save`."""
        RunFolder(folder).write_best(replace(self, optimizers=[])._packed())

    def _packed(self) -> bytes:
        content = io.BytesIO()  # in memory: the disk's errors are then Python's own, and its checksum is known
        torch.save({"kind": self.kind, **self._stored()}, content)
        return content.getvalue()

    def _stored(self) -> dict[str, Any]:
        return vars(self)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What was saved last in a run's folder.

        Raises ``FileNotFoundError``, ``Damaged`` (found by its checksum, before anything else is read) or
        ``ValueError`` (of another version; ``OtherKind``).
        """
        return cls._unpack(RunFolder(folder).read_checkpoint(), RunFolder(folder).checkpoint)

    @classmethod
    def load_best(cls, folder: Path) -> Self:
        """The best model on held-out text; that of the last checkpoint where none was measured. Raises like `load`."""
        run = RunFolder(folder)
        return cls._unpack(run.read_best(), run.best) if run.best.exists() else cls.load(folder)

    @classmethod
    def _unpack(cls, content: bytes, path: Path) -> Self:
        stored = unpack(content, path)
        kind = stored.pop("kind", TRAINING)
        if kind != cls.kind and kind in PROGRAMS:
            use = f"use it with {PROGRAMS[kind]} --resume or train.export"
            raise OtherKind(f"{path}: is of a {kind}, not of a {cls.kind}; {use}")
        try:
            return cls._of(stored)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: {OTHER_VERSION} ({error})") from error

    @classmethod
    def _of(cls, stored: dict[str, Any]) -> Self:
        return cls(**stored)

    @classmethod
    def load_to_go_on(cls, folder: Path) -> Self:
        """Like `load`; in place of a damaged or missing checkpoint it takes the one before it, and says so."""
        try:
            return cls.load(folder)
        except Damaged as error:
            change = RunFolder(folder).restore_previous(error)
            run = cls.load(folder)
            say(f"{change}, of step {run.step:,}.")
            return run


@dataclass(kw_only=True)
class Checkpoint(State):
    """The state of a training.

    ``text_hash``, ``held_out_hash`` and ``tokenizer_hash`` say of what text and tokenizer the batches are made
    (SHA-256).
    """

    kind: ClassVar[str] = TRAINING

    config: Config
    text_hash: str = ""
    held_out_hash: str = ""
    tokenizer_hash: str = ""

    def _stored(self) -> dict[str, Any]:
        return {**vars(self), "config": asdict(self.config)}

    @classmethod
    def _of(cls, stored: dict[str, Any]) -> Self:
        return cls(**{**stored, "config": Config(**stored["config"])})

    def build_model(self) -> Llama:
        """The model with the checkpoint's weights, ready to evaluate."""
        model = Llama(self.config)
        self.put(model)
        return model.eval()


def unpack(content: bytes | Path, path: Path) -> dict[str, Any]:
    """What torch.save has written, by its names; nothing that is in it is run.

    ``content`` are the bytes of ``path``, or ``path`` itself: its tensors then stay on the disk until they are read.
    Raises ``OSError``, or ``ValueError`` if that is no such file, is damaged, or holds more than weights.
    """
    problem = f"{path}: is damaged, or holds more than weights"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch thinks of a damaged file is no help to anybody
            if isinstance(content, bytes):
                stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            else:
                mapped = zipfile.is_zipfile(content)  # files of before 2020 are none
                stored = torch.load(content, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # where a file is damaged, its unpickler stumbles over whatever is there
        raise ValueError(problem) from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise ValueError(f"{path}: holds no weights by their names")
    return stored


def check_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Raise ``ValueError`` if the tokenizer in the folder is not the one that the checkpoint was trained with."""
    run = RunFolder(folder)
    if run.hash_tokenizer() != checkpoint.tokenizer_hash:
        raise ValueError(
            f"{run.tokenizer}: is not the tokenizer that {run.checkpoint.name} was trained with; {ANOTHER_TOKENIZER}"
        )


if __name__ == "__main__":
    explain(__doc__)
