"""The prediction for one image: the same type from the client and from an artifact loaded in this process."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_TOP_K = 5


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
