"""Compare two artifacts on the same labelled images: what changes for users if one replaces the other."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from evalmode.artifact.repository import resolve_artifact
from evalmode.certification.images import Labelled, read_labelled
from evalmode.certification.latency import measure_ratio
from evalmode.certification.metrics import mcnemar
from evalmode.errors import UsageError
from evalmode.limits import Limits
from evalmode.runtime.loading import load_model
from evalmode.runtime.model import ImageClassifier, Model

BATCH = 64


@dataclass(frozen=True)
class Changed:
    """An image whose predicted label changes.

    Attributes:
        path: The file.
        label: Its label.
        old: The label that the old model predicts.
        new: The label that the new model predicts.
    """

    path: Path
    label: str
    old: str
    new: str


@dataclass(frozen=True)
class LabelChange:
    """What changes for the images of one label.

    Attributes:
        label: The label.
        images: How many images have it.
        gained: How many of them only the new model classifies correctly.
        lost: How many of them only the old model classifies correctly.
    """

    label: str
    images: int
    gained: int
    lost: int


@dataclass(frozen=True)
class Comparison:
    """What changes if a new model replaces an old one.

    Attributes:
        images: The number of images.
        accuracies: The accuracy of the old and of the new model, in 0..1.
        changed: The images whose predicted label changes, sorted by path.
        labels: Gains and losses for each label that has images.
        p: The p-value of McNemar's test: the probability of gains and losses this uneven if both models are equally
            accurate.
        latency_ratio: The latency of the new model divided by that of the old one, for a single image.
        warnings: A sentence for each kind of file that was not read.
        digests: ``sha256:...`` of the old and of the new file.
    """

    images: int
    accuracies: tuple[float, float]
    changed: list[Changed]
    labels: list[LabelChange]
    p: float
    latency_ratio: float
    warnings: tuple[str, ...]
    digests: tuple[str, str]

    @property
    def gained(self) -> int:
        """The number of images that only the new model classifies correctly."""
        return sum(label.gained for label in self.labels)

    @property
    def lost(self) -> int:
        """The number of images that only the old model classifies correctly."""
        return sum(label.lost for label in self.labels)

    @property
    def labels_by_loss(self) -> list[LabelChange]:
        """The labels, the one that loses most first."""
        return sorted(self.labels, key=lambda label: (label.gained - label.lost, -label.lost))

    @property
    def share_changed(self) -> float:
        """The share of images whose predicted label changes, in 0..1."""
        return len(self.changed) / self.images

    @property
    def accuracy_drop(self) -> float:
        """How far the accuracy falls, in -1..1: 0.05 from 0.95 to 0.90, and below 0 if the new model is better."""
        return (self.lost - self.gained) / self.images


def compare(
    old: Model | str | PathLike[str],
    new: Model | str | PathLike[str],
    images: str | PathLike[str],
    limits: Limits | None = None,
) -> Comparison:
    """Classify every labelled image with both models, each decoded as its model expects.

    Args:
        old: The model in use, its artifact, or its folder in a model repository, see ``resolve_artifact``.
        new: The model to replace it, likewise.
        images: Labelled images: a folder ``<label>/<image>``, or a table of files and labels.
        limits: The largest image allowed; by default a server's limits.

    Returns:
        What changes.

    Raises:
        ArtifactInvalid: A file is not an artifact.
        ImagesNotTaken: A model does not take images.
        DataError: A table does not fit its images or the labels.
        UsageError: The models have different labels, or a folder cannot be read or holds no artifact.
    """
    models = [
        (one if isinstance(one, Model) else load_model(resolve_artifact(Path(one)).path)).as_classifier()
        for one in (old, new)
    ]
    labels, other_labels = (model.manifest.labels for model in models)
    if set(labels) != set(other_labels):
        only = sorted(set(labels) ^ set(other_labels))
        raise UsageError(f"the models have different labels and cannot be compared: {', '.join(only[:5])}")
    contracts = [model.manifest.pixels for model in models]
    read = {contract: read_labelled(Path(images), labels, contract, limits) for contract in dict.fromkeys(contracts)}
    seen = [read[contract] for contract in contracts]
    predicted = [_predict(model, found) for model, found in zip(models, seen, strict=True)]
    own = np.array(labels)[seen[0].targets]
    right = [answers == own for answers in predicted]
    gained, lost = right[1] & ~right[0], right[0] & ~right[1]
    changed = np.flatnonzero(predicted[0] != predicted[1])
    return Comparison(
        images=len(own),
        accuracies=(float(right[0].mean()), float(right[1].mean())),
        changed=[Changed(seen[0].paths[i], *(str(one[i]) for one in (own, *predicted))) for i in changed],
        labels=[
            LabelChange(label, int(mine.sum()), int(gained[mine].sum()), int(lost[mine].sum()))
            for label in labels
            if (mine := own == label).any()
        ],
        p=mcnemar(int(gained.sum()), int(lost.sum())),
        latency_ratio=measure_ratio(models[1], seen[1].pixels[:1], models[0], seen[0].pixels[:1]),
        warnings=seen[0].warnings,
        digests=(models[0].digest, models[1].digest),
    )


def _predict(model: ImageClassifier, images: Labelled) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    """The label that a model predicts for each image, (N,)."""
    size = min(BATCH, model.max_batch)
    starts = range(0, len(images.pixels), size)
    indices = np.concatenate(
        [model.classify(images.pixels[start : start + size])[0].argmax(axis=1) for start in starts]
    )
    labels: np.ndarray[tuple[int], np.dtype[np.str_]] = np.array(model.manifest.labels)[indices]
    return labels
