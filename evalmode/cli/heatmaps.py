"""Where ``evalmode predict --heatmap`` writes its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def place_heatmaps(target: Path, images: Sequence[tuple[Path, Path]]) -> dict[Path, Path]:
    """Choose the file of each heatmap.

    Args:
        target: A file, or a folder if it exists as one or there are several images.
        images: Each image, and the folder that the user named or that holds it.

    Returns:
        The file of each heatmap, by image. In a folder it has the path of the image below its own folder and the suffix
        ``.png`` in addition, and a number if another one has this path.
    """
    if len(images) == 1 and not target.is_dir():
        return {images[0][0]: target}
    places: dict[Path, Path] = {}
    for path, root in dict(images).items():
        below = path.relative_to(root)
        place, number = target / f"{below}.png", 1
        while place in places.values():
            number += 1
            place = target / f"{below}-{number}.png"
        places[path] = place
    return places
