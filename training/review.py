"""What the features of a pretrained backbone reveal about the data: ``review.json`` in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from evalmode.certification.metrics import CrossValidated, measure_cross_validated
from evalmode.files import write_atomically
from training.cross_validation import FOLDS, Fit, cross_validate
from training.datasets import Dataset
from training.datasets.dataset import SPLITS
from training.errors import RunError
from training.features import Features
from training.wrong_labels import find_wrong_labels

FEW_TEST_IMAGES = 200  # the 95% confidence interval of their accuracy is about 10 percentage points wide
MAX_PAIRS = 100
FILE = "review.json"


@dataclass(frozen=True)
class DoubtfulLabel:
    """An image whose label is probably wrong.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        row: Index of the image in the split.
        suggested: Index of the label that the other images suggest.
        probability: The probability of its label, by a head that was trained without the image.
        suggested_probability: The probability of the suggested label.
    """

    split: str
    row: int
    suggested: int
    probability: float
    suggested_probability: float


@dataclass(frozen=True)
class NearDuplicate:
    """Two images in different splits that are nearly equal.

    Attributes:
        split: Split of the first image.
        row: Index of the first image in its split.
        other_split: Split of the second image.
        other_row: Index of the second image in its split.
        similarity: Cosine of their features without the mean of all images, at most 1.
    """

    split: str
    row: int
    other_split: str
    other_row: int
    similarity: float


@dataclass(frozen=True)
class Review:
    """What the features reveal about the data.

    Attributes:
        cross_validated: Cross-validated accuracy of a head on the features; None if there are enough test images.
        wrong_labels: Images whose labels are probably wrong, the most suspicious first.
        near_duplicates: Pairs of nearly equal images in different splits, the most similar first; at most 100.
        near_duplicate_count: The number of all such pairs.
    """

    cross_validated: CrossValidated | None
    wrong_labels: tuple[DoubtfulLabel, ...]
    near_duplicates: tuple[NearDuplicate, ...]
    near_duplicate_count: int

    def save(self, folder: Path) -> None:
        """Write ``review.json`` into a run folder.

        Args:
            folder: Path of the folder.

        Raises:
            OSError: The file cannot be written.
        """
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> Review | None:
        """Read ``review.json`` of a run folder.

        Args:
            folder: Path of the folder.

        Returns:
            The review; None if the run has none, because its network is not pretrained.

        Raises:
            RunError: The file is damaged.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            facts = json.loads(path.read_text("utf-8"))
            accuracy = facts.pop("cross_validated")
            return cls(
                accuracy and CrossValidated(**{**accuracy, "interval": tuple(accuracy["interval"])}),
                tuple(DoubtfulLabel(**one) for one in facts.pop("wrong_labels")),
                tuple(NearDuplicate(**one) for one in facts.pop("near_duplicates")),
                **facts,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} cannot be read: {error}. Delete it, and the report is written without it"
            ) from error


def review_data(
    features: Features,
    dataset: Dataset,
    fit: Fit,
    near_duplicates: Iterable[tuple[str, int, str, int, float]],
    seed: int,
) -> Review:
    """Cross-validate a head on the features of all images, and find labels that are probably wrong.

    Args:
        features: The features of all images; of the training images, only those of the first view are used.
        dataset: The data set.
        fit: Trains a head on features and targets.
        near_duplicates: Split, row, other split, other row and similarity of each pair of nearly equal images.
        seed: Decides the folds.

    Returns:
        The review.
    """
    targets = np.concatenate([getattr(dataset, split).targets for split in SPLITS])
    images = np.concatenate([features.train[0], features.val, features.test])
    probabilities = cross_validate(images, targets, fit, seed=seed)
    places = [(split, row) for split in SPLITS for row in range(len(getattr(dataset, split)))]
    own, suggested = probabilities[np.arange(len(targets)), targets], probabilities.argmax(1)
    highest = probabilities.max(1)
    pairs = sorted((NearDuplicate(*one) for one in near_duplicates), key=lambda pair: -pair.similarity)
    few = len(dataset.test) < FEW_TEST_IMAGES
    return Review(
        measure_cross_validated(probabilities, targets, FOLDS) if few else None,
        tuple(
            DoubtfulLabel(*places[row], *(one[row].item() for one in (suggested, own, highest)))
            for row in find_wrong_labels(probabilities, targets).tolist()
        ),
        tuple(pairs[:MAX_PAIRS]),
        len(pairs),
    )
