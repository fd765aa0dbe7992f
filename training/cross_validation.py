"""Cross-validation on features: each image is predicted by a head that was trained without it.

Shapes: N images, D features, K labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evalmode.artifact.tensors import Floats
from training.datasets.dataset import Indices
from training.head import HeadExamples, fit_dense, set_moments
from training.networks.pretrained import Head

Predictor = Callable[[Floats], npt.NDArray[np.floating]]  # features (N, D) -> probabilities (N, K)
Fit = Callable[[Floats, Indices], Predictor]  # features (N, D), targets (N,) -> the trained head

FOLDS = 5


def cross_validate(features: Floats, targets: Indices, fit: Fit, folds: int = FOLDS, seed: int = 0) -> Floats:
    """Predict each image by a head that was trained on the images of the other folds.

    Args:
        features: float32 (N, D).
        targets: The index of each image's label, int64 (N,).
        fit: Trains a head. It is called once for each fold that holds images, with the images of the other folds, which
            may lack labels that few images have. The probabilities have a column for every label all the same.
        folds: The number of parts that the images are split into, at least 2.
        seed: Decides the parts.

    Returns:
        The probabilities of the labels of each image, float32 (N, K).
    """
    fold_of = split_folds(targets, find_equal_rows(features), folds, seed)
    probabilities: Floats | None = None
    for fold in np.unique(fold_of):
        part, rest = fold_of == fold, fold_of != fold
        predicted = fit(features[rest], targets[rest])(features[part])
        if probabilities is None:
            probabilities = np.empty((len(targets), predicted.shape[1]), np.float32)
        probabilities[part] = predicted
    assert probabilities is not None
    return probabilities


def refit_head(head: Head, penalty: float, label_weights: Tensor | None = None) -> Fit:
    """Return a function that fits a new head of the same kind, as the head of a network is fitted.

    Args:
        head: ``norm``, ``dropout`` and ``dense``; it is not changed.
        penalty: Factor of half the squared norm of the dense layer's weights, in the loss.
        label_weights: The weight of each label in the loss, float32 (K,); None for equal weights.
    """

    def fit(features: Floats, targets: Indices) -> Predictor:
        new = copy.deepcopy(head)
        nn.init.zeros_(new.dense.weight)
        nn.init.zeros_(new.dense.bias)
        examples = HeadExamples(torch.from_numpy(features), torch.from_numpy(targets))
        set_moments(new, examples.features)
        fit_dense(new, examples, penalty, label_weights)

        @torch.no_grad()
        def predict(some: Floats) -> Floats:
            probabilities: Floats = new(torch.from_numpy(some)).softmax(1).numpy()
            return probabilities

        return predict

    return fit


def split_folds(targets: Indices, groups: Indices, folds: int, seed: int) -> Indices:
    """Split images into folds of nearly equal size, in each of which the labels have nearly equal shares.

    Args:
        targets: The index of each image's label, int64 (N,).
        groups: The group of each image, int64 (N,). The images of a group are in one fold.
        folds: The number of folds, at least 2.
        seed: Decides which images are together.

    Returns:
        The fold of each image, from 0, int64 (N,).
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    ranked = np.lexsort((position[first], targets[first]))  # by label, in random order within a label
    fold_of_group = np.empty(len(first), np.int64)
    fold_of_group[ranked] = np.arange(len(first)) % folds
    return fold_of_group[group_of]


def find_equal_rows(features: Floats) -> Indices:
    """Group the images with equal features: copies of an image, which a head must not be trained on and tested with.

    Args:
        features: float32 (N, D).

    Returns:
        The group of each image, int64 (N,).
    """
    rows = np.ascontiguousarray(features).view(np.dtype((np.void, features.dtype.itemsize * features.shape[1])))
    return np.unique(rows.ravel(), return_inverse=True)[1]
