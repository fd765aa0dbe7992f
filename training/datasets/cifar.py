"""Reads the binary archive of CIFAR-10."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evalmode.errors import DataError
from training.datasets.dataset import Progress, Split
from training.datasets.memory import check_memory
from training.datasets.published import Published, check_published, parse_published_labels

BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
LABELS = "batches.meta.txt"
RECORD_BYTES = 1 + 3 * 32 * 32  # the target, then all red values, all green values, all blue values
BATCH_IMAGES = 10_000
MAX_LABELS_BYTES = 1 << 16


def read_cifar(path: Path, progress: Progress) -> Published:
    """Read CIFAR-10's binary archive in one pass; nothing is written to disk.

    Args:
        path: The ``.tar.gz`` file.
        progress: Called with "decoding" and the number of images read, after each batch.

    Returns:
        Training and test images.

    Raises:
        DataError: The archive is damaged or incomplete.
    """
    count, total = BATCH_IMAGES, BATCH_IMAGES * len(BATCHES)
    labels: tuple[str, ...] = ()
    found: set[str] = set()
    check_memory((total, 32, 32, 3))
    pixels, targets = np.empty((total, 32, 32, 3), np.uint8), np.empty(total, np.int64)
    for name, content in _read_members(path):
        found.add(name)
        if name == LABELS:
            labels = parse_published_labels(content, f"{path}: {name}")
            continue
        records = np.frombuffer(content, np.uint8).reshape(count, RECORD_BYTES)
        place = slice(BATCHES.index(name) * count, (BATCHES.index(name) + 1) * count)
        targets[place] = records[:, 0]
        pixels[place] = records[:, 1:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
        progress("decoding", len(found - {LABELS}) * count, total)
    if missing := {*BATCHES, LABELS} - found:
        raise DataError(f"{path} is not a complete CIFAR-10 binary archive: it lacks {', '.join(sorted(missing))}")
    end = total - count
    splits = {"train": Split(pixels[:end], targets[:end]), "test": Split(pixels[end:], targets[end:])}
    return check_published(path, labels, splits)


def _read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the batches and of the label file; sizes are checked before anything is read."""
    batch_bytes = BATCH_IMAGES * RECORD_BYTES
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in (*BATCHES, LABELS):
                    continue
                if member.size > MAX_LABELS_BYTES if name == LABELS else member.size != batch_bytes:
                    limit = f"{batch_bytes:,} are" if name in BATCHES else f"at most {MAX_LABELS_BYTES:,} are"
                    raise DataError(f"{path}: {name} has {member.size:,} bytes, {limit} expected")
                if file := archive.extractfile(member):  # None for a folder
                    yield name, file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise DataError(f"{path} is not a CIFAR-10 binary archive, or it is damaged: {error}") from error
