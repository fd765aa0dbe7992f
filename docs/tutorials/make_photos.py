"""Makes small photos to practise with: parts of two photographs that come with scikit-learn.

python make_photos.py FOLDER COUNT [SEED]   writes COUNT photos of each label: FOLDER/LABEL/NUMBER.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

WIDTH, HEIGHT = 64, 48
PLACES = {  # label -> photograph, and where the label is in it: left, top, right, bottom
    "flower": ("flower.jpg", (170, 85, 445, 355)),
    "sky": ("china.jpg", (330, 0, 640, 200)),
    "tower": ("china.jpg", (95, 60, 330, 330)),
    "trees": ("china.jpg", (350, 290, 640, 427)),
}


def make_photo(label: str, chance: np.random.Generator) -> Image.Image:
    """Cut a random part out of a photograph, in any light, with the grain of a cheap camera."""
    name, (left, top, right, bottom) = PLACES[label]
    x, y = chance.integers(left, right - WIDTH), chance.integers(top, bottom - HEIGHT)
    part = load_sample_image(name)[y : y + HEIGHT, x : x + WIDTH]
    pixels = part * chance.uniform(0.35, 1.2) + chance.normal(0, 20, part.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def make_photos(folder: Path, count: int, seed: int) -> None:
    """Write ``count`` photos of each label."""
    chance = np.random.default_rng(seed)
    for label in PLACES:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            make_photo(label, chance).save(folder / label / f"{number:02d}.jpg", quality=95)


if __name__ == "__main__":
    make_photos(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
