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

from serving.errors import ImageError
from serving.limits import IMAGE_SUFFIXES, Limits
from serving.pixels import PixelContract, Pixels, decode_image, probe_image
from training.errors import DataError

Indices = npt.NDArray[np.int64]
Files = tuple[list[Path], Indices]  # images with the index of each one's label
T = TypeVar("T")
Progress = Callable[[int, int], None]  # images done, images in all

HELD_OUT = 0.1  # share of the training images carved for each split that a folder does not bring
DIGITS = "digits"
SPLITS = ("train", "val", "test")
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
    targets = bunch.target.astype(np.int64)
    rest, test = _carve(targets, 0.2, seed)
    train, val = (rest[part] for part in _carve(targets[rest], HELD_OUT, seed))
    splits = {"train": train, "val": val, "test": test}
    labels = tuple(str(name) for name in bunch.target_names)
    return Dataset(DIGITS, labels, **{name: Split(images[part], targets[part]) for name, part in splits.items()})


def _load_folder(root: Path, image_size: tuple[int, int] | None, seed: int, progress: Progress) -> Dataset:
    if not root.is_dir():
        raise DataError(f"{root} is no folder and no data set's name: give a folder of <class>/<image>, or 'digits'")
    folders = {name: root / name for name in SPLITS if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": root}
    labels = _list_classes(folders["train"])
    files = {name: _list_images(folder, labels) for name, folder in folders.items()}
    _carve_missing(files, labels, seed)
    everything = [path for paths, _ in files.values() for path in paths]
    contract = _choose_contract(everything, image_size)
    _check_memory(len(everything), contract)
    pixels = _decode_all(everything, contract, progress)
    parts = np.split(pixels, np.cumsum([len(paths) for paths, _ in files.values()])[:-1])  # views, not copies
    splits = {name: Split(part, targets) for (name, (_, targets)), part in zip(files.items(), parts, strict=True)}
    return Dataset(str(root), labels, **splits)


def _carve_missing(files: dict[str, Files], labels: tuple[str, ...], seed: int) -> None:
    """Carve the splits that the folder does not bring from its training images, before anything is decoded."""
    missing = [name for name in ("test", "val") if name not in files]
    counts = np.bincount(files["train"][1], minlength=len(labels))
    if counts.min() <= len(missing):
        raise DataError(
            f"class {labels[counts.argmin()]!r} has {counts.min()} training images, at least {len(missing) + 1} are "
            f"needed as {' and '.join(missing)} images are taken from them"
        )
    for name in missing:
        paths, targets = files["train"]
        kept, taken = _carve(targets, HELD_OUT, seed)
        files["train"], files[name] = (([paths[i] for i in part], targets[part]) for part in (kept, taken))


def _list_classes(folder: Path) -> tuple[str, ...]:
    labels = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(labels) < 2:
        raise DataError(f"{folder} holds {len(labels)} class folders, at least 2 are needed: <class>/<image>")
    return labels


def _list_images(folder: Path, labels: tuple[str, ...]) -> Files:
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


def _carve(targets: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Choose a share of every class, at least one image; returns the indices kept and taken, ascending."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(targets), bool)
    for target in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == target))
        taken[members[: max(1, round(share * len(members)))]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)
