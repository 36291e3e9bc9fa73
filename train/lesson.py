"""What a training teaches: the next token of its text. distill.py has another lesson: what a teacher makes of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from torch import Tensor

from . import explain
from .checkpoint import Checkpoint
from .data import Tokens, batches
from .loop import MeanLoss, make_loss
from .model import Llama


class Lesson:
    """A text, taught as it is.

    A lesson says where batches come from and what the loss of one is; between the two, a batch is inputs and targets,
    [rows, T] each, where `PADDING` marks what is no target.
    """

    tokenizer: bytes | None = None  # the SentencePiece model that a new run gets; None: one is trained on the text

    def check(self, options: argparse.Namespace, run: Checkpoint) -> None:
        """Raise ``ValueError`` unless this lesson goes on with ``run``; fill in of ``options`` what it began with."""
        if "teacher" in run.options:
            raise ValueError(f"{options.out}: this run has a teacher; go on with train.distill --resume")

    def begin(self, options: argparse.Namespace, run: Checkpoint, tokens: Tokens) -> None:
        """Make ready all that the batches and the loss take."""

    def batches(
        self, tokens: Tokens, length: int, batch_tokens: int, seed: int, step: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches, beginning with that of ``step``; see `train.data.batches`."""
        return batches(tokens, length, batch_tokens, seed, step)

    def loss(self, model: Llama, compiled: bool) -> MeanLoss:
        """A module that maps a batch to the mean loss in nats per token."""
        return make_loss(model, compiled)


TEXT = Lesson()

if __name__ == "__main__":
    explain(__doc__)
