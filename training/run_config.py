"""The description of a run: its data and its recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from evalmode.limits import OWN_IMAGES, Limits
from training.datasets import Dataset
from training.networks import build_network
from training.recipe import Recipe


@dataclass(frozen=True)
class RunConfig:
    """The data and the recipe of a run: enough to build the network and to load the data again.

    Attributes:
        data: Absolute path or name of the data set.
        image_size: (height, width) in pixels to which images were resized; None if they kept their size.
        skip_unreadable: Whether unreadable files were left out.
        data_digest: Digest of labels, pixels and targets, ``sha256:...``.
        labels: Class names, in the order of the logits.
        shape: (height, width, channels) of the images.
        recipe: How the network was trained.
        max_image_bytes: Largest encoded image in bytes.
        max_image_pixels: Largest decoded image in pixels.
        labels_file: Absolute path of the table of labels; None if the labels are the names of folders.
    """

    data: str
    image_size: tuple[int, int] | None
    skip_unreadable: bool
    data_digest: str
    labels: tuple[str, ...]
    shape: tuple[int, int, int]
    recipe: Recipe
    max_image_bytes: int = OWN_IMAGES.max_image_bytes
    max_image_pixels: int = OWN_IMAGES.max_image_pixels
    labels_file: str | None = None

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        image_size: tuple[int, int] | None,
        skip_unreadable: bool,
        recipe: Recipe,
        limits: Limits = OWN_IMAGES,
        labels_file: Path | None = None,
    ) -> RunConfig:
        """Describe a run on a loaded data set.

        Args:
            dataset: The data set to train on.
            image_size: (height, width) in pixels to which images were resized; None if they kept their size.
            skip_unreadable: Whether unreadable files were left out.
            recipe: How to train.
            limits: The limits on the size of an image that the data set was loaded with.
            labels_file: The table of labels that the data set was loaded with.

        Returns:
            The description, with an absolute path to data that are files.
        """
        source = str(Path(dataset.source).resolve()) if Path(dataset.source).exists() else dataset.source
        shape = dataset.contract.shape
        sizes = limits.max_image_bytes, limits.max_image_pixels
        table = None if labels_file is None else str(labels_file.resolve())
        return cls(source, image_size, skip_unreadable, dataset.digest(), dataset.labels, shape, recipe, *sizes, table)

    @property
    def limits(self) -> Limits:
        """The limits on the size of an image of the data."""
        return Limits(self.max_image_bytes, self.max_image_pixels)

    def find_labels(self, data: str | None) -> Path | None:
        """Find the table of labels.

        Args:
            data: Present place of the data, if they were moved; None if they were not.

        Returns:
            Its path, in the present place if it was among the data; None if there is no table.
        """
        if self.labels_file is None:
            return None
        table = Path(self.labels_file)
        return Path(data) / table.relative_to(self.data) if data and table.is_relative_to(self.data) else table

    def build_network(self) -> nn.Module:
        """Build the network of this run with new initial weights, in train mode on the CPU."""
        recipe = self.recipe
        return build_network(recipe.network, self.shape, len(self.labels), recipe.width, recipe.dropout)

    def list_differences(self, other: RunConfig, source: str) -> list[str]:
        """List the values that differ in another description.

        Args:
            other: The other description.
            source: Where it comes from, such as "now" or "process 1".

        Returns:
            Such as ``seed 0, now 5``.
        """
        recorded, requested = self._flatten(), other._flatten()
        return [
            f"{name} {recorded[name]!r}, {source} {requested[name]!r}"
            for name in recorded
            if recorded[name] != requested[name]
        ]

    def _flatten(self) -> dict[str, Any]:
        facts = asdict(self)
        return {**facts.pop("recipe"), **facts}
