"""Read labelled images, decoded as a server decodes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evalmode.certification.labelled_files import list_labelled
from evalmode.certification.metrics import Indices
from evalmode.errors import ImageError, UsageError
from evalmode.images.formats import FORMATS
from evalmode.images.pixels import PixelContract, Pixels, decode_image
from evalmode.limits import Limits


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with labels.

    Attributes:
        root: The folder that names of images are relative to.
        paths: N paths.
        pixels: uint8 (N, H, W, C).
        targets: The index of each image's label, int64 (N,).
        warnings: A sentence for each kind of file that was not read.
    """

    root: Path
    paths: list[Path]
    pixels: Pixels
    targets: Indices
    warnings: tuple[str, ...] = ()


def read_labelled(
    source: Path, labels: tuple[str, ...], contract: PixelContract, limits: Limits | None = None
) -> Labelled:
    """Read and decode every image of a folder or of a table.

    Args:
        source: A folder ``<label>/<image>``, or a table of files and labels, see ``list_labelled``.
        labels: The labels, in the order of the network's outputs.
        contract: Height, width and channels of the decoded images.
        limits: The largest image allowed; by default a server's limits.

    Returns:
        The images, sorted by label and path.

    Raises:
        DataError: The table is damaged, names no images, or does not fit the labels.
        UsageError: A folder is not named like a label or cannot be read, there is no image, or an image cannot be
            decoded.
    """
    listed = list_labelled(source, labels)
    pixels = []
    for path in listed.paths:
        try:
            pixels.append(decode_image(path.read_bytes(), contract, limits or Limits(), FORMATS))
        except ImageError as error:
            raise UsageError(f"{path}: {error}") from error
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    targets = np.array(listed.targets, np.int64)
    return Labelled(listed.root, listed.paths, np.stack(pixels), targets, listed.warnings)
