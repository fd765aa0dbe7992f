"""The description of a run: its data and its recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from evalmode.images.pixels import PixelContract, Resize
from evalmode.limits import OWN_IMAGES, Limits
from training.datasets import Dataset, ReadOptions
from training.networks import build_network
from training.options import AUTO
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
        resize: How images of another size were resized and cropped.
        labels_file: Absolute path of the table of files and labels; None if the names of folders are the labels.
        weights: File of pretrained weights that the training started from, with its SHA-256; "" for none.
        minutes: Time that the training was planned for; None for no limit.
        wanted_epochs: Epochs that the user chose; None for those of the network. The recipe may have fewer.
        wanted_stages: What the user chose as ``fine_tune``.
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
    resize: Resize = field(default_factory=Resize)
    labels_file: str | None = None
    weights: str = ""
    minutes: float | None = None
    wanted_epochs: int | None = None
    wanted_stages: str = AUTO

    @classmethod
    def of(cls, dataset: Dataset, read: ReadOptions, recipe: Recipe) -> RunConfig:
        """Describe a run on a loaded data set.

        Args:
            dataset: The data set to train on.
            read: How its images were read.
            recipe: How to train.

        Returns:
            The description, with absolute paths to files.
        """
        source = str(Path(dataset.source).resolve()) if Path(dataset.source).exists() else dataset.source
        return cls(
            data=source,
            image_size=read.image_size,
            skip_unreadable=read.skip_unreadable,
            data_digest=dataset.digest(),
            labels=dataset.labels,
            shape=dataset.contract.shape,
            recipe=recipe,
            max_image_bytes=read.limits.max_image_bytes,
            max_image_pixels=read.limits.max_image_pixels,
            resize=dataset.resize,
            labels_file=None if read.labels is None else str(read.labels.resolve()),
        )

    @classmethod
    def parse(cls, facts: dict[str, Any]) -> RunConfig:
        """Parse the JSON values of a description.

        Args:
            facts: The values of ``dataclasses.asdict``, with lists for tuples.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, UsageError: They are not those of a description.
        """
        tuples = {name: facts[name] and tuple(facts[name]) for name in ("labels", "shape", "image_size")}
        height, width, channels = map(int, facts["shape"])
        PixelContract(height, width, channels)  # checks them
        recipe, resize = Recipe(**facts["recipe"]), Resize(**facts["resize"])
        return cls(**{**facts, **tuples, "recipe": recipe, "resize": resize})

    @property
    def read_options(self) -> ReadOptions:
        """How the images are read."""
        return ReadOptions(
            image_size=self.image_size,
            skip_unreadable=self.skip_unreadable,
            limits=Limits(self.max_image_bytes, self.max_image_pixels),
            resize=self.resize,
            labels=self.find_labels(None),
        )

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
