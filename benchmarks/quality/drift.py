"""Whether the drift metrics of a server detect changed images, and only those.

    python -m benchmarks.quality.drift IMAGES --out FILE [--draws 20]

IMAGES contains train/<label>/* and test/<label>/*. Each draw sends 200 test images to a real server, unchanged or
changed in one way, and reads /metrics.
"""

from __future__ import annotations

import argparse
import tempfile
import urllib.request
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.record import add_out, write_result
from benchmarks.servers import CONTRACT, make_artifact, serving
from evalmode.artifact.image_statistics import MAX_IMAGES, describe_images
from evalmode.artifact.publishing import publish
from evalmode.client import Client
from evalmode.images.pixels import Pixels, decode_image
from evalmode.limits import Limits
from serving.services.drift import LIMIT, WINDOW


def main() -> None:
    """Run the draws, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    add_out(parser)
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()
    chance = np.random.default_rng(0)
    test = load(arguments.images / "test", chance, MAX_IMAGES)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        moments = describe_images(load(arguments.images / "train", chance, MAX_IMAGES))
        publish(Path(name), "network", make_artifact(tuple(map(str, range(10))), moments={"images": moments}))
        for kind, change in CHANGES.items():
            worst = []
            with serving(Path(name)) as server, Client(server.address) as client:
                for _ in range(arguments.draws):
                    for image in change(test[chance.choice(len(test), WINDOW, replace=False)]):
                        client.predict_pixels(image)
                    worst.append(read_drift(server.metrics))
            flagged = sum(distance > LIMIT for distance in worst)
            results[kind] = {"draws": len(worst), "flagged": flagged, "least": min(worst), "most": max(worst)}
            print(kind, results[kind], flush=True)
    write_result(arguments, {"images": WINDOW, "limit": LIMIT, "changes": results})


def load(folder: Path, chance: np.random.Generator, most: int) -> Pixels:
    """Load random images from a folder, decoded as the server decodes them.

    Args:
        folder: The folder, searched recursively.
        chance: Random generator.
        most: Maximum number of images.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    chosen = chance.choice(len(paths), min(most, len(paths)), replace=False)
    return np.stack([decode_image(paths[index].read_bytes(), CONTRACT, Limits()) for index in chosen])


def read_drift(metrics: str) -> float:
    """Read the largest distance of any moment, in standard errors."""
    with urllib.request.urlopen(f"http://{metrics}/metrics") as page:
        families = {one.name: one for one in text_string_to_metric_families(page.read().decode())}
    worst = max(abs(sample.value) for sample in families["evalmode_input_drift"].samples)
    [flag] = families["evalmode_input_drifted"].samples
    assert flag.value == (worst > LIMIT)
    return float(worst)


def make_grey_world(images: Pixels) -> Pixels:
    """Scale the channels of each image to the same mean, as the white balance of cameras does."""
    values = images.astype(np.float32)
    means = values.mean((1, 2), keepdims=True)
    grey: Pixels = np.clip(values * means.mean(3, keepdims=True) / np.maximum(means, 1), 0, 255).astype(np.uint8)
    return grey


def compress(images: Pixels) -> Pixels:
    """Compress to JPEG quality 20 and decode."""
    pictures = []
    for image in images:
        buffer = BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=20)
        pictures.append(np.asarray(Image.open(buffer)))
    return np.stack(pictures)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "as they are": lambda images: images,
    "40 brighter": lambda images: np.clip(images.astype(int) + 40, 0, 255).astype(np.uint8),
    "inverted": lambda images: 255 - images,
    "grey world": make_grey_world,
    "JPEG of quality 20": compress,
    "red and blue exchanged": lambda images: np.ascontiguousarray(images[..., ::-1]),
}

if __name__ == "__main__":
    main()
