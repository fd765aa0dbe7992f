"""Microseconds to decode a JPEG file: by Pillow alone, by evalmode, and by evalmode with one thread per core.

python -m benchmarks.speed.decoding [--out FILE]
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image, ImageOps

from benchmarks.record import add_out, write_result
from evalmode.images.pixels import PixelContract, decode_image
from evalmode.limits import OWN_IMAGES

SIDES = {32: 32, 64: 64, 128: 128, 256: 128, 512: 128, 1024: 224}  # side of the file -> side of the resized pixels
ROUNDS, SECONDS = 3, 0.3


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser, required=False)
    arguments = parser.parse_args()
    rows = []
    print(f"{'side':>6} {'KiB':>6} {'Pillow':>8} {'one':>8} {os.cpu_count():>8}")
    for side, wanted in SIDES.items():
        image = make_image(side)
        decode = partial(decode_image, image, PixelContract(wanted, wanted, 3), OWN_IMAGES)
        count = round(SECONDS / time_each(decode, 5, map) * 1e6)
        rounds = []
        for _ in range(ROUNDS):
            pillow = time_each(partial(decode_by_pillow, image, wanted), count, map)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                rounds.append((pillow, time_each(decode, count, map), time_each(decode, count, pool.map)))
        pillow, one, several = map(statistics.median, zip(*rounds, strict=True))
        print(f"{side:6} {len(image) / 1024:6.1f} {pillow:8.0f} {one:8.0f} {several:8.0f}", flush=True)
        figures = {"pillow_us": pillow, "one_thread_us": one, "thread_per_core_us": several}
        rows.append({"side": side, "resized": wanted, "bytes": len(image), **figures})
    write_result(arguments, {"rows": rows})


def decode_by_pillow(image: bytes, side: int) -> object:
    """Decode a square image to the same pixels with Pillow."""
    with Image.open(io.BytesIO(image)) as opened:
        opened.load()
        return np.asarray(ImageOps.fit(opened, (side, side), Image.Resampling.BILINEAR))


def make_image(side: int) -> bytes:
    """Make a JPEG of smooth colors with a little noise, as in photographs."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((side, side))
    noisy = np.asarray(colours) + rng.normal(0, 12, (side, side, 3))
    encoded = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=80)
    return encoded.getvalue()


def time_each(decode: Callable[[], object], count: int, run: Callable[..., Iterable[object]]) -> float:
    """Measure the microseconds per image."""
    started = time.perf_counter()
    for _ in run(lambda _: decode(), range(count)):
        pass
    return (time.perf_counter() - started) / count * 1e6


if __name__ == "__main__":
    main()
