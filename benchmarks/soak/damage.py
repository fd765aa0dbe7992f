"""Compare damaged images: those that the library of their format calls corrupt with those that evalmode refuses.

    python -m benchmarks.soak.damage [--count 1000] [--seed 0] [--out FILE]
    python -m benchmarks.soak.damage --intact ARCHIVE.tar.gz ... [--digests FILE] [--out FILE]

The first form damages images of every format and prints one row for each; exit 1 if evalmode accepts an image that the
library calls corrupt. The second form decodes every image of archives of intact images; exit 1 if one is refused. With
``--digests`` it writes a digest of the pixels of each image to FILE or, if FILE exists, compares with it: run it on the
commit before a change and on the commit after it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.record import add_out, write_result
from evalmode.errors import ImageError
from evalmode.images.pixels import PixelContract, decode_image, decode_whole
from evalmode.limits import Limits

SIDES = (32, 60, 150, 400, 1100)  # the last one has more than a million pixels
CONTRACT = PixelContract(32, 32, 3)
LIMITS = Limits()
WHOLE_HEADERS = (
    "Warning: unknown JFIF revision number 0.",
    "Invalid SOS parameters",
)  # occur in intact photos


@dataclass(frozen=True)
class Damaged:
    """A damaged image.

    Attributes:
        format: Its row in the table.
        damage: Kind of damage.
        suffix: File name suffix.
        image: The bytes.
    """

    format: str
    damage: str
    suffix: str
    image: bytes

    def is_corrupt(self) -> bool:
        """Whether the library of the format reports damage: TurboJPEG for JPEG, Pillow for the others."""
        if self.suffix == ".jpg":
            try:
                simplejpeg.decode_jpeg(self.image, "CMYK" if "CMYK" in self.format else "RGB")
            except KeyError:  # unsupported sampling factors: header and pixels contradict each other
                return True
            except ValueError as error:
                return not str(error).startswith(WHOLE_HEADERS)
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(self.image)) as opened:
                    opened.verify()  # the checksums of a PNG
                with Image.open(io.BytesIO(self.image)) as opened:
                    opened.load()
        except Exception:
            return True
        return False

    def is_refused(self) -> bool:
        """Whether evalmode refuses the image, at its own size and at another."""
        refusals = set()
        decoders: tuple[Callable[[], object], ...] = (
            lambda: decode_image(self.image, CONTRACT, LIMITS),
            lambda: decode_image(self.image, PixelContract(32, 32, 1), LIMITS),
            lambda: decode_whole(self.image, 3, LIMITS),
        )
        for decode in decoders:
            try:
                decode()
            except ImageError:
                refusals.add(True)
            else:
                refusals.add(False)
        return refusals == {True}


def draw(side: int, seed: int) -> Image.Image:
    """Draw smooth colors with a little noise, as in photographs."""
    rng = np.random.default_rng(seed)
    colours = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).resize((side, side * 3 // 4))
    noisy = np.asarray(colours) + rng.normal(0, 9, (side * 3 // 4, side, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _save(picture: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


def _oriented() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


FORMATS: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "JPEG": (".jpg", lambda picture: _save(picture, "JPEG", quality=85)),
    "JPEG, oriented": (".jpg", lambda picture: _save(picture, "JPEG", exif=_oriented())),
    "JPEG, CMYK": (".jpg", lambda picture: _save(picture.convert("CMYK"), "JPEG")),
    "JPEG, progressive": (".jpg", lambda picture: _save(picture, "JPEG", progressive=True)),
    "JPEG, progressive CMYK, oriented": (
        ".jpg",
        lambda picture: _save(picture.convert("CMYK"), "JPEG", progressive=True, exif=_oriented()),
    ),
    "JPEG, grey": (".jpg", lambda picture: _save(picture.convert("L"), "JPEG")),
    "JPEG, RGB": (".jpg", lambda picture: _save(picture, "JPEG", keep_rgb=True)),
    "JPEG, restart markers": (".jpg", lambda picture: _save(picture, "JPEG", restart_marker_rows=1)),
    "PNG": (".png", lambda picture: _save(picture, "PNG")),
    "PNG, RGBA": (".png", lambda picture: _save(picture.convert("RGBA"), "PNG")),
    "PNG, palette": (".png", lambda picture: _save(picture.quantize(64), "PNG")),
    "WebP": (".webp", lambda picture: _save(picture, "WEBP")),
    "WebP, lossless": (".webp", lambda picture: _save(picture, "WEBP", lossless=True, method=0)),
    "BMP": (".bmp", lambda picture: _save(picture, "BMP")),
    "BMP, palette": (".bmp", lambda picture: _save(picture.quantize(64), "BMP")),
}


def _zero(image: bytearray, chance: random.Random, other: bytes) -> None:
    start = chance.randrange(len(image))
    end = min(len(image), start + chance.choice((16, 200, 4096, len(image))))
    image[start:end] = bytes(end - start)


def _drop(image: bytearray, chance: random.Random, other: bytes) -> None:
    start = chance.randrange(len(image))
    del image[start : start + chance.choice((1, 30, 512, 4096))]


def _flip(image: bytearray, chance: random.Random, other: bytes) -> None:
    for _ in range(chance.choice((1, 3, 20))):
        image[chance.randrange(len(image))] ^= 1 << chance.randrange(8)


def _truncate(image: bytearray, chance: random.Random, other: bytes) -> None:
    del image[-chance.choice((1, 2, 20, len(image) // 4, len(image) // 2)) :]


def _splice(image: bytearray, chance: random.Random, other: bytes) -> None:
    start = chance.randrange(len(image))
    if chance.random() < 0.5:
        image[start:] = other[min(start, len(other) - 1) :]
    else:
        image[start:start] = other[start // 2 : start // 2 + chance.choice((3, 100, 2000))]


def _find_header_end(image: bytes) -> int:
    """Find the start of the pixels of a JPEG's first scan; for other formats, a position after the header."""
    start = image.find(b"\xff\xda")
    return start + 2 + int.from_bytes(image[start + 2 : start + 4]) if image.startswith(b"\xff\xd8") else 64


def _flip_header(image: bytearray, chance: random.Random, other: bytes) -> None:
    end = _find_header_end(bytes(image))
    frames = [place for marker in (b"\xff\xc0", b"\xff\xc2") if 0 < (place := image.find(marker)) < end]
    if frames and chance.random() < 0.5:  # size, components, sampling factors: few but important bytes
        image[frames[0] + chance.randrange(4, 2 + image[frames[0] + 3])] ^= 1 << chance.randrange(8)
    else:
        image[chance.randrange(end)] ^= 1 << chance.randrange(8)
    if chance.random() < 0.5:
        start = chance.randrange(end, max(end + 1, len(image) - 400))
        image[start : start + 400] = bytes(len(image[start : start + 400]))


DAMAGES = {
    "zeroed": _zero,
    "dropped": _drop,
    "flipped": _flip,
    "truncated": _truncate,
    "spliced": _splice,
    "header flipped": _flip_header,
}


def make_damaged(count: int, seed: int = 0, sides: tuple[int, ...] = SIDES[:4]) -> Iterator[Damaged]:
    """Make damaged images, of each format and damage in turn.

    Args:
        count: Number of images.
        seed: Seed of the random choices.
        sides: Widths of the pictures in pixels.
    """
    chance = random.Random(seed)  # noqa: S311
    kinds = [(image_format, damage) for damage in DAMAGES for image_format in FORMATS]
    intact: dict[tuple[str, int, int], bytes] = {}
    for number in range(count):
        name, damage = kinds[number % len(kinds)]
        suffix, save = FORMATS[name]
        side = chance.choice(sides)
        pair = []
        for picture in (0, 1):
            if (name, side, picture) not in intact:
                intact[name, side, picture] = save(draw(side, picture))
            pair.append(intact[name, side, picture])
        image = bytearray(pair[0])
        DAMAGES[damage](image, chance, pair[1])
        yield Damaged(name, damage, suffix, bytes(image))


def judge(count: int, seed: int) -> dict[str, object]:
    """Print a row for each format and damage; ``wrong`` counts images that are corrupt but accepted."""
    made, corrupt, refused, missed = Counter[str](), Counter[str](), Counter[str](), 0
    for number, one in enumerate(make_damaged(count, seed, SIDES)):
        says, refuses = one.is_corrupt(), one.is_refused()
        for key in (one.format, one.damage, "all"):
            made[key] += 1
            corrupt[key] += says
            refused[key] += refuses
        if says and not refuses:
            missed += 1
            print(f"accepted although corrupt: number {number} of seed {seed}, {one.format}, {one.damage}")
    print(f"{'':34} {'damaged':>8} {'corrupt':>8} {'refused':>8}")
    for key in (*FORMATS, *DAMAGES, "all"):
        print(f"{key:34} {made[key]:8} {corrupt[key]:8} {refused[key]:8}")
    print(f"{missed} accepted of {corrupt['all']} that their library calls corrupt")
    rows = {
        key: {"damaged": made[key], "corrupt": corrupt[key], "refused": refused[key]}
        for key in (*FORMATS, *DAMAGES, "all")
    }
    return {"count": count, "seed": seed, "rows": rows, "wrong": missed}


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Read the name and content of every image in a .tar.gz."""
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file and member.name.lower().endswith((".jpg", ".jpeg", ".png", ".webp", ".bmp")):
                yield member.name, file.read()


def check_intact(archives: list[Path], digests: Path | None) -> dict[str, object]:
    """Decode every image, at its own size and at another. ``wrong`` counts refused images and changed pixels."""
    found, wrong, compared = {}, 0, 0
    for archive in archives:
        for name, image in read_archive(archive):
            try:
                pixels = decode_whole(image, 3, LIMITS).tobytes() + decode_image(image, CONTRACT, LIMITS).tobytes()
            except ImageError as error:
                wrong += 1
                print(f"refused although intact: {archive.name} {name}: {error}")
                continue
            found[f"{archive.name} {name}"] = hashlib.sha256(pixels).hexdigest()
    print(f"{len(found)} images decoded, {wrong} refused")
    if digests and digests.exists():
        before = json.loads(digests.read_text())
        differ = [name for name in before.keys() | found.keys() if before.get(name) != found.get(name)]
        print(f"{len(differ)} of {len(before)} have other pixels than those of {digests}")
        wrong, compared = wrong + len(differ), len(before)
    elif digests:
        digests.write_text(json.dumps(found))
    names = [archive.name for archive in archives]
    return {"archives": names, "decoded": len(found), "compared": compared, "wrong": wrong}


def main() -> None:
    """Run one of the two forms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--intact", type=Path, nargs="+", metavar="ARCHIVE")
    parser.add_argument("--digests", type=Path)
    add_out(parser, required=False)
    options = parser.parse_args()
    done = check_intact(options.intact, options.digests) if options.intact else judge(options.count, options.seed)
    write_result(options, {"intact" if options.intact else "damaged": done})
    sys.exit(bool(done["wrong"]))


if __name__ == "__main__":
    main()
