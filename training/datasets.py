"""Labelled images as arrays: image folders, and the embedded digits.

Shapes: N images, H height, W width, C channels (3 RGB, 1 grey).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import psutil
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from serving.errors import ImageError
from serving.limits import IMAGE_SUFFIXES, Limits
from serving.pixels import PixelContract, Pixels, decode_image, probe_image
from training.errors import DataError

Indices = npt.NDArray[np.int64]
T = TypeVar("T")
Progress = Callable[[int, int], None]  # images done, images in all

HELD_OUT = 0.1  # share of the training images carved for each split that a folder does not bring
DIGITS = "digits"
LIMITS = Limits(max_image_bytes=2**31 - 1, max_image_pixels=178_956_970)  # our own files, not strangers' requests


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, H, W, C) with the index of each one's label, int64 (N,)."""

    images: Pixels
    targets: Indices

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Dataset:
    """Labelled images in three disjoint splits.

    Attributes:
        source: what it was loaded from: a folder or a name.
        labels: class names; targets index into them.
        train: what the network learns from.
        val: what chooses between checkpoints.
        test: read once, when all is chosen.
    """

    source: str
    labels: tuple[str, ...]
    train: Split
    val: Split
    test: Split

    @property
    def contract(self) -> PixelContract:
        """The shape of every image."""
        return PixelContract(*self.train.images.shape[1:])

    def digest(self) -> str:
        """``sha256:...`` over labels, pixels and targets of every split: equal digests, equal data."""
        digest = hashlib.sha256("\0".join(self.labels).encode())
        for split in (self.train, self.val, self.test):
            digest.update(repr(split.images.shape).encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(split.targets.data)
        return "sha256:" + digest.hexdigest()


def load_dataset(
    source: str, image_size: tuple[int, int] | None = None, seed: int = 0, progress: Progress | None = None
) -> Dataset:
    """Load a data set into memory.

    Args:
        source: ``digits``, or a folder: ``train/<class>/*`` with optional ``val/`` and ``test/``, or ``<class>/*``.
        image_size: (height, width) to bring every image to; by default the size they all have.
        seed: decides which images are carved for a split that the folder does not bring.
        progress: told how many of how many images are decoded.

    Raises:
        DataError: no such data, too few images or classes, an unreadable file, sizes that differ without
            ``image_size``, or more pixels than memory.
    """
    if source == DIGITS and not Path(source).is_dir():
        return _load_digits(image_size, seed)
    return _load_folder(Path(source), image_size, seed, progress or (lambda done, total: None))


def _load_digits(image_size: tuple[int, int] | None, seed: int) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, values 0..16 stretched to 0..255."""
    if image_size not in (None, (8, 8)):
        raise DataError("digits are 8x8: leave --image-size out")
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = tuple(str(name) for name in bunch.target_names)
    rest, test = _carve(Split(images, bunch.target.astype(np.int64)), labels, 0.2, seed)
    train, val = _carve(rest, labels, HELD_OUT, seed)
    return Dataset(DIGITS, labels, train, val, test)


def _load_folder(root: Path, image_size: tuple[int, int] | None, seed: int, progress: Progress) -> Dataset:
    if not root.is_dir():
        raise DataError(f"{root} is no folder and no data set's name: give a folder of <class>/<image>, or 'digits'")
    has_splits = (root / "train").is_dir()
    folders = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if not has_splits:
        folders = {"train": root}
    labels = _list_classes(folders["train"])
    files = {name: _list_images(folder, labels) for name, folder in folders.items()}
    everything = [path for paths, _ in files.values() for path in paths]
    contract = _choose_contract(everything, image_size)
    _check_memory(len(everything), contract)
    pixels = _decode_all(everything, contract, progress)
    splits = {}
    start = 0
    for name, (paths, targets) in files.items():
        splits[name] = Split(pixels[start : start + len(paths)], targets)
        start += len(paths)
    for name in ("test", "val"):
        if name not in splits:
            splits["train"], splits[name] = _carve(splits["train"], labels, HELD_OUT, seed)
    return Dataset(str(root), labels, splits["train"], splits["val"], splits["test"])


def _list_classes(folder: Path) -> tuple[str, ...]:
    labels = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(labels) < 2:
        raise DataError(f"{folder} holds {len(labels)} class folders, at least 2 are needed: <class>/<image>")
    return labels


def _list_images(folder: Path, labels: tuple[str, ...]) -> tuple[list[Path], Indices]:
    """Every image of a split in a fixed order, with its label's index; every split knows the same labels."""
    unknown = set(_list_classes(folder)) - set(labels)
    if unknown:
        raise DataError(f"{folder} holds classes that train/ does not: {', '.join(sorted(unknown))}")
    paths: list[Path] = []
    targets: list[int] = []
    for target, label in enumerate(labels):
        found = sorted(p for p in (folder / label).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(
                f"{folder / label} holds no image ({', '.join(IMAGE_SUFFIXES)}): add some or remove the class"
            )
        paths += found
        targets += [target] * len(found)
    return paths, np.array(targets, np.int64)


def _choose_contract(paths: Sequence[Path], image_size: tuple[int, int] | None) -> PixelContract:
    """Grey if all images are; the size they all have unless one is asked for."""
    shapes: dict[PixelContract, Path] = {}
    for path in paths:
        shapes.setdefault(_read_image(path, lambda image: probe_image(image, LIMITS)), path)
    channels = max(shape.channels for shape in shapes)
    sizes = {(shape.height, shape.width): path for shape, path in shapes.items()}
    if image_size is None and len(sizes) > 1:
        (first, one), (second, other), *_ = sizes.items()
        raise DataError(
            f"images differ in size ({one} is {first[0]}x{first[1]}, {other} {second[0]}x{second[1]}, height x width): "
            "choose one with --image-size HxW"
        )
    return PixelContract(*(image_size or next(iter(sizes))), channels)


def _check_memory(count: int, contract: PixelContract) -> None:
    needed = count * contract.height * contract.width * contract.channels
    available = available_memory_bytes()
    if needed > available:
        shape = f"{count} x {contract.height} x {contract.width} x {contract.channels}"
        raise DataError(
            f"{shape} pixels need {needed:,} bytes of memory and {available:,} are available: "
            "choose a smaller --image-size or fewer images"
        )


def available_memory_bytes(cgroup_limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Memory that can be had without swapping, cut to the container's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        return min(available, int(cgroup_limit.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return available


def _decode_all(paths: Sequence[Path], contract: PixelContract, progress: Progress) -> Pixels:
    """Decode every image once into one array, uint8 (N, H, W, C)."""
    pixels = np.empty((len(paths), *contract.shape), np.uint8)

    def decode(index: int) -> None:
        pixels[index] = _read_image(paths[index], lambda image: decode_image(image, contract, LIMITS))

    with ThreadPoolExecutor(cpu_count()) as pool:
        for done, _ in enumerate(pool.map(decode, range(len(paths))), 1):
            progress(done, len(paths))
    return pixels


def _read_image(path: Path, read: Callable[[bytes], T]) -> T:
    try:
        return read(path.read_bytes())
    except (ImageError, OSError) as error:
        raise DataError(f"{path}: {error}") from error


def _carve(split: Split, labels: tuple[str, ...], share: float, seed: int) -> tuple[Split, Split]:
    """Take a share of a split away, of every class alike."""
    counts = np.bincount(split.targets, minlength=len(labels))
    if counts.min() < 3:
        raise DataError(
            f"class {labels[counts.argmin()]!r} has {counts.min()} images, at least 3 are needed to hold some out"
        )
    share = max(share, len(labels) / len(split))  # at least one of each class
    kept, taken = train_test_split(np.arange(len(split)), test_size=share, stratify=split.targets, random_state=seed)
    kept.sort()
    taken.sort()
    return Split(split.images[kept], split.targets[kept]), Split(split.images[taken], split.targets[taken])
