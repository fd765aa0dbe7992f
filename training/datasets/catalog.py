"""The data sets that have a name. To add one, add a record here, and a reader if its format is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evalmode.errors import DataError
from training.datasets.cifar import read_cifar
from training.datasets.dataset import Progress
from training.datasets.digits import read_digits
from training.datasets.downloads import PublishedFile
from training.datasets.idx import read_idx
from training.datasets.published import Published


@dataclass(frozen=True, eq=False)
class NamedDataset:
    """A data set that is loaded by its name.

    Attributes:
        read: Reads the data set; called with the folder of its files and a progress callback.
        files: The files to find in the cache or to download; none if the data are installed with a library.
        has_characters: Whether the images show characters.
    """

    read: Callable[[Path, Progress], Published]
    files: tuple[PublishedFile, ...] = ()
    has_characters: bool = False


FASHION_LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"


def _read_idx(folder: Path, progress: Progress, labels: tuple[str, ...] = ()) -> Published:
    return read_idx(folder, labels)


def _read_cifar(folder: Path, progress: Progress) -> Published:
    return read_cifar(folder / CIFAR_ARCHIVE, progress)


def _read_digits(folder: Path, progress: Progress) -> Published:
    return read_digits()


def _list_files(url: str, files: dict[str, tuple[int, str]]) -> tuple[PublishedFile, ...]:
    """Make the records of files that are published in one place.

    Args:
        url: The address of the folder, with a slash at its end.
        files: The size in bytes and the sha256 of each file by its name.
    """
    return tuple(PublishedFile(url + name, size_bytes, sha256) for name, (size_bytes, sha256) in files.items())


# Source of the checksums: tensorflow-datasets' url_checksums; for the content of .gz files, published lists of
# checksums. docs/decisions/0008-data-sets.md says what they were compared with.
MNIST_FILES = _list_files(
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    {
        "train-images-idx3-ubyte.gz": (9912422, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        "train-labels-idx1-ubyte.gz": (28881, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        "t10k-images-idx3-ubyte.gz": (1648877, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        "t10k-labels-idx1-ubyte.gz": (4542, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    },
)
FASHION_FILES = _list_files(
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    {
        "train-images-idx3-ubyte.gz": (26421880, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        "train-labels-idx1-ubyte.gz": (29515, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        "t10k-images-idx3-ubyte.gz": (4422102, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        "t10k-labels-idx1-ubyte.gz": (5148, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    },
)
CIFAR_FILES = _list_files(
    "https://www.cs.toronto.edu/~kriz/",
    {
        CIFAR_ARCHIVE: (170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    },
)

DATASETS = {
    "digits": NamedDataset(_read_digits, has_characters=True),
    "mnist": NamedDataset(_read_idx, MNIST_FILES, has_characters=True),
    "fashion-mnist": NamedDataset(partial(_read_idx, labels=FASHION_LABELS), FASHION_FILES),
    "cifar10": NamedDataset(_read_cifar, CIFAR_FILES),
}


def make_unknown(source: str) -> DataError:
    """Make the error for a source that is none of the kinds of data.

    Args:
        source: What the user gave.
    """
    names = ", ".join(map(repr, DATASETS))
    return DataError(
        f"{source} is not a folder, a .npz or .tar.gz file, or the name of a data set: give one of them; the names are "
        f"{names}"
    )
