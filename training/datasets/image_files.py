"""Reads the image files of a folder, and records those that are unreadable or damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from evalmode.errors import DataError, ImageError
from evalmode.images.folders import name_some
from evalmode.images.formats import FORMATS
from evalmode.images.headers import Header, read_header
from evalmode.limits import Limits

T = TypeVar("T")


class ImageReader:
    """Reads image files within limits.

    Args:
        limits: The largest image in bytes and pixels.

    Attributes:
        unreadable: The files that could not be read, with the reason.
        exif_damaged: The files that have a damaged EXIF block.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.unreadable: dict[Path, str] = {}
        self.exif_damaged: list[Path] = []

    def read(self, path: Path, decode: Callable[[Header], T]) -> T | None:
        """Read a file and decode it.

        Args:
            path: The file.
            decode: Decodes the image, whose header has been read.

        Returns:
            What ``decode`` returns; None if that fails, with the reason in ``unreadable``.
        """
        try:
            header = read_header(path.read_bytes(), self._limits, FORMATS)
            decoded = decode(header)
            if header.exif_damaged:
                self.exif_damaged.append(path)
            return decoded
        except (ImageError, OSError) as error:
            self.unreadable[path] = str(error)
            return None

    def describe_damage(self) -> tuple[str, ...]:
        """Return warnings about the files that were recorded."""
        warnings: tuple[str, ...] = ()
        if self.unreadable:
            named = "; ".join(self._name_unreadable(3))
            warnings += (f"{len(self.unreadable)} unreadable images are left out: {named}",)
        if damaged := sorted(set(self.exif_damaged)):
            images = (
                "1 image has a damaged EXIF block and is"
                if len(damaged) == 1
                else f"{len(damaged)} images have damaged EXIF blocks and are"
            )
            warnings += (f"{images} assumed to be upright: {name_some(damaged)}",)
        return warnings

    def make_error(self, total: int) -> DataError:
        """Make the error that names the unreadable files.

        Args:
            total: How many files there are.
        """
        todo = "repair or remove them, or leave them out with --skip-unreadable"
        count = len(self.unreadable)
        return DataError("\n  ".join([f"{count} of {total} images cannot be read: {todo}", *self._name_unreadable(10)]))

    def _name_unreadable(self, count: int) -> list[str]:
        """Return the first few unreadable files, each with its reason, and how many more there are."""
        more = [f"and {len(self.unreadable) - count} more"] if len(self.unreadable) > count else []
        return [f"{path}: {self.unreadable[path]}" for path in sorted(self.unreadable)[:count]] + more
