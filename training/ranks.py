"""Several processes that train one network, each a rank: torchrun starts them, gloo or NCCL joins them."""

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

from training.datasets import Split

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. Alone, every method hands back what it was given.

    Attributes:
        number: of this process, from 0; the first one writes and speaks.
        count: processes.
    """

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.number == 0

    @property
    def share(self) -> slice:
        """Which of the images of a batch or a split are this process's: every count-th."""
        return slice(self.number, None, self.count)

    def take_share(self, split: Split) -> Split:
        """This process's images of a split."""
        return Split(split.images[self.share], split.targets[self.share])

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network whose gradients are the mean over all processes, which all get the first one's weights."""
        if self.count == 1:
            return network
        return DistributedDataParallel(network, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; the same bits in each."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def average_buffers(self, network: nn.Module) -> None:
        """Give all processes the mean of their moving statistics."""
        for buffer in network.buffers():
            if buffer.is_floating_point():
                self.sum(buffer).div_(self.count)

    def copy_first(self, network: nn.Module) -> None:
        """Give all processes the first one's weights and statistics."""
        if self.count > 1:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, 0)

    def ask_first(self, told: T) -> T:
        """What the first process told."""
        answer = [told]
        if self.count > 1:
            dist.broadcast_object_list(answer, 0)
        return answer[0]

    def gather(self, told: T) -> list[T]:
        """What every process told."""
        answers = [told] * self.count
        if self.count > 1:
            dist.all_gather_object(answers, told)
        return answers


ALONE = Ranks()


@contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Meet the other processes, where torchrun started this one; and part from them.

    Gloo's threads end with the last reference to the group, and one that lives on until Python ends can abort the
    process. So nothing may hold the group when it is left: no default argument, no network that `wrap` returned.

    Args:
        device: to train on. Of several GPUs each process of a machine takes its own.
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
        _forget_locals(error)
        raise
    finally:
        dist.destroy_process_group()


def _forget_locals(error: BaseException | None) -> None:
    """Free what the frames held that an error went through."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
