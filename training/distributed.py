"""Training in several processes, which torchrun or `training.processes` started; NCCL or gloo.

The recipe's batch is shared out, so a recipe means the same training with any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.errors import TrainingError
from training.loading import Batch, Loader


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The processes of a run; `rank` is this one's number, 0 the one that writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wait(self) -> None:
        """Return once all processes are here."""
        if not self.is_alone:
            dist.barrier()

    def sum(self, *values: float) -> list[float]:
        """Return the sums of each process's values."""
        if self.is_alone:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            total = total.cuda()
        dist.all_reduce(total)
        return [float(one) for one in total]


ALONE = Team()


def is_in_team() -> bool:
    """Return whether this process is one of several that were started together."""
    return dist.is_torchelastic_launched()


@contextmanager
def join_team(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started, for as long as the block lasts; alone without it.

    Raises:
        TrainingError: the processes do not find each other.
    """
    if not is_in_team():
        yield ALONE
        return
    is_gpu = device != "cpu" and torch.cuda.is_available()
    try:
        dist.init_process_group("nccl" if is_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"torchrun's processes do not meet: {error}") from error
    try:
        rank = dist.get_rank()
        local_rank = rank % torch.cuda.device_count() if is_gpu else 0
        if is_gpu:
            torch.cuda.set_device(local_rank)
        yield Team(rank=rank, size=dist.get_world_size(), local_rank=local_rank)
    finally:
        dist.destroy_process_group()


class SharedLoader:
    """The part of each batch that is this process's; as large in each of them.

    For loaders whose batches are cheap; `StreamLoader` decodes only its own part.
    """

    def __init__(self, loader: Loader, team: Team) -> None:
        self._loader = loader
        self._team = team
        self.batches_per_epoch = loader.batches_per_epoch

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0."""
        for views, labels in self._loader.batches(epoch):
            size = len(labels) // self._team.size
            mine = slice(self._team.rank * size, (self._team.rank + 1) * size)
            yield views[mine], labels[mine]


def average_gradients(net: nn.Module, team: Team) -> None:
    """Set every gradient to its mean over all processes.

    In one message after the backward pass, not through DistributedDataParallel, whose hooks know
    neither parameters that rest for a while nor a batch in parts (docs/decisions.md).
    """
    _average([one.grad for one in net.parameters() if one.grad is not None], team)


def average_statistics(net: nn.Module, team: Team) -> None:
    """Set the running statistics of batch normalisation to their means over all processes."""
    _average([one for one in net.buffers() if one.is_floating_point()], team)


@torch.no_grad()
def _average(tensors: list[Tensor], team: Team) -> None:
    if team.is_alone or not tensors:
        return
    flat = torch.cat([one.flatten() for one in tensors])
    dist.all_reduce(flat)
    flat /= team.size
    means = torch.split(flat, [one.numel() for one in tensors])
    for one, mean in zip(tensors, means, strict=True):
        one.copy_(mean.view_as(one))
