"""Data sets as they are published: IDX files, CIFAR-10's binary archive, ``.npz``; and the embedded digits.

Every reader returns the labels and the splits that the data bring. All raise ``DataError`` for data that are damaged,
incomplete, or contradict themselves.
"""

from __future__ import annotations

import gzip
import math
import struct
import tarfile
import textwrap
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from evalmode.errors import UsageError
from evalmode.images.label_files import parse_labels
from evalmode.images.pixels import Pixels
from training.datasets.dataset import HELD_OUT, SPLITS, Dataset, Progress, Split, carve_missing, check_memory
from training.errors import DataError

Published = tuple[tuple[str, ...], dict[str, Split]]

FASHION_LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR_BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_LABELS = "batches.meta.txt"
CIFAR_RECORD_BYTES = 1 + 3 * 32 * 32  # a target, then all red values, all green, all blue
CIFAR_BATCH_IMAGES = 10_000
DIGITS_TEST_SHARE = 0.2  # of 1,797
NPZ_KEYS = ("x_{}", "y_{}"), ("{}_images", "{}_labels")  # as Keras publishes, as MedMNIST does
MAX_TEXT_BYTES = 1 << 16
MAX_REASON = 200  # characters of what numpy says
DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, ValueError)


def split_published(source: str, published: Published, image_size: tuple[int, int] | None, seed: int) -> Dataset:
    """Carve what a published data set does not bring from its training images; they are not resized."""
    labels, splits = published
    train = splits["train"]
    height, width = train.images.shape[1:3]
    if image_size not in (None, (height, width)):
        raise DataError(f"the images of {source} are {height}x{width}: leave --image-size out")
    rows = carve_missing(train.targets, splits, labels, seed, DIGITS_TEST_SHARE if source == "digits" else HELD_OUT)
    train = replace(train, rows=np.arange(len(train)))
    carved = {
        name: Split(train.images[part], train.targets[part], rows=part)
        for name, part in rows.items()
        if name != "train"
    }
    splits = splits | carved | {"train": train.keep(rows["train"])}
    return Dataset(source, labels, splits["train"], splits["val"], splits["test"])


def read_digits() -> Published:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, values 0..16 stretched to 0..255."""
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    return tuple(map(str, bunch.target_names)), {"train": Split(images, bunch.target.astype(np.int64))}


def read_idx(folder: Path, labels: tuple[str, ...] = ()) -> Published:
    """The four IDX files of MNIST and its likes, each gzipped or not.

    Labels that are not given are the lines of ``labels.txt`` beside them, or the numbers from 0.
    """
    splits = {}
    for name, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx_file(folder / f"{prefix}-images-idx3-ubyte", 3)[..., np.newaxis]
        targets = _read_idx_file(folder / f"{prefix}-labels-idx1-ubyte", 1).astype(np.int64)
        splits[name] = Split(images, targets)
    if not labels and (folder / "labels.txt").exists():
        labels = _parse_labels((folder / "labels.txt").read_bytes(), str(folder / "labels.txt"))
    return _check(folder, labels, splits)


def _read_idx_file(plain: Path, dimensions: int) -> Pixels:
    """0, 0, 8 for uint8, the number of dimensions, each as uint32 (all big-endian), then the values."""
    gzipped = plain.with_name(plain.name + ".gz")
    path = gzipped if gzipped.exists() else plain
    expected = bytes([0, 0, 8, dimensions])
    if not path.exists():
        raise DataError(f"{plain} is missing, and so is {gzipped.name}: all four IDX files are needed")
    try:
        with gzip.open(path) if path == gzipped else path.open("rb") as file:
            magic, sizes = file.read(4), file.read(4 * dimensions)
            if magic != expected or len(sizes) < 4 * dimensions:
                raise DataError(
                    f"{path} is no IDX file: it begins with {magic.hex() or 'nothing'}, not {expected.hex()}"
                )
            shape = struct.unpack(f">{dimensions}I", sizes)
            check_memory(shape)  # the header may lie
            values = np.empty(math.prod(shape), np.uint8)
            held = file.readinto(values.data) + len(file.read(1))
    except DAMAGE as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if held != len(values):
        held_text = f"{held:,}" if held < len(values) else "more"
        raise DataError(f"{path} holds {held_text} values, its header says {' x '.join(map(str, shape))}")
    return values.reshape(shape)


def read_cifar(path: Path, progress: Progress) -> Published:
    """CIFAR-10's binary archive, in one pass; nothing is written to disk."""
    count, total = CIFAR_BATCH_IMAGES, CIFAR_BATCH_IMAGES * len(CIFAR_BATCHES)
    labels: tuple[str, ...] = ()
    found: set[str] = set()
    check_memory((total, 32, 32, 3))
    pixels, targets = np.empty((total, 32, 32, 3), np.uint8), np.empty(total, np.int64)
    for name, content in _read_members(path):
        found.add(name)
        if name == CIFAR_LABELS:
            labels = _parse_labels(content, f"{path}: {name}")
            continue
        records = np.frombuffer(content, np.uint8).reshape(count, CIFAR_RECORD_BYTES)
        place = slice(CIFAR_BATCHES.index(name) * count, (CIFAR_BATCHES.index(name) + 1) * count)
        targets[place] = records[:, 0]
        pixels[place] = records[:, 1:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
        progress("decoding", len(found - {CIFAR_LABELS}) * count, total)
    if missing := {*CIFAR_BATCHES, CIFAR_LABELS} - found:
        raise DataError(f"{path} is no whole CIFAR-10 binary archive: it lacks {', '.join(sorted(missing))}")
    end = total - count
    splits = {"train": Split(pixels[:end], targets[:end]), "test": Split(pixels[end:], targets[end:])}
    return _check(path, labels, splits)


def _read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the batches and of the labels' file, as they come; no size in the archive is trusted."""
    batch_bytes = CIFAR_BATCH_IMAGES * CIFAR_RECORD_BYTES
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in (*CIFAR_BATCHES, CIFAR_LABELS):
                    continue
                if member.size > MAX_TEXT_BYTES if name == CIFAR_LABELS else member.size != batch_bytes:
                    limit = f"{batch_bytes:,} are" if name in CIFAR_BATCHES else f"at most {MAX_TEXT_BYTES:,} are"
                    raise DataError(f"{path}: {name} has {member.size:,} bytes, {limit} expected")
                if file := archive.extractfile(member):  # not a link or a folder
                    yield name, file.read()
    except DAMAGE as error:
        raise DataError(f"{path} is no CIFAR-10 binary archive, or damaged: {error}") from error


def read_npz(path: Path) -> Published:
    """Arrays ``x_train``, ``y_train``, also ``_val`` and ``_test``; or ``train_images``, ``train_labels`` and so on.

    Images are uint8 (N, H, W) or (N, H, W, C), targets whole numbers (N,) or (N, 1); ``labels`` may name the classes.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            images, targets = next((keys for keys in NPZ_KEYS if keys[0].format("train") in archive), NPZ_KEYS[0])
            given = [name for name in SPLITS if name == "train" or images.format(name) in archive]
            splits = {name: _read_pair(archive, images.format(name), targets.format(name), path) for name in given}
            labels = tuple(archive["labels"].ravel().astype(str).tolist()) if "labels" in archive else ()
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen types: ValueError, TokenError, OverflowError, ...
        raise DataError(f"{path} cannot be read as .npz: {_describe(error)}") from error
    return _check(path, labels, splits)


def _describe(error: Exception) -> str:
    """An error's first line, which may quote all of a damaged header; its type's name where it says nothing."""
    first, *_ = (*str(error).splitlines(), "")
    return textwrap.shorten(first, MAX_REASON) if first.strip() else type(error).__name__


def _read_pair(archive: Any, images_key: str, targets_key: str, path: Path) -> Split:
    for key in (images_key, targets_key):
        if key not in archive:
            raise DataError(f"{path} lacks {key}, it holds {', '.join(archive) or 'nothing'}: x_train, y_train, ...")
        check_memory((archive.zip.getinfo(f"{key}.npy").file_size,))
    images, targets = archive[images_key], archive[targets_key]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        needed = "uint8 (N, H, W) or (N, H, W, 1 or 3) is needed"
        raise DataError(f"{path}: {images_key} is {images.dtype} {images.shape}: {needed}")
    if targets.dtype.kind not in "iu" or targets.shape[1:] not in ((), (1,)):
        needed = "one whole number an image is needed, (N,) or (N, 1)"
        raise DataError(f"{path}: {targets_key} is {targets.dtype} {targets.shape}: {needed}")
    if targets.size and not 0 <= targets.min() <= targets.max() < 2**31:
        raise DataError(f"{path}: {targets_key} holds {targets.min()}..{targets.max()}: targets count from 0")
    return Split(images if images.ndim == 4 else images[..., np.newaxis], targets.reshape(-1).astype(np.int64))


def _parse_labels(content: bytes, source: str) -> tuple[str, ...]:
    try:
        return parse_labels(content, source)
    except UsageError as error:
        raise DataError(str(error)) from error


def _check(path: Path, labels: tuple[str, ...], splits: dict[str, Split]) -> Published:
    """Refuse what does not fit together; without names, labels are the numbers from 0."""
    for name, part in splits.items():
        if not part.images.size or len(part.images) != len(part):
            raise DataError(
                f"{path}: {name} has images {part.images.shape} and {len(part):,} targets, one each is needed"
            )
        if part.images.shape[1:] != splits["train"].images.shape[1:]:
            shapes = f"{part.images.shape[1:]}, train images {splits['train'].images.shape[1:]}"
            raise DataError(f"{path}: {name} images are {shapes}: one size and one number of channels is needed")
    largest = max(int(part.targets.max()) for part in splits.values())
    classes = len(labels) or len(splits["train"])  # more classes than images cannot be
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise DataError(f"{path}: the label {twice[0]!r} is there twice: each label once")
    if largest >= classes:
        given = f"they are {', '.join(labels)}" if labels else f"there are {classes} training images"
        raise DataError(f"{path}: targets up to {largest} need {largest + 1} distinct labels, and {given}")
    return labels or tuple(map(str, range(largest + 1))), splits
