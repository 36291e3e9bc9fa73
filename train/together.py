"""Several processes that train one model together, as torchrun starts them: each learns from its share of every batch.

Their gradients are averaged by PyTorch's DistributedDataParallel. The first process (rank 0) alone measures, writes and
talks. Without torchrun there is one process, and everything here does nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn

from . import explain
from .progress import STREAM

T = TypeVar("T")
# While the first process reads the text, encodes it and has a teacher label it, the others wait. Where one is lost,
# torchrun ends all, however patient they are.
PATIENCE = timedelta(days=2)


def rank() -> int:
    """Which of the processes this is; 0 writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def ranks() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


@contextmanager
def together() -> Iterator[None]:
    """Meet the other processes that torchrun has started, if it has; all but the first are silent."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    if rank():
        STREAM.silent = True
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
    try:
        yield
    finally:
        with suppress(RuntimeError):  # another one may be gone
            distributed.destroy_process_group()


def from_first(value: T) -> T:
    """What the first process gives here, in all of them."""
    if ranks() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def total(values: list[float], device: torch.device) -> list[float]:
    """The sums over all processes."""
    if ranks() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    return sums.tolist()


def averaging(loss_of: nn.Module) -> nn.Module:
    """A module whose gradients become, in each backward pass, their average over all processes."""
    return loss_of if ranks() == 1 else nn.parallel.DistributedDataParallel(loss_of, forward_sync_buffers=False)


if __name__ == "__main__":
    explain(__doc__)
