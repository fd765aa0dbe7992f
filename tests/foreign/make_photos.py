"""Photos of odd sizes for the agreement of makers, from the photos of TrashNet: ``<label>/<photo>``.

    python tests/foreign/make_photos.py TRASHNET OUT

Two photos of each label, ``small-*``, are so small that the repository can hold them. No photo has an EXIF orientation,
transparency or four channels: libraries treat them in their own ways (docs/reference/artifact.md, "Other libraries").
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

COUNT = 200
SMALL = ((97, 131), (120, 90), (131, 97), (96, 96), (61, 150), (144, 100), (88, 88))  # width, height
SIZES = ((500, 333), (333, 500), (640, 427), (427, 640), (1024, 683), (683, 1024), (512, 384), (300, 300), (224, 224))
SIZES += ((225, 223), (256, 256), (257, 341), (400, 130), (187, 401), (160, 120), (1200, 900))


def make_photos(source: Path, out: Path) -> None:
    """Write the photos.

    Args:
        source: A folder of photos, ``<label>/<photo>``.
        out: The folder to write.
    """
    rng = np.random.default_rng(0)
    labels = sorted(path for path in source.iterdir() if path.is_dir())
    for place, label in enumerate(labels):
        photos = sorted(label.glob("*.jpg"))
        count = COUNT // len(labels) + (place < COUNT % len(labels))
        for index, photo in enumerate(rng.choice(len(photos), count, replace=False)):
            is_small = index < 2
            sizes = SMALL if is_small else SIZES
            size = sizes[(2 * place + index) % len(sizes) if is_small else rng.integers(len(sizes))]
            name = f"{'small-' if is_small else ''}{photos[photo].stem}"
            write_photo(photos[photo], out / label.name / name, size, rng)


def write_photo(source: Path, out: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Write a photo with another size: most as JPEG, some as PNG, some grey.

    Args:
        source: The photo.
        out: The file to write, without its suffix.
        size: Width and height.
        rng: Draws the format and the quality.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as photo:
        picture = ImageOps.fit(photo.convert("RGB"), size, Image.Resampling.LANCZOS)
    kind, quality, subsampling = rng.integers(16), int(rng.integers(60, 96)), int(rng.integers(3))
    if kind in (0, 1):
        picture = picture.convert("L")
    if kind in (1, 2):
        picture.save(out.with_suffix(".png"), optimize=True)
    else:
        picture.save(out.with_suffix(".jpg"), quality=quality, subsampling=subsampling)


if __name__ == "__main__":
    make_photos(Path(sys.argv[1]), Path(sys.argv[2]))
