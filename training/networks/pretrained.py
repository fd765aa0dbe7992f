"""A pretrained backbone with a new head: what is trained on photos.

Shapes: N images, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

NORM_EPS = 1e-3  # added to the variances of the features, so that those that hardly vary are not amplified


class Head(nn.Sequential):
    """Batch norm, dropout and a dense layer: float32 (N, D) -> logits, float32 (N, K).

    Args:
        features: D.
        classes: K.
        dropout: The share of the features that are set to 0 in training, in [0, 1).
    """

    norm: nn.BatchNorm1d
    dropout: nn.Dropout
    dense: nn.Linear

    def __init__(self, features: int, classes: int, dropout: float) -> None:
        layers = OrderedDict[str, nn.Module]()
        layers["norm"] = nn.BatchNorm1d(features, eps=NORM_EPS)
        layers["dropout"] = nn.Dropout(dropout)
        layers["dense"] = nn.Linear(features, classes)
        super().__init__(layers)


class PretrainedNetwork(nn.Module):
    """Scaling, the stages of a backbone, global average pooling, and a head.

    The backbone is always in eval mode: its batch norm layers keep the statistics of the pretraining, which small
    batches of other images would spoil.

    Args:
        scale: Converts images from [-1, 1] to the range that the backbone was trained with.
        stages: The parts of the backbone in their order. The output of the last one is a feature map, (N, D, h, w), or
            (N, D) if the backbone pools by itself.
        pool: Converts the output of the last stage to features, float32 (N, D).
        features: D.
        classes: K.
        dropout: The share of the features that are set to 0 in training, in [0, 1).
    """

    def __init__(
        self,
        scale: nn.Module,
        stages: Sequence[nn.Module],
        pool: nn.Module,
        features: int,
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.stages = nn.ModuleList(stages)
        self.pool = pool
        self.head = Head(features, classes, dropout)
        self._first = 0

    def train(self, mode: bool = True) -> PretrainedNetwork:
        """Set the mode of the dropout in the head; everything else stays in eval mode."""
        super().train(False)
        self.training = mode
        self.head.training = mode
        self.head.dropout.train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits, float32 (N, K).

        Args:
            x: Images, float32 (N, C, H, W) in [-1, 1]; inside ``start_at``, the output of the stage before.
        """
        logits: Tensor = self.head(self.extract(x))
        return logits

    def extract(self, x: Tensor) -> Tensor:
        """Compute features, float32 (N, D), from what ``forward`` takes."""
        features: Tensor = self.pool(self.run_stages(x, self._first, len(self.stages)))
        return features

    def run_stages(self, x: Tensor, first: int, last: int) -> Tensor:
        """Run the stages from ``first`` to before ``last``.

        Args:
            x: Images if ``first`` is 0, float32 (N, C, H, W) in [-1, 1]; else the output of the stage before.
            first: Index of the first stage to run.
            last: Index after the last stage to run.
        """
        if first == 0:
            x = self.scale(x)
        for stage in self.stages[first:last]:
            x = stage(x)
        return x

    def freeze(self, stages: int) -> None:
        """Exclude the first stages from training.

        Args:
            stages: How many; the later ones and the head are trained.
        """
        for index, stage in enumerate(self.stages):
            stage.requires_grad_(index >= stages)

    @contextmanager
    def start_at(self, first: int) -> Iterator[None]:
        """Let ``forward`` start at a stage: its input is the output of the stage before.

        Args:
            first: Index of the stage; 0 for images.
        """
        before, self._first = self._first, first
        try:
            yield
        finally:
            self._first = before
