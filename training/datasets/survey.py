"""What is known about a data set before any image is decoded: it decides which network suits the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

from evalmode.errors import DataError
from evalmode.images.pixels import probe_header
from training.datasets.dataset import SPLITS, ReadOptions
from training.datasets.image_files import ImageReader
from training.datasets.labelled_files import is_image_folder, list_images

MAX_HEADERS = 500  # files whose headers are read
PHOTO_SIDE = 96  # pixels
DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class Survey:
    """What the headers of a data set say about its images.

    Attributes:
        shorter_side: The median of the shorter sides of image files, pixels; None for arrays, which are not resized.
    """

    shorter_side: int | None

    @property
    def are_photos(self) -> bool:
        """Whether the images are files whose median shorter side is 96 pixels or more."""
        return self.shorter_side is not None and self.shorter_side >= PHOTO_SIDE


def survey_data(source: str, options: ReadOptions = DEFAULT_OPTIONS) -> Survey:
    """Look at a data set without decoding its images.

    Of a folder, the headers of at most 500 evenly spaced files are read.

    Args:
        source: The data set, as for ``load_dataset``.
        options: How its images are read.

    Returns:
        The size of its images.

    Raises:
        DataError: A folder holds no images that can be read.
        UsageError: A folder cannot be read.
    """
    if not is_image_folder(source, options):
        return Survey(None)
    try:
        return _survey_folder(Path(source), options)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error}") from error


def _survey_folder(root: Path, options: ReadOptions) -> Survey:
    """Read the headers of some of the images of a folder; unreadable ones are left out."""
    files = list_images(root, options).files
    paths = [path for name in SPLITS if name in files for path in files[name][0]]
    chosen = paths[:: -(-len(paths) // MAX_HEADERS)]
    reader = ImageReader(options.limits)
    probed = (reader.read(path, probe_header) for path in chosen)
    sides = [min(shape.height, shape.width) for shape in probed if shape]
    if not sides:
        raise reader.make_error(len(chosen))
    return Survey(median_low(sides))
