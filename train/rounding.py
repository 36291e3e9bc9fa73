"""Trains a model for the format that its file will have: quantisation-aware training.

A format of 4 bits stores no weight as it was learned. So for the last part of a training the model computes with its
matrices as the file will have them, and learns to live with that. Rounding has no gradient to speak of; the gradient of
a rounded weight is taken for that of the weight itself, which goes on moving between the steps of the format
("straight-through", Y. Bengio, N. Léonard, A. Courville, 2013, https://arxiv.org/abs/1308.3432). What is measured, from
the first measurement on, is the model as it will be stored.

A model that comes from such a file is rounded already, and what a fine-tuning changes of a weight is mostly less than
half a step of the format: rounded at last, nearly all of it would be undone. So a fine-tuning computes with rounded
weights from its first step on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fabella.formats import GROUP

from . import explain
from .quantize import BITS, WITH_MINIMUM

ROUND_FROM = 0.85  # the part of the token budget after which a model computes with rounded weights


def rounded(weights: Tensor, type: str) -> Tensor:
    """The F32 weights that ``dequantize(quantize(weights, type))`` gives, in the same shape, on the same device.

    ``type`` is one of `BITS`; a row must be a multiple of 32 weights.
    """
    groups = weights.float().reshape(-1, GROUP)
    bits = BITS[type]
    if type in WITH_MINIMUM:
        steps = (1 << bits) - 1
        lowest, highest = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        minimum, scale = _half(lowest), _half(highest / steps - lowest / steps)
        return (scale * _steps(groups - minimum, scale, 0, steps) + minimum).reshape(weights.shape)
    if bits == 8:
        scale = _half(groups.abs().amax(1, keepdim=True) / 127)
        return (scale * _steps(groups, scale, -127, 127)).reshape(weights.shape)
    half = 1 << (bits - 1)
    scale = _half(groups.gather(1, groups.abs().argmax(1, keepdim=True)) / -half)
    return (scale * _steps(groups, scale, -half, half - 1)).reshape(weights.shape)


def _half(values: Tensor) -> Tensor:
    """Scales are stored in F16."""
    return values.half().float()


def _steps(groups: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    return (groups / torch.where(scale == 0, torch.inf, scale)).round().clamp(low, high)


@contextmanager
def stored_as(model: nn.Module, type: str | None) -> Iterator[None]:
    """Between ``with`` and its end the model's matrices are as a file of this type has them; None: as they are.

    What goes forward in between must go backward there, too: the gradients are then those that go straight through.
    """
    matrices = [weight for weight in model.parameters() if weight.dim() == 2] if type else []
    kept = [weight.detach().clone() for weight in matrices]
    try:
        with torch.no_grad():
            for weight in matrices:
                weight.copy_(rounded(weight, type or ""))
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(matrices, kept, strict=True):
                weight.copy_(before)


if __name__ == "__main__":
    explain(__doc__)
