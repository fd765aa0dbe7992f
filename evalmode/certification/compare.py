"""What changes for users if one artifact replaces another, on the same labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evalmode.certification.figures import mcnemar
from evalmode.certification.images import Labelled, read_labelled
from evalmode.certification.latency import measure_ratio
from evalmode.errors import UsageError
from evalmode.limits import Limits
from evalmode.runtime.model import ImageClassifier, Model

BATCH = 64


@dataclass(frozen=True)
class Changed:
    """An image whose label changes.

    Attributes:
        path: where it lies.
        label: its own.
        old: the label that the old model gives it.
        new: the label that the new one gives it.
    """

    path: Path
    label: str
    old: str
    new: str


@dataclass(frozen=True)
class LabelChange:
    """What changes for the images of one label."""

    label: str
    images: int
    gained: int
    lost: int


@dataclass(frozen=True)
class Comparison:
    """What changes.

    Attributes:
        images: how many were asked about.
        accuracies: old and new, shares right.
        changed: images whose predicted label changes, in the order of their paths.
        labels: gains and losses of each label's images.
        p: McNemar's: the chance of so uneven gains and losses if both models are equally good.
        latency_ratio: new to old, of one image alone, by medians of interleaved runs.
        warnings: what of the folder was not read, a sentence each.
    """

    images: int
    accuracies: tuple[float, float]
    changed: list[Changed]
    labels: list[LabelChange]
    p: float
    latency_ratio: float
    warnings: tuple[str, ...]

    @property
    def share_changed(self) -> float:
        """Share of all images whose predicted label changes."""
        return len(self.changed) / self.images


def compare(old: Model, new: Model, folder: Path, limits: Limits | None = None) -> Comparison:
    """Ask both models about every image of a folder ``<label>/<image>``, each decoded as its model wants.

    Args:
        old: in use.
        new: that may replace it.
        folder: of the images.
        limits: how large one may be; by default what a server takes.

    Raises:
        UsageError: the models know other labels, or the folder cannot be read.
    """
    labels = old.manifest.labels
    if set(labels) != set(new.manifest.labels):
        only = sorted(set(labels) ^ set(new.manifest.labels))
        raise UsageError(f"the models know other labels, so their answers cannot be compared: {', '.join(only[:5])}")
    classifiers = old.as_classifier(), new.as_classifier()
    seen = [read_labelled(folder, labels, model.manifest.pixels, limits) for model in classifiers]
    told = [_tell(model, images) for model, images in zip(classifiers, seen, strict=True)]
    own = np.array(labels)[seen[0].targets]
    right = [answers == own for answers in told]
    gained, lost = right[1] & ~right[0], right[0] & ~right[1]
    changed = np.flatnonzero(told[0] != told[1])
    return Comparison(
        images=len(own),
        accuracies=(float(right[0].mean()), float(right[1].mean())),
        changed=[Changed(seen[0].paths[i], str(own[i]), str(told[0][i]), str(told[1][i])) for i in changed],
        labels=[
            LabelChange(label, int(mine.sum()), int(gained[mine].sum()), int(lost[mine].sum()))
            for label in labels
            if (mine := own == label).any()
        ],
        p=mcnemar(int(gained.sum()), int(lost.sum())),
        latency_ratio=measure_ratio(new, seen[1].pixels[:1], old, seen[0].pixels[:1]),
        warnings=seen[0].warnings,
    )


def _tell(model: ImageClassifier, images: Labelled) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    """The label that a model gives each image."""
    size = min(BATCH, model.max_batch)
    starts = range(0, len(images.pixels), size)
    told = np.concatenate([model.classify(images.pixels[start : start + size])[0].argmax(axis=1) for start in starts])
    labels: np.ndarray[tuple[int], np.dtype[np.str_]] = np.array(model.manifest.labels)[told]
    return labels
