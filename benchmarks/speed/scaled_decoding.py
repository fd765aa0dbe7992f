"""CPU time to decode a 12-megapixel JPEG to 224x224: every pixel, and at 1/4 of its size as the contract allows.

    python -m benchmarks.speed.scaled_decoding [--photo FILE] [--rounds 15] [--out FILE]

The photo, or a picture of smooth colours, is enlarged to 4000x3000, and grain is added, as sensors have it. The decodes
take turns. Besides the two of the contract there are two by the library alone, without header, checks and resize:

- ``library``: the scaled decode. What the scaled decode takes beyond it is evalmode's and Pillow's part.
- ``entropy``: a decode at 1/8, whose transform of a block is one value. It is nearly the entropy decoding alone, which
  every scale needs, so the ratio of no scale is below the column ``floor``: entropy divided by plain.

Exit 1 if the ratio exceeds 0.30 for the photo without grain.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from benchmarks.record import add_out, write_result
from evalmode.images.headers import read_header
from evalmode.images.pixels import PixelContract, Resize, decode_image, scale_header
from evalmode.limits import OWN_IMAGES

SIZE, SIDE = (4000, 3000), 224
LIMIT = 0.30
PLAIN, SCALED = (PixelContract(SIDE, SIDE, 3, Resize(jpeg_scaling=scaling)) for scaling in (False, True))
# Name: standard deviation of the grain, and the options of the JPEG.
KINDS: dict[str, tuple[float, dict[str, Any]]] = {
    "quality 80": (0, {"quality": 80}),
    "quality 90": (0, {"quality": 90}),
    "grain 2.5, quality 80": (2.5, {"quality": 80}),
    "grain 2.5, quality 90": (2.5, {"quality": 90}),
    "grain 6, quality 90": (6, {"quality": 90}),
    "quality 90, progressive": (0, {"quality": 90, "progressive": True}),
    "quality 90, grey": (0, {"quality": 90, "mode": "L"}),
}
BAR = "quality 90"


def main() -> None:
    """Print a row for each kind, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, help="a photo to enlarge; smooth colours by default")
    parser.add_argument("--rounds", type=int, default=15)
    add_out(parser, required=False)
    options = parser.parse_args()
    picture = enlarge(options.photo)
    rows = {}
    print(f"{'JPEG':28} {'KiB':>6}" + "".join(f"{name + ' ms':>11}" for name in DECODES) + f"{'ratio':>7} {'floor':>6}")
    for name, (grain, kind) in KINDS.items():
        image = save(picture, grain, **kind)
        cpu_ms = {name: 1e3 * cpu_s for name, cpu_s in measure(image, options.rounds).items()}
        ratio, floor = cpu_ms["scaled"] / cpu_ms["plain"], cpu_ms["entropy"] / cpu_ms["plain"]
        rows[name] = {
            "bytes": len(image),
            "scale": scale_header(read_header(image, OWN_IMAGES), SCALED).scale,
            **{f"{decode}_cpu_ms": round(found, 2) for decode, found in cpu_ms.items()},
            "ratio": round(ratio, 3),
            "floor": round(floor, 3),
        }
        columns = "".join(f"{found:11.1f}" for found in cpu_ms.values())
        print(f"{name:28} {len(image) / 1024:6.0f}{columns}{ratio:7.3f} {floor:6.3f}", flush=True)
    write_result(options, {"size": SIZE, "side": SIDE, "rows": rows})
    sys.exit(rows[BAR]["ratio"] > LIMIT)


def enlarge(photo: Path | None) -> Image.Image:
    """Return a picture of 12 megapixels."""
    if photo is None:
        colours = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        return Image.fromarray(colours).resize(SIZE, Image.Resampling.BICUBIC)
    with Image.open(photo) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    return upright.resize(SIZE if upright.width > upright.height else SIZE[::-1], Image.Resampling.BICUBIC)


def save(picture: Image.Image, grain: float, mode: str = "RGB", **options: Any) -> bytes:
    """Add grain to a picture, and encode it as JPEG."""
    noise = np.random.default_rng(1).normal(0, grain, (picture.height, picture.width, 1))
    grainy = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    grainy.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def measure(image: bytes, rounds: int) -> dict[str, float]:
    """Return the medians of the CPU seconds of all decodes, which run in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in DECODES}
    for _ in range(rounds):
        for name, decode in DECODES.items():
            started = time.process_time()
            decode(image)
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def decode_by_library(image: bytes, scale: int) -> object:
    """Decode a JPEG at 1/scale of its size by the library alone."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
    sides = {"min_height": height // scale, "min_width": width // scale}
    return simplejpeg.decode_jpeg(image, "GRAY" if colours == "Gray" else "RGB", **sides)


DECODES: dict[str, Callable[[bytes], object]] = {
    "plain": lambda image: decode_image(image, PLAIN, OWN_IMAGES),
    "scaled": lambda image: decode_image(image, SCALED, OWN_IMAGES),
    "library": lambda image: decode_by_library(image, 4),
    "entropy": lambda image: decode_by_library(image, 8),
}

if __name__ == "__main__":
    main()
