"""What is known about a data set before any image is decoded: it decides which network suits the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

from evalmode.errors import DataError
from evalmode.images.pixels import probe_header
from training.datasets.catalog import DATASETS, make_unknown
from training.datasets.dataset import SPLITS, ReadOptions
from training.datasets.idx import read_idx_shapes
from training.datasets.image_files import ImageReader
from training.datasets.labelled_files import is_image_folder, list_images
from training.datasets.npz import read_npz_shapes

MAX_HEADERS = 500  # files whose headers are read
PHOTO_SIDE = 96  # pixels
DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class Survey:
    """What the names and headers of a data set say about its images.

    Attributes:
        images: How many there are in all splits.
        size: (height, width) in pixels if the images that were looked at have one size; None if they have several.
        shorter_side: The median of their shorter sides, pixels.
        are_files: Whether they are image files, which can be resized. Those of published arrays cannot.
    """

    images: int
    size: tuple[int, int] | None
    shorter_side: int
    are_files: bool

    @property
    def are_photos(self) -> bool:
        """Whether the images are files whose median shorter side is 96 pixels or more."""
        return self.are_files and self.shorter_side >= PHOTO_SIDE


def survey_data(source: str, options: ReadOptions = DEFAULT_OPTIONS) -> Survey:
    """Look at a data set without decoding its images.

    Of a folder, the headers of at most 500 evenly spaced files are read. Named data sets are not downloaded.

    Args:
        source: The data set, as for ``load_dataset``.
        options: How its images are read.

    Returns:
        The number and the size of its images.

    Raises:
        DataError: The data do not exist, or cannot be used.
        UsageError: A folder cannot be read.
    """
    try:
        if is_image_folder(source, options):
            return _survey_folder(Path(source), options)
        count, size = _survey_published(source)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    return Survey(count, size, min(size), are_files=False)


def _survey_folder(root: Path, options: ReadOptions) -> Survey:
    """Read the headers of some of the images of a folder; unreadable ones are left out."""
    files = list_images(root, options).files
    paths = [path for name in SPLITS if name in files for path in files[name][0]]
    chosen = paths[:: -(-len(paths) // MAX_HEADERS)]
    reader = ImageReader(options.limits)
    probed = (reader.read(path, probe_header) for path in chosen)
    sizes = [(shape.height, shape.width) for shape in probed if shape]
    if not sizes:
        raise reader.make_error(len(chosen))
    size = sizes[0] if len(set(sizes)) == 1 else None
    return Survey(len(paths), size, median_low(map(min, sizes)), are_files=True)


def _survey_published(source: str) -> tuple[int, tuple[int, int]]:
    """Return how many images published data hold, and their (height, width)."""
    path = Path(source)
    if path.is_dir():
        shapes = read_idx_shapes(path)
    elif named := DATASETS.get(source):
        return named.images, named.size
    elif path.is_file() and path.suffix == ".npz":
        shapes = read_npz_shapes(path)
    elif path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        return DATASETS["cifar10"].images, DATASETS["cifar10"].size
    else:
        raise make_unknown(source)
    return sum(shape[0] for shape in shapes), (shapes[0][1], shapes[0][2])
