"""LoRA: teach a large model something new by learning a few small matrices beside its own.

A matrix W of the model maps x to W x. LoRA leaves W as it is and adds the product of two narrow matrices:

    y = W x + scale * B (A x)            A [rank, columns of W], B [rows of W, rank], scale = alpha / rank

A begins as small random numbers and B as zeros, so the model begins as it was. Only A and B are learned: with a rank
of 4, a matrix of 576 x 1536 has 885,000 weights, its A and B have 8,400. They are the *adapter*, which can be kept
apart from the model, switched on and off, or merged into it: W + scale * B A is a matrix like any other.

A larger rank can learn more; ``alpha`` sets how loud the adapter speaks, so that the rank can be changed while the
learning rate stays. (Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import explain
from .model import Llama

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")  # of each block


class LoRA(nn.Module):
    """A matrix of a model, which stays as it is, and the two beside it that are learned."""

    def __init__(self, matrix: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.matrix = matrix
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, matrix.in_features))
        self.b = nn.Parameter(torch.zeros(matrix.out_features, rank))
        bound = 1 / math.sqrt(matrix.in_features)
        nn.init.uniform_(self.a, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:  # [..., columns] -> [..., rows]
        return self.matrix(x) + self.scale * F.linear(F.linear(x, self.a), self.b)

    def merged(self) -> nn.Linear:
        """The matrix that computes the same alone."""
        with torch.no_grad():
            self.matrix.weight += self.scale * self.b @ self.a
        return self.matrix


def add_lora(model: Llama, rank: int, alpha: float, matrices: tuple[str, ...] = MATRICES) -> None:
    """Put a `LoRA` in the place of the named matrices of every block; nothing else is learned from then on."""
    model.requires_grad_(False)
    for block in model.blk:
        for name in matrices:
            setattr(block, name, LoRA(getattr(block, name), rank, alpha))


def merge_lora(model: Llama) -> None:
    """Make a plain model of one with LoRAs, which computes the same."""
    for block in model.blk:
        for name, module in list(block.named_children()):
            if isinstance(module, LoRA):
                setattr(block, name, module.merged())


def loras(model: nn.Module) -> Iterator[tuple[str, LoRA]]:
    """Each LoRA of a model, by the GGUF name of its matrix: ``blk.0.attn_q.weight``."""
    for name, module in model.named_modules():
        if isinstance(module, LoRA):
            yield f"{name}.weight", module


def lora_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of all LoRAs, by the names that GGUF gives them: ``blk.0.attn_q.weight.lora_a`` and ``.lora_b``."""
    return {f"{name}.lora_{part}": getattr(lora, part).detach() for name, lora in loras(model) for part in "ab"}


def load_lora_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set what `lora_weights` returns of a model with the same LoRAs."""
    with torch.no_grad():
        for name, weight in lora_weights(model).items():
            weight.copy_(weights[name])


if __name__ == "__main__":
    explain(__doc__)
