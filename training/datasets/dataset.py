"""The types of a data set: labelled pixels in three splits, and the options they are read with.

Shapes: N images, H height, W width, C channels (3 for RGB, 1 for grey).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evalmode.images.pixels import PixelContract, Pixels, Resize
from evalmode.limits import OWN_IMAGES, Limits
from training.datasets.storage import count_rows, read_blocks, release_pages

Indices = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]  # "downloading" (bytes) or "decoding" (images); how many are done; the total

SPLITS = ("train", "val", "test")
DEFAULT_RESIZE = Resize()


@dataclass(frozen=True)
class ReadOptions:
    """How images are read.

    Attributes:
        image_size: The (height, width) in pixels to which the images of a folder are resized. If it is None, images
            that all have one size keep it, and images of several sizes become squares.
        skip_unreadable: Leave out the unreadable files of a folder, with a warning, instead of raising an error.
        limits: The largest image of a folder in bytes and pixels.
        resize: How the images of a folder are resized and cropped.
        labels: A table of the files of a folder and their labels; None if the labels are the names of folders.
    """

    image_size: tuple[int, int] | None = None
    skip_unreadable: bool = False
    limits: Limits = OWN_IMAGES
    resize: Resize = DEFAULT_RESIZE
    labels: Path | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Attributes:
        images: The pixels, uint8 (N, H, W, C).
        targets: The index of each image's label, int64 (N,).
        paths: The file of each image, N of them; empty for images from an archive.
        rows: For images that were carved from an archive's training images: the index of each one there, int64 (N,).
            None for a split that is used as the archive has it.
    """

    images: Pixels
    targets: Indices
    paths: tuple[Path, ...] = ()
    rows: Indices | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def keep(self, rows: Indices) -> Split:
        """Keep only some images.

        They are moved to the front of the same array, because a second array might not fit into memory.

        Args:
            rows: The indices of the images to keep, int64, ascending.

        Returns:
            A split of these images; the split it is called on must not be used again.
        """
        step = count_rows(self.images)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            self.images[start : start + len(part)] = self.images[part]  # never overwrites a row that is still needed
            release_pages(self.images)
        paths = tuple(self.paths[row] for row in rows) if self.paths else ()
        kept = None if self.rows is None else self.rows[rows]
        return Split(self.images[: len(rows)], self.targets[rows], paths, kept)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in three disjoint splits.

    Attributes:
        source: The path or name it was loaded from.
        labels: The class names; targets are indices into them.
        train: The images that the weights are learned from.
        val: The images that the best epoch is chosen by.
        test: The images that the final accuracy is measured on; they influence no choice.
        warnings: Sentences about the data that the user should read.
        resize: How the images were resized and cropped, and how those of requests will be.
        carved: The names of the splits that the data do not have, and that were carved from the training images.
        has_characters: Whether the images are known to show characters. Their mirror images are other characters or
            none, so training does not mirror them by default.
    """

    source: str
    labels: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    warnings: tuple[str, ...] = ()
    resize: Resize = DEFAULT_RESIZE
    carved: tuple[str, ...] = ()
    has_characters: bool = False

    @property
    def contract(self) -> PixelContract:
        """Height, width and channels of every image, and how images become such pixels."""
        height, width, channels = self.train.images.shape[1:]
        return PixelContract(height, width, channels, self.resize)

    def digest(self) -> str:
        """Hash the labels, pixels and targets of all splits; equal digests mean equal data.

        Returns:
            ``sha256:`` and 64 hexadecimal digits.
        """
        digest = hashlib.sha256("\0".join(self.labels).encode())
        for split in (self.train, self.val, self.test):
            digest.update(repr(split.images.shape).encode())
            for block in read_blocks(split.images):
                digest.update(np.ascontiguousarray(block).data)
            digest.update(split.targets.data)
        return "sha256:" + digest.hexdigest()
