"""Read labelled images from a folder ``<label>/<image>``, decoded as a server decodes them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evalmode.certification.metrics import Indices
from evalmode.errors import ImageError, UsageError
from evalmode.images.folders import describe_nested, describe_unread, find_images, list_folder, separate_images
from evalmode.images.formats import FORMATS
from evalmode.images.pixels import PixelContract, Pixels, decode_image
from evalmode.limits import Limits


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with labels.

    Attributes:
        paths: N paths.
        pixels: uint8 (N, H, W, C).
        targets: The index of each image's label, int64 (N,).
        warnings: A sentence for each kind of file that was not read.
    """

    paths: list[Path]
    pixels: Pixels
    targets: Indices
    warnings: tuple[str, ...] = ()


def read_labelled(
    folder: Path, labels: tuple[str, ...], contract: PixelContract, limits: Limits | None = None
) -> Labelled:
    """Read and decode every image of a folder.

    Args:
        folder: ``<label>/<image>``, with any number of folders in between.
        labels: The labels, in the order of the network's outputs.
        contract: Height, width and channels of the decoded images.
        limits: The largest image allowed; by default a server's limits.

    Returns:
        The images, sorted by label and path.

    Raises:
        UsageError: A folder is not named like a label or cannot be read, there is no image, or an image cannot be
            decoded.
    """
    folders, beside = list_folder(folder)
    # In Unicode's normal form C: macOS names folders in form D.
    targets_of = {unicodedata.normalize("NFC", label): target for target, label in enumerate(labels)}
    found_targets = [targets_of.get(unicodedata.normalize("NFC", path.name), -1) for path in folders]
    unknown = [path.name for path, target in zip(folders, found_targets, strict=True) if target < 0]
    if unknown:
        alike = [label for label in labels if label.rpartition(" (")[0] in unknown]  # labels that got their index
        shown = list(dict.fromkeys((*alike, *labels)))
        hint = _suggest_split(folders, set(targets_of)) if len(unknown) == len(folders) else ""
        raise UsageError(
            f"{folder} holds folders that are not named like a label: {', '.join(unknown[:5])}; "
            f"labels: {_list_labels(shown)}{hint}"
        )
    outside = separate_images(beside)
    paths: list[Path] = []
    targets: list[int] = []
    others = list(outside.others)
    for target, path in sorted(zip(found_targets, folders, strict=True)):
        found = find_images(path)
        others += found.others
        paths += found.images
        targets += [target] * len(found.images)
    pixels = []
    for path in paths:
        try:
            pixels.append(decode_image(path.read_bytes(), contract, limits or Limits(), FORMATS))
        except ImageError as error:
            raise UsageError(f"{path}: {error}") from error
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    warnings = describe_unread(others, outside.images)
    if not paths:
        missing = f"{folder} holds no <label>/<image> of {_list_labels(labels)}"
        remedy = "put each image into a folder named by its label" if outside.images else ""
        raise UsageError("; ".join(filter(None, (missing, *warnings, remedy))))
    warnings += describe_nested(paths, folders)
    return Labelled(paths, np.stack(pixels), np.array(targets, np.int64), warnings)


def _suggest_split(folders: Sequence[Path], labels: set[str]) -> str:
    """Suggest one of the folders that hold folders named like labels: not that of training, if there is another."""
    splits = [
        path
        for path in folders
        if (inner := {unicodedata.normalize("NFC", one.name) for one in list_folder(path)[0]}) and inner <= labels
    ]
    if not splits:
        return ""
    return f"; give one split, such as {min(splits, key=lambda path: (path.name.startswith('train'), path))}"


def _list_labels(labels: Sequence[str]) -> str:
    return ", ".join(labels[:5]) + ", ..." * (len(labels) > 5)
