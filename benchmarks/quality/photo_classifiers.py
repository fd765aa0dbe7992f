"""Classifiers of photos to export: heads that are trained on the features of one run, and whole runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from benchmarks.quality.small_networks import Exports, export_both
from evalmode.artifact.tensors import Floats
from training.callbacks import SILENT
from training.datasets import Dataset, Split
from training.datasets.carving import carve_missing
from training.datasets.dataset import SPLITS
from training.features import Features
from training.head import PENALTIES, HeadExamples, fit_dense, set_moments
from training.loading import reload_data
from training.networks import PretrainedNetwork
from training.run import BEST, EXACT, INITIAL, Run
from training.run_config import RunConfig

COUNT = 20
FEW = (0, 20, 60)  # images of each label; 0 for all


@dataclass(frozen=True)
class Head:
    """A head to train.

    Attributes:
        labels: The labels that it knows.
        images: The number of images of each label, of all splits; 0 for all that there are.
        penalty: Its regularisation.
        mirrored: Whether to export the mean over an image and its mirror image.
        seed: Decides which images are used, and which are validation and test images.
    """

    labels: tuple[str, ...]
    images: int
    penalty: float
    mirrored: bool
    seed: int


@dataclass(frozen=True, eq=False)
class Photos:
    """All photos of a run.

    Attributes:
        run: The run.
        dataset: Its data set.
        all: The images of its splits, one after another.
        features: Their features by the pretrained backbone, float32 (N, D).
    """

    run: Run
    dataset: Dataset
    all: Split
    features: Floats


def list_heads(folder: Path) -> Exports:
    """List 20 heads; each photo of the run is decoded once, and its features are those that the run kept."""
    photos, rng = read_photos(folder), np.random.default_rng(0)
    known = photos.dataset.labels
    for seed in range(COUNT):
        chosen = np.sort(rng.permutation(len(known))[: rng.integers(2, len(known) + 1)])
        case = Head(
            labels=tuple(known[index] for index in chosen),
            images=int(rng.choice(FEW)),
            penalty=float(rng.choice(PENALTIES)),
            mirrored=bool(rng.integers(4) == 0),
            seed=seed,
        )
        yield vars(case), partial(export_head, photos, case)


def read_photos(folder: Path) -> Photos:
    """Read the photos of a run and their features."""
    run = Run.open(folder)
    dataset = reload_data(run, None, None, SILENT)
    features = Features(**safetensors.numpy.load((run.folder / "features" / "features.safetensors").read_bytes()))
    splits = [getattr(dataset, name) for name in SPLITS]
    images, targets = (np.concatenate([getattr(split, name) for split in splits]) for name in ("images", "targets"))
    return Photos(
        run, dataset, Split(images, targets), np.concatenate([features.train[0], features.val, features.test])
    )


def export_head(photos: Photos, case: Head, folder: Path) -> dict[str, bytes]:
    """Train a head on some of the photos, and export it with the pretrained backbone."""
    rows, targets = choose_photos(photos, case)
    parts = carve_missing(targets, (), case.labels, case.seed)
    train, val, test = (Split(photos.all.images[rows[parts[name]]], targets[parts[name]]) for name in SPLITS)
    dataset = replace(photos.dataset, labels=case.labels, train=train, val=val, test=test)
    config = photos.run.config
    recipe = replace(config.recipe, fine_tune=0, views=1, seed=case.seed)
    run = Run.create(folder / "run", RunConfig.of(dataset, config.read_options, recipe))
    network = run.config.build_network()
    assert isinstance(network, PretrainedNetwork)
    weights = photos.run.read_weights(INITIAL)
    network.load_state_dict({name: weights[name] for name in weights if not name.startswith("head.")}, strict=False)
    examples = HeadExamples(
        torch.from_numpy(photos.features[rows[parts["train"]]]), torch.from_numpy(dataset.train.targets)
    )
    set_moments(network.head, examples.features)
    fit_dense(network.head, examples, case.penalty)
    for which in (INITIAL, BEST, EXACT):
        run.save_weights(network, which)
    return export_both(run, dataset, case.mirrored)


def choose_photos(photos: Photos, case: Head) -> tuple[np.ndarray, np.ndarray]:
    """Choose photos of the labels of a head; returns their rows, and their label indices for this head."""
    rng, known = np.random.default_rng(case.seed), photos.dataset.labels
    members = [rng.permutation(np.flatnonzero(photos.all.targets == known.index(label))) for label in case.labels]
    rows = np.sort(np.concatenate([one[: case.images or None] for one in members]))
    order = np.array([case.labels.index(label) if label in case.labels else -1 for label in known])
    return rows, order[photos.all.targets[rows]]


def list_runs(folders: Sequence[Path]) -> Exports:
    """List finished runs, plain and mirrored; they are not changed."""
    for folder in folders:
        recipe = Run.open(folder).config.recipe
        facts = {"network": recipe.network, "fine_tune": recipe.fine_tune, "seed": recipe.seed}
        for mirrored in (False, True):
            yield {**facts, "mirrored": mirrored}, partial(export_finished, folder, mirrored)


def export_finished(finished: Path, mirrored: bool, folder: Path) -> dict[str, bytes]:
    """Export a finished run."""
    return export_both(*read_run(finished), mirrored)


@lru_cache(maxsize=1)
def read_run(folder: Path) -> tuple[Run, Dataset]:
    """Read a run and its data set; once for both of its exports."""
    run = Run.open(folder)
    return run, reload_data(run, None, None, SILENT)
