"""What the findings of a report ask for: each piece of advice follows from a figure of this run.

To add one, write a function that returns it, or None if its figure does not ask for it, and list it in ``ADVISERS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalmode.certification.design.steps import Advice, count
from evalmode.certification.metrics import Z_95, wilson_interval
from training.datasets import Dataset
from training.report.findings import Findings
from training.report.learning import WIDE
from training.review import Review
from training.run_config import RunConfig

WANTED_REACH = 0.05  # of the accuracy in both directions, for which test images are counted
IMBALANCE = 2.0  # the largest label has this many times the images of the one that is missed
LEARNED = 0.98  # training accuracy, from which more epochs add little
MIN_MISSED = 3  # images of a label; fewer are looked at among the mistakes
SHIFT_LOSS = 0.05  # of the accuracy, by the smallest shift


@dataclass(frozen=True, eq=False)
class Evidence:
    """What advice is derived from.

    Attributes:
        config: How the network was trained.
        dataset: The data set.
        test: How well the network classifies the test images.
        training: What ``describe_training`` returns.
        review: What the features of a pretrained network reveal; None for other networks.
    """

    config: RunConfig
    dataset: Dataset
    test: Findings
    training: dict[str, Any]
    review: Review | None

    @property
    def is_pretrained(self) -> bool:
        """Whether the network was pretrained: then it is trained in stages."""
        return bool(self.training["stages"] or self.config.recipe.fine_tune)


def list_advice(evidence: Evidence) -> list[Advice]:
    """List what the findings ask for, the most important first.

    Args:
        evidence: What the run shows.

    Returns:
        The advice; empty if no figure asks for a change.
    """
    return [advice for advise in ADVISERS if (advice := advise(evidence))]


def separate_duplicates(evidence: Evidence) -> Advice | None:
    """Nearly equal images in two splits make the accuracy too high."""
    pairs = evidence.review.near_duplicate_count if evidence.review else 0
    if not pairs:
        return None
    return Advice(
        f"{count(pairs, 'pair')} of nearly equal images in different splits: the accuracy is too high.",
        "Put all images of one object or scene into one split: name the folders train, val and test. Then train again.",
        "duplicates",
        is_serious=True,
    )


def correct_labels(evidence: Evidence) -> Advice | None:
    """Labels that are probably wrong."""
    wrong = len(evidence.review.wrong_labels) if evidence.review else 0
    if not wrong:
        return None
    return Advice(
        f"{count(wrong, 'label')} to check.",
        "Look at each image: some have the right label and are hard. Move the others into the folder of the right "
        "label, or correct their rows. Then train again.",
        "labels",
    )


def collect_test_images(evidence: Evidence) -> Advice | None:
    """Few test images leave the accuracy uncertain."""
    low, high = evidence.test.interval
    if high - low <= WIDE:
        return None
    images, share = len(evidence.dataset.test), min(max(evidence.test.accuracy, 0.05), 0.95)
    wanted = math.ceil(Z_95**2 * share * (1 - share) / WANTED_REACH**2 / 10) * 10
    while wanted <= images:  # the formula is an approximation
        wanted += 10
    crossed = evidence.review.cross_validated if evidence.review else None
    until = f" Until then, trust the cross-validated accuracy, {crossed.accuracy:.1%}." if crossed else ""
    return Advice(
        f"{images} test images leave the accuracy between {low:.1%} and {high:.1%}.",
        f"About {wanted} test images are enough for an interval of 5 percentage points in both directions.{until}",
        "confusion",
    )


def stop_overfitting(evidence: Evidence) -> Advice | None:
    """Training accuracy above what the validation accuracy can be."""
    best, recipe = evidence.training["best"], evidence.config.recipe
    if not evidence.training["overfits"]:
        return None
    if evidence.is_pretrained:
        options = [f"--fine-tune {recipe.fine_tune // 2 or 'none'}"]
    else:
        options = ["--mirror, if a mirrored image has the same label"] * (not recipe.mirror)
        options += ["--shift 1"] * (not recipe.shift)
    otherwise = f" Otherwise train again with {' or '.join(options)}." if options else ""
    return Advice(
        f"The network overfits: {best['train_accuracy']:.1%} in training, {best['val_accuracy']:.1%} in validation.",
        f"More images help most.{otherwise}",
        "learning",
    )


def train_longer(evidence: Evidence) -> Advice | None:
    """The last epoch was the best one, and training images are not all learned."""
    best, config = evidence.training["best"], evidence.config
    if evidence.training["overfits"] or not best or best["epoch"] != config.recipe.epochs:
        return None
    if best["train_accuracy"] > LEARNED:
        return None
    options = f"--epochs {2 * best['epoch']}" + (f" --minutes {2 * config.minutes:g}" if config.minutes else "")
    return Advice(
        f"The last epoch validated best, and the training accuracy is only {best['train_accuracy']:.1%}: "
        "there is more to learn.",
        f"Train again with {options}.",
        "learning",
    )


def skip_fine_tuning(evidence: Evidence) -> Advice | None:
    """Fine-tuning that was not kept."""
    epochs = evidence.training["epochs"]
    if evidence.training["best"] or not epochs or not evidence.is_pretrained:
        return None
    seconds = sum(row["seconds"] for row in epochs)
    return Advice(
        "No epoch of fine-tuning was better than the head alone on the validation images: fine-tuning was not kept.",
        f"With these images, --fine-tune none gives the same network {seconds:.0f} s faster.",
        "learning",
    )


def help_weakest_label(evidence: Evidence) -> Advice | None:
    """A label whose recall is below the accuracy, beyond chance."""
    labels, matrix = evidence.dataset.labels, evidence.test.matrix
    totals, right = matrix.sum(1), matrix.diagonal()
    low = [
        index
        for index in np.flatnonzero(totals).tolist()
        if totals[index] - right[index] >= MIN_MISSED
        and wilson_interval(int(right[index]), int(totals[index]))[1] < evidence.test.accuracy
    ]
    if not low:
        return None
    index = min(low, key=lambda one: right[one] / totals[one])
    counts = np.bincount(evidence.dataset.train.targets, minlength=len(labels))
    wrong = matrix[index].copy()
    wrong[index] = 0
    balance = counts.max() > IMBALANCE * counts[index] and not evidence.config.recipe.balance
    confused = " and ".join(labels[one] for one in np.flatnonzero(wrong == wrong.max()).tolist())
    largest = f", the largest label {counts.max():,}" if counts.max() > counts[index] else ""
    return Advice(
        f"{right[index]} of {totals[index]} images of {labels[index]} are classified correctly; most of the others "
        f"become {confused}.",
        f"{labels[index]} has {counts[index]:,} training images{largest}. "
        + ("Collect more of it, or train again with --balance." if balance else "Collect more of it and of these."),
        "classes",
    )


def train_on_shifts(evidence: Evidence) -> Advice | None:
    """An accuracy that falls with the smallest shift, of a network that was not trained on shifted images."""
    still, shifted = evidence.test.shifts[:2]
    if evidence.is_pretrained or evidence.config.recipe.shift or still.accuracy - shifted.accuracy <= SHIFT_LOSS:
        return None
    return Advice(
        f"A shift by {count(shifted.pixels, 'pixel')} lowers the accuracy from {still.accuracy:.1%} "
        f"to {shifted.accuracy:.1%}.",
        f"If your images are not all centred, train again with --shift {shifted.pixels}.",
        "shifts",
    )


ADVISERS: tuple[Callable[[Evidence], Advice | None], ...] = (
    separate_duplicates,
    correct_labels,
    collect_test_images,
    stop_overfitting,
    train_longer,
    skip_fine_tuning,
    help_weakest_label,
    train_on_shifts,
)
