"""The prediction for one image: the same type from the client and from an artifact loaded in this process."""

from __future__ import annotations

from dataclasses import dataclass

from evalmode.errors import UsageError

DEFAULT_TOP_K = 5
MAX_TOP_K = 2**32 - 1  # uint32 in a request


def check_top_k(top_k: int) -> int:
    """Check the number of labels that a prediction returns.

    Args:
        top_k: The number; 0 for the default, 5.

    Returns:
        The number.

    Raises:
        UsageError: It is outside its range.
    """
    if not 0 <= top_k <= MAX_TOP_K:
        raise UsageError(f"top_k {top_k} is outside 0..{MAX_TOP_K}")
    return top_k


@dataclass(frozen=True)
class Score:
    """A label and its probability.

    Attributes:
        label: The class name.
        probability: The softmax probability, 0..1.
        index: The index of the label in the network's outputs.
    """

    label: str
    probability: float
    index: int


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        scores: Scores, the most probable label first; equal probabilities by lowest index.
        model: The model's name.
        version: The model's version, or "" for a file outside a model repository.
        digest: ``sha256:...`` of the artifact.
        decode_us: Time to decode the image to pixels, microseconds.
        wait_us: Time spent waiting for a slot, microseconds.
        inference_us: Time that the network ran, for the whole batch, microseconds.
    """

    scores: tuple[Score, ...]
    model: str
    version: str
    digest: str
    decode_us: int
    wait_us: int
    inference_us: int

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.scores[0].label

    @property
    def probability(self) -> float:
        """The probability of the most probable label."""
        return self.scores[0].probability
