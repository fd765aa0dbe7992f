"""CPU time to decode a 12-megapixel JPEG to 224x224: every pixel, and at 1/4 of its size as the contract allows.

    python benchmarks/scaled_decoding.py [--photo FILE] [--rounds 15] [--out FILE]

The photo, or a picture of smooth colours, is enlarged to 4000x3000, and grain is added, as sensors have it. The two
decodes take turns. What remains at 1/4 is the entropy decoding, so the ratio grows with the bytes of the file. Exit 1
if it exceeds 0.30 for the photo without grain.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version

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
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    picture = enlarge(options.photo)
    rows = {}
    print(f"{'JPEG':28} {'KiB':>6} {'plain ms':>9} {'scaled ms':>9} {'ratio':>6}")
    for name, (grain, kind) in KINDS.items():
        image = save(picture, grain, **kind)
        plain_s, scaled_s = measure(image, options.rounds)
        ratio = scaled_s / plain_s
        rows[name] = {
            "bytes": len(image),
            "scale": scale_header(read_header(image, OWN_IMAGES), SCALED).scale,
            "plain_cpu_ms": round(plain_s * 1e3, 2),
            "scaled_cpu_ms": round(scaled_s * 1e3, 2),
            "ratio": round(ratio, 3),
        }
        print(f"{name:28} {len(image) / 1024:6.0f} {plain_s * 1e3:9.1f} {scaled_s * 1e3:9.1f} {ratio:6.3f}", flush=True)
    if options.out:
        versions = {"pillow": pillow_version, "simplejpeg": simplejpeg.__version__, "python": platform.python_version()}
        about = {"photo": options.photo.name if options.photo else "", "rounds": options.rounds, "versions": versions}
        options.out.write_text(json.dumps({**about, "size": SIZE, "side": SIDE, "rows": rows}, indent=1) + "\n")
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


def measure(image: bytes, rounds: int) -> tuple[float, float]:
    """Return the medians of the CPU seconds of a plain and of a scaled decode, which run in turns."""
    seconds: dict[PixelContract, list[float]] = {PLAIN: [], SCALED: []}
    for _ in range(rounds):
        for contract, found in seconds.items():
            started = time.process_time()
            decode_image(image, contract, OWN_IMAGES)
            found.append(time.process_time() - started)
    return statistics.median(seconds[PLAIN]), statistics.median(seconds[SCALED])


if __name__ == "__main__":
    main()
