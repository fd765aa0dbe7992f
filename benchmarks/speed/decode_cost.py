"""The memory that decoding needs, by kind of image, compared with what `serving/engine/decoding.py` reserves for it.

    python -m benchmarks.speed.decode_cost [--out FILE]

Each image is decoded in a process of its own. The measured value is the peak of the resident memory above its value
before. Exit 1 if it exceeds the reservation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from PIL import Image

from benchmarks.decoded_apart import measure_apart
from benchmarks.images import chunk, flat, noise, oriented, png, rle_bmp, save
from benchmarks.record import add_out, write_result
from evalmode.images.headers import read_header
from evalmode.images.pixels import PixelContract, decode_image
from evalmode.limits import Limits
from serving.engine.decoding import count_decode_bytes
from serving.engine.memory import return_large_blocks

SIDES = (1500, 3000)
CONTRACT, LIMITS = PixelContract(224, 224, 3), Limits()
PALETTE = chunk(b"PLTE", bytes(768))

KINDS: dict[str, Callable[[int], bytes]] = {
    "JPEG": lambda side: save(noise(side), "JPEG", quality=30),
    "JPEG, grey": lambda side: save(noise(side).convert("L"), "JPEG", quality=30),
    "JPEG, turned": lambda side: save(noise(side), "JPEG", quality=30, exif=oriented()),
    "JPEG, progressive 4:2:0": lambda side: save(noise(side), "JPEG", quality=30, progressive=True),
    "JPEG, progressive 4:4:4": lambda side: save(noise(side), "JPEG", quality=30, progressive=True, subsampling=0),
    "JPEG, CMYK": lambda side: save(flat("CMYK", side), "JPEG"),
    "JPEG, progressive CMYK, turned": lambda side: save(flat("CMYK", side), "JPEG", progressive=True, exif=oriented()),
    "PNG, RGB": lambda side: png((side, side), 8, 2),
    "PNG, RGB, interlaced": lambda side: png((side, side), 8, 2, interlaced=True),
    "PNG, RGB, one colour transparent": lambda side: png((side, side), 8, 2, extra=chunk(b"tRNS", bytes(6))),
    "PNG, RGBA": lambda side: png((side, side), 8, 6),
    "PNG, 16-bit RGBA": lambda side: png((side, side), 16, 6),
    "PNG, grey": lambda side: png((side, side), 8, 0),
    "PNG, 16-bit grey": lambda side: png((side, side), 16, 0),
    "PNG, grey with alpha": lambda side: png((side, side), 8, 4),
    "PNG, palette": lambda side: png((side, side), 8, 3, extra=PALETTE),
    "PNG, palette with alpha": lambda side: png((side, side), 8, 3, extra=PALETTE + chunk(b"tRNS", bytes(range(256)))),
    "WebP, lossy": lambda side: save(flat("RGB", side), "WEBP"),
    "WebP, lossy with alpha": lambda side: save(flat("RGBA", side), "WEBP"),
    "WebP, lossless": lambda side: save(flat("RGB", side), "WEBP", lossless=True),
    "WebP, animated": lambda side: save(
        flat("RGB", side), "WEBP", save_all=True, append_images=[Image.new("RGB", (side, side), "red")]
    ),
    "BMP, 24-bit": lambda side: save(flat("RGB", side // 2), "BMP"),
    "BMP, palette": lambda side: save(flat("RGB", side).quantize(16), "BMP"),
    "BMP, run lengths": lambda side: rle_bmp(
        side // 3, side // 3, (b"\xff\1" * (side // 765) + bytes([side // 3 % 255, 1, 0, 0])) * (side // 3)
    ),
}


def main() -> None:
    """Print a row for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser, required=False)
    arguments = parser.parse_args()
    return_large_blocks()
    good, rows = True, {}
    print("| kind | measured, bytes a pixel | reserved |\n| --- | --- | --- |")
    for name, make in KINDS.items():
        taken, counted = zip(*(measure(make(side)) for side in SIDES), strict=True)
        good = good and all(least <= most for least, most in zip(taken, counted, strict=True))
        shown = (" and ".join(f"{figure:.1f}" for figure in figures) for figures in (taken, counted))
        print(f"| {name} | {' | '.join(shown)} |", flush=True)
        rows[name] = {"measured": taken, "reserved": counted}
    write_result(arguments, {"sides": SIDES, "bytes_per_pixel": rows})
    sys.exit(not good)


def measure(image: bytes) -> tuple[float, float]:
    """Measure the bytes per pixel that decoding needs; return them with the reserved ones."""
    header = read_header(image, LIMITS)
    small, pixels = save(flat("RGB", 64), "PNG"), header.width * header.height
    taken = measure_apart(lambda: decode_image(image, CONTRACT, LIMITS), lambda: decode_image(small, CONTRACT, LIMITS))
    if taken.answer != "ok":
        sys.exit(f"not decoded: {taken.answer}")
    return taken.peak_bytes / pixels, count_decode_bytes(header, CONTRACT) / pixels


if __name__ == "__main__":
    main()
