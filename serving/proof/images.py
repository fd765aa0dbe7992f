"""Labelled images from a folder ``<label>/<image>``, decoded as the server decodes them."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.errors import ImageError, UsageError
from serving.limits import IMAGE_SUFFIXES, Limits
from serving.pixels import PixelContract, Pixels, decode_image
from serving.proof.figures import Indices


@dataclass(frozen=True)
class Labelled:
    """Images of known labels.

    Attributes:
        paths: where they lie, N of them.
        pixels: uint8 (N, H, W, C).
        targets: int64 (N,), the labels' positions.
        warnings: what was not read, a sentence each.
    """

    paths: list[Path]
    pixels: Pixels
    targets: Indices
    warnings: tuple[str, ...] = ()


def read_labelled(folder: Path, labels: tuple[str, ...], contract: PixelContract) -> Labelled:
    """Decode every image of the folders that are named like a label; none may have another name.

    Raises:
        UsageError: a folder of another name, no image, or one that cannot be decoded.
    """
    # In Unicode's normal form C: macOS names folders in form D.
    folders = {unicodedata.normalize("NFC", path.name): path for path in folder.iterdir() if path.is_dir()}
    named = [unicodedata.normalize("NFC", label) for label in labels]
    unknown = sorted(folders.keys() - set(named))
    if unknown:
        raise UsageError(
            f"{folder} holds folders that are no label: {', '.join(unknown[:5])}; labels: {', '.join(labels[:5])}, ..."
        )
    paths, targets, pixels = [], [], []
    for target, label in enumerate(named):
        files = folders.get(label, folder / label).glob("*")
        for path in sorted(p for p in files if p.suffix.lower() in IMAGE_SUFFIXES):
            try:
                pixels.append(decode_image(path.read_bytes(), contract, Limits()))
            except (ImageError, OSError) as error:
                raise UsageError(f"{path}: {error}") from error
            paths.append(path)
            targets.append(target)
    if not paths:
        raise UsageError(f"{folder} holds no <label>/<image> of the labels {', '.join(labels[:5])}, ...")
    return Labelled(paths, np.stack(pixels), np.array(targets, np.int64))
