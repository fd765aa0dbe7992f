"""How golden images are stored, and the images that verify the image decoder.

Small images are stored as pixels. Large ones are stored as JPEG, a tenth of the size: the pixels that the JPEG is
decoded to are the golden ones, so that nothing is lost.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import io
import math

from PIL import ExifTags, Image

from evalmode.artifact.encoded import Encoded, GoldenImages
from evalmode.certification.large import is_large
from evalmode.images.pixels import PixelContract, Pixels
from evalmode.images.resizing import Size, plan_resize

MIN_GOLDEN, MAX_GOLDEN = 16, 64
GOLDEN_BYTES = 2**19  # of all golden images as JPEG; an artifact is at most 2 MB larger than its weights
QUALITIES = (90, 75, 50, 25, 10)  # of JPEG: the first at which MIN_GOLDEN images fit
ENCODED = (
    4  # golden images that small networks keep as JPEG and as PNG, every other one larger than the network expects
)
SCALED = 4  # times the side that is needed: from here on, JPEGs are decoded at a fraction of their size
SCALED_QUALITY = 50
PROBE_SIDE = 24  # pixels: the height of the image that tells all rules of a contract apart
MAX_SCALED_PIXELS = 16_000_000  # 48 MB as RGB; the scaled decoding of larger networks is not checked


def encode_golden(golden: Pixels) -> GoldenImages | None:
    """Encode golden images as JPEG, as many as fit into ``GOLDEN_BYTES``, but at least 16 if there are as many.

    Args:
        golden: uint8 (N, H, W, C).

    Returns:
        The images; None if they are small, and are stored as pixels.
    """
    if not is_large(golden):
        return None
    first = golden[:MIN_GOLDEN]
    for quality in QUALITIES:
        images = [_encode(_to_picture(pixels), quality) for pixels in first]
        if sum(map(len, images)) <= GOLDEN_BYTES:
            break
    used = sum(map(len, images))
    for pixels in golden[MIN_GOLDEN:]:
        image = _encode(_to_picture(pixels), quality)
        used += len(image)
        if used > GOLDEN_BYTES:
            break
        images.append(image)
    return GoldenImages.of(images, golden.shape[-1])


def encode_some(golden: Pixels, contract: PixelContract) -> tuple[Encoded, ...]:
    """Encode golden images in other sizes and formats, so that decoding, resizing and cropping are checked.

    One JPEG is so large that it is decoded at a fraction of its size if the contract says so.

    Args:
        golden: uint8 (N, H, W, C), of which the first four are used.
        contract: The pixels that images are decoded to.

    Returns:
        The encoded images, with the digests of their decoded pixels.
    """
    pictures = [_to_picture(pixels) for pixels in golden[:ENCODED]]
    probe = _draw_probe(pictures[0], contract)
    if contract.resize.mode == "none":  # images of other sizes are refused
        exact = [_encode(picture, lossless=lossless) for picture in pictures[:2] for lossless in (False, True)]
        return tuple(Encoded.of(image, contract) for image in (*exact, probe))
    larger = contract.width * 3 // 2 + 1, contract.height * 3 // 2
    if is_large(golden):  # PNG takes a megabyte for a large image, and the golden images are JPEG already
        smaller = contract.width // 2, contract.height // 2
        images = [_encode(_resize(pictures[0], larger)), _encode(_resize(pictures[-1], smaller), lossless=True)]
        if contract.resize.crop_ratio != 1:
            images.append(_encode(pictures[0]))  # of the exact size, which may be resized and cropped
    else:
        resized = [_resize(picture, larger) if number % 2 else picture for number, picture in enumerate(pictures)]
        images = [_encode(picture, lossless=lossless) for picture in resized for lossless in (False, True)]
    needed = (math.ceil(side / contract.resize.crop_ratio) for side in (contract.width, contract.height))
    width, height = (SCALED * side + 4 for side in needed)
    if contract.resize.jpeg_scaling and width * height <= MAX_SCALED_PIXELS:
        images.append(_encode(_resize(pictures[0], (width, height)), SCALED_QUALITY))
    return tuple(Encoded.of(image, contract) for image in (*images, probe))


def _draw_probe(picture: Image.Image, contract: PixelContract) -> bytes:
    """Draw an image that every rule of a contract changes: upside down by its EXIF orientation, partly transparent.

    It is a PNG of other proportions than the network's, unless images of other sizes are refused.

    Args:
        picture: A golden image.
        contract: The pixels that images are decoded to.
    """
    size = contract.size if contract.resize.mode == "none" else _choose_probe_size(contract)
    probe = _resize(picture, size).convert("RGBA")
    probe.putalpha(Image.linear_gradient("L").resize(size, Image.Resampling.NEAREST))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    buffer = io.BytesIO()
    probe.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def _choose_probe_size(contract: PixelContract) -> Size:
    """Choose a size of about twice the network's proportions, with a crop that is not placed on a whole pixel.

    Where a crop has a margin of 1.5, 3.5, ... pixels, an offset that is rounded down differs from a rounded one.
    """
    width, height = contract.size
    height = min(PROBE_SIDE, height)
    width = max(2, 2 * width * height // contract.height)
    sizes = [(width + more, height) for more in range(PROBE_SIDE)]
    planned = (plan_resize(size, contract.size, contract.resize.crop_ratio)[1] for size in sizes)
    margins = (resized[0] - contract.width for resized in planned)
    return next((size for size, margin in zip(sizes, margins, strict=True) if margin % 4 == 3), sizes[0])


def _to_picture(pixels: Pixels) -> Image.Image:
    """uint8 (H, W, C) -> an image of Pillow."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size, Image.Resampling.NEAREST)  # sharp edges: other ways to decode give other pixels


def _encode(picture: Image.Image, quality: int = 75, lossless: bool = False) -> bytes:
    """Encode an image as JPEG, or as PNG."""
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
