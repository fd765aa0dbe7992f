"""The answer to one image: the same type from the client and from an artifact loaded in this process."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_TOP_K = 5


@dataclass(frozen=True)
class Score:
    """A label with its probability (softmax, 0..1) and its index among the network's outputs."""

    label: str
    probability: float
    index: int


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image.

    Attributes:
        scores: the most probable label first; equal probabilities by lowest index.
        model: the model's name.
        version: its version, or "" for a file outside a model repository.
        digest: ``sha256:...`` of the artifact that answered.
        decode_us: image to pixels, microseconds.
        wait_us: waiting for a slot.
        inference_us: the network, for the whole batch it ran in.
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
        """The most probable label's probability."""
        return self.scores[0].probability
