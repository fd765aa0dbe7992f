"""Refuses a network that is no better than guessing, and names what its answers show about the cause."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evalmode.artifact.tensors import Floats, softmax
from evalmode.certification.metrics import Quality
from evalmode.certification.reference import Reference
from evalmode.errors import GoldenMismatch

SAME_ANSWER = 0.01  # probabilities of a label that vary by less over all images


def check_better_than_guessing(
    quality: Quality, logits: Floats, labels: tuple[str, ...], references: Sequence[Reference]
) -> None:
    """Check the accuracy, and say what the answers and references of a file show about the cause.

    Args:
        quality: How good the network is on the images.
        logits: Its logits for all images, float32 (N, K).
        labels: K labels.
        references: How it agrees with answers of files. A module is no reference here: it is run with the preprocessing
            that the user states, so that its agreement proves nothing about that.

    Raises:
        GoldenMismatch: The accuracy may be that of guessing.
    """
    if quality.interval[0] > 1 / len(labels):
        return
    probabilities = softmax(logits)
    found = f"accuracy {quality.accuracy:.4f} of {quality.images} images is no better than guessing"
    found += f" among {len(labels)} labels"
    causes = [
        f"{one.source} has the same answers for {one.images} images, so the pixels and the arithmetic are right: is "
        "the order of --labels right, and was the network trained long enough?"
        for one in references
    ]
    causes = causes or ["are --labels, --scale, --mean, --std and --bgr right?"]
    answers = set(logits.argmax(axis=1).tolist())
    if len(answers) == 1 and np.ptp(probabilities, axis=0).max() < SAME_ANSWER:
        (answer,) = answers
        found += f", and all of them get the same answer ({labels[answer]} {probabilities[0, answer]:.2f})"
        causes.append("moving statistics of batch norm after few steps of training do this, too: train for longer.")
    raise GoldenMismatch(f"{found}: {' '.join(causes)} To publish it as it is: --allow-guessing")
