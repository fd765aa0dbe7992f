"""Several processes that train one network together. torchrun starts them; gloo or NCCL connects them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, which its default arguments would hold
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.datasets import Dataset, Split
from training.errors import RunError
from training.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The position of this process among those that train together.

    With a count of 1, every method returns its argument unchanged.

    Attributes:
        number: Rank of this process, from 0. Rank 0 writes the run and prints.
        count: Number of processes.
    """

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes the run and prints."""
        return self.number == 0

    @property
    def share(self) -> slice:
        """The images of a batch or split that this process works on: every count-th one."""
        return slice(self.number, None, self.count)

    def take_share(self, split: Split) -> Split:
        """Select the images of a split that this process works on."""
        return Split(split.images[self.share], split.targets[self.share])

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that its gradients are averaged over all processes.

        All processes get the weights of the first one.
        """
        if self.count == 1:
            return network
        return DistributedDataParallel(network, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place. All processes get the same bits."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def average_buffers(self, network: nn.Module) -> None:
        """Replace the floating-point buffers of a network by their mean over all processes.

        Equal buffers keep their bits: a sum in float64 is not rounded.
        """
        for buffer in network.buffers():
            if buffer.is_floating_point() and self.count > 1:
                buffer.copy_(self.sum(buffer.double()) / self.count)

    def copy_first(self, network: nn.Module) -> None:
        """Copy the weights and buffers of the first process to all others."""
        if self.count > 1:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, 0)

    def broadcast(self, value: T) -> T:
        """Send a value of the first process to all others.

        Args:
            value: The value to send; ignored in all processes but the first. It must be picklable.

        Returns:
            The value of the first process.
        """
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Collect one picklable value from every process, in the order of the ranks."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


def check_ranks(ranks: Ranks, recipe: Recipe, dataset: Dataset) -> None:
    """Check that every process gets at least two images of each batch, and one to validate and to test.

    Args:
        ranks: The processes.
        recipe: Decides the size of a batch.
        dataset: The data set to train on.

    Raises:
        RunError: There are too many processes.
    """
    batch, val, test = min(recipe.batch_size, len(dataset.train)), len(dataset.val), len(dataset.test)
    limit = max(min(batch // 2, val, test), 1)
    if ranks.count > limit:
        raise RunError(
            f"{ranks.count} processes are too many for batches of {batch} images, {val} to validate and {test} to "
            f"test: at most {limit}"
        )


@contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the process group if torchrun started this process, and leave it at the end.

    Gloo's threads end with the last reference to the group. A group that lives until Python exits can abort the
    process. Nothing may therefore hold the group at the end of the block: no default argument, and no network that
    `Ranks.wrap` returned.

    Args:
        device: The device to train on. Each process of a machine with several GPUs takes its own.

    Yields:
        The position of this process; ``ALONE`` without torchrun.
    """
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    except BaseException as error:
        _clear_frames(error)
        raise
    finally:
        dist.destroy_process_group()


def _clear_frames(error: BaseException | None) -> None:
    """Free the local variables of all frames that an error passed through."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
