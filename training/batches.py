"""The training batches of an epoch: shuffled, augmented and shared among processes, by draws from seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.augment import augment, choose_mirrored, draw_offsets
from training.datasets import Split, release_pages
from training.datasets.dataset import Indices
from training.networks import make_inputs
from training.ranks import Ranks
from training.recipe import Recipe
from training.views import choose_views


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """The share of one process in a batch.

    Attributes:
        step: Number of the step in the epoch, from 1.
        size: Number of images of all processes together.
        rows: Index of each image of this process among the training images, int64 (N,).
        inputs: Augmented images of this process, float32 (N, C, H, W) in [-1, 1].
        targets: Their labels, int64 (N,).
        loss_of: Computes the mean loss of this process from its logits, float32 (N, K).
        loss_scale: Factor of this loss, so that gradients averaged over the processes are those of the whole batch.
        seed: Seed of the draws of dropout in this process.
    """

    step: int
    size: int
    rows: Indices
    inputs: Tensor
    targets: Tensor
    loss_of: Callable[[Tensor], Tensor]
    loss_scale: float
    seed: int


class Batches:
    """The batches of one epoch.

    Every process draws the order and the augmentation of all images alike, and takes its share of each batch. Only the
    seeds of dropout differ between processes.

    Args:
        split: The training images; with ``recipe.fine_tune`` the views of each, (N, V, ...).
        recipe: Decides the size of a batch, the augmentation, the loss and the seed.
        epoch: Number of the epoch, from 1.
        ranks: The processes that share each batch.
        device: Device of the tensors.
    """

    def __init__(self, split: Split, recipe: Recipe, epoch: int, ranks: Ranks, device: torch.device) -> None:
        self._split = split
        self._recipe = recipe
        self._epoch = epoch
        self._ranks = ranks
        self._device = device
        self._rng = np.random.default_rng([recipe.seed, epoch])
        self._rows = split_batches(self._rng.permutation(len(split)), recipe.batch_size, 2 * ranks.count)
        self._views = choose_views(len(split), recipe.views, epoch, recipe.seed)
        self._mirrored = choose_mirrored(len(split), epoch, recipe.seed) & recipe.mirror
        self._label_weights = balance_labels(split).to(device) if recipe.balance else None

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[TrainingBatch]:
        for step, rows in enumerate(self._rows, 1):
            yield self._draw(step, rows)

    def _draw(self, step: int, rows: Indices) -> TrainingBatch:
        recipe, ranks = self._recipe, self._ranks
        own, offsets = rows[ranks.share], draw_offsets(len(rows), recipe.shift, self._rng)
        images = self._split.images
        if recipe.fine_tune:  # the split holds the views of each image
            drawn = images[own, self._views[own]]
        else:
            drawn = augment(images[own], self._mirrored[own], recipe.shift, offsets[:, ranks.share])
        release_pages(images)
        targets = torch.from_numpy(self._split.targets[own]).to(self._device)
        return TrainingBatch(
            step=step,
            size=len(rows),
            rows=own,
            inputs=make_inputs(torch.from_numpy(drawn).to(self._device)),
            targets=targets,
            loss_of=partial(
                functional.cross_entropy,
                target=targets,
                weight=self._label_weights,
                label_smoothing=recipe.label_smoothing,
            ),
            loss_scale=ranks.count * self._sum_weights(own) / self._sum_weights(rows),
            seed=_derive_seed(recipe.seed, self._epoch, step) + ranks.number,
        )

    def _sum_weights(self, rows: Indices) -> float:
        """Sum the label weights of images."""
        weights = self._label_weights
        return len(rows) if weights is None else weights[self._split.targets[rows]].sum().item()


def balance_labels(split: Split) -> Tensor:
    """Compute label weights, float32 (K,), by which labels count the same and images have a mean weight of 1."""
    counts = np.bincount(split.targets)
    return torch.from_numpy((len(split) / (len(counts) * counts)).astype(np.float32))


def split_batches(order: Indices, batch_size: int, min_size: int = 2) -> list[Indices]:
    """Cut an order of images into batches.

    Args:
        order: Indices of images, int64 (N,).
        batch_size: Images in a batch.
        min_size: A smaller last batch is joined to the batch before it. Batch norm has no variance over one image.

    Returns:
        Indices of each batch.
    """
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) < min_size:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def _derive_seed(seed: int, epoch: int, step: int) -> int:
    """Derive a seed for a step, so that its draws do not depend on the steps before it."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1)[0])
