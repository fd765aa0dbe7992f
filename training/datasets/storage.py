"""Where pixels are kept: in memory, or in a memory-mapped file if they are many.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from evalmode.errors import DataError
from evalmode.images.pixels import Pixels
from training.datasets.memory import available_memory_bytes

IN_MEMORY_BYTES = 256 << 20  # larger pixels are mapped; docs/decisions/0023-data-as-people-have-it.md
BLOCK_BYTES = 64 << 20  # pixels that a pass over all images reads before it releases their pages


class _PixelFile(mmap.mmap):
    """The mapping of a file without a name: the system removes it with the process, however that ends."""


def ignore_notice(sentence: str) -> None:
    """Report nothing.

    Args:
        sentence: The sentence.
    """


@dataclass(frozen=True)
class Storage:
    """Allocates arrays of pixels.

    Attributes:
        folder: The folder of the files. If it is None or not writable, the folder for temporary files is used.
        notify: Called with a sentence about each file, before it is written.
    """

    folder: Path | None = None
    notify: Callable[[str], None] = ignore_notice

    def allocate(self, shape: tuple[int, ...]) -> Pixels:
        """Allocate an array. It is in a memory-mapped file if it is large, or larger than the available memory.

        Args:
            shape: The shape of the array.

        Returns:
            uint8 of this shape; the values are undefined.

        Raises:
            DataError: The array is larger than the free space of the disk, or the file cannot be written.
        """
        size_bytes = math.prod(shape)
        if size_bytes <= min(IN_MEMORY_BYTES, available_memory_bytes()):
            return np.empty(shape, np.uint8)
        what = f"{' x '.join(map(str, shape))} pixels need {size_bytes:,} bytes"
        file, folder = _open_file(self.folder)
        with file:
            free = shutil.disk_usage(folder).free
            if size_bytes > free:
                raise DataError(
                    f"{what} in {folder} and {free:,} are free: choose a smaller --image-size, fewer images, or a "
                    "--cache on another disk"
                )
            self.notify(f"{what}: they are kept in a file in {folder} until the process ends; {free:,} are free")
            try:
                reserve(file, size_bytes)
                return np.ndarray(shape, np.uint8, buffer=_PixelFile(file.fileno(), size_bytes))
            except OSError as error:
                raise DataError(f"{what} and the file in {folder} cannot be written: {error.strerror}") from error

    def copy(self, images: Pixels, rows: npt.NDArray[np.int64]) -> Pixels:
        """Copy some images.

        Args:
            images: uint8 (N, H, W, C).
            rows: The indices of the images to copy, int64.

        Returns:
            uint8 (len(rows), H, W, C).
        """
        copied = self.allocate((len(rows), *images.shape[1:]))
        step = count_rows(images)
        for start in range(0, len(rows), step):
            copied[start : start + step] = images[rows[start : start + step]]
            release_pages(images)
            release_pages(copied)
        return copied


def release_pages(images: npt.NDArray[Any]) -> None:
    """Release the resident memory of pixels in a memory-mapped file; the values stay in the file.

    A pass over all images calls this now and then, so that the process keeps only a part of them in memory. Pixels in
    memory are left as they are.

    Args:
        images: Pixels that a ``Storage`` allocated, an array of ``numpy.memmap``, or a view of them.
    """
    owner: object = images
    shared = False
    while isinstance(owner, np.ndarray):
        shared |= isinstance(owner, np.memmap) and owner.mode != "c"
        owner = owner.base
    # Only for shared mappings: the pages of a private one hold changes that are in no file.
    if isinstance(owner, mmap.mmap) and (shared or isinstance(owner, _PixelFile)) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def read_blocks(images: Pixels) -> Iterator[Pixels]:
    """Iterate over images in blocks that fit into memory, and release each block after its use.

    Args:
        images: uint8 (N, H, W, C).

    Yields:
        Consecutive images, a view.
    """
    step = count_rows(images)
    for start in range(0, len(images), step):
        yield images[start : start + step]
        release_pages(images)


def count_rows(images: Pixels) -> int:
    """Count the images of a block: at least one, however large the images are.

    Args:
        images: uint8 (N, H, W, C).
    """
    return max(1, BLOCK_BYTES // max(1, math.prod(images.shape[1:])))


def _open_file(folder: Path | None) -> tuple[IO[bytes], Path]:
    """Open a file without a name; return it with its folder."""
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=folder), folder
        except OSError:
            pass  # such as a folder of published data sets that is read-only
    folder = Path(tempfile.gettempdir())
    return tempfile.TemporaryFile(dir=folder), folder


def reserve(file: IO[bytes], size_bytes: int) -> None:
    """Allocate the blocks of a file: without them, writing to the mapping kills the process if the disk is full.

    Args:
        file: The open file.
        size_bytes: Its size.

    Raises:
        OSError: The disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    else:
        file.truncate(size_bytes)
