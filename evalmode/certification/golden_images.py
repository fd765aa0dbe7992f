"""How golden images are stored, and the images that verify the image decoder.

Small images are stored as pixels. Large ones are stored as JPEG, a tenth of the size: the pixels that the JPEG is
decoded to are the golden ones, so that nothing is lost.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import io
import math

from PIL import Image

from evalmode.artifact.encoded import Encoded, GoldenImages
from evalmode.certification.large import is_large
from evalmode.images.pixels import PixelContract, Pixels

MIN_GOLDEN, MAX_GOLDEN = 16, 64
GOLDEN_BYTES = 2**19  # of all golden images as JPEG; an artifact is at most 2 MB larger than its weights
QUALITIES = (90, 75, 50, 25, 10)  # of JPEG: the first at which MIN_GOLDEN images fit
ENCODED = (
    4  # golden images that small networks keep as JPEG and as PNG, every other one larger than the network expects
)
SCALED = 4  # times the side that is needed: from here on, JPEGs are decoded at a fraction of their size
SCALED_QUALITY = 50
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
    if contract.resize.mode == "none":  # images of other sizes are refused
        exact = [_encode(picture, lossless=lossless) for picture in pictures[:2] for lossless in (False, True)]
        return tuple(Encoded.of(image, contract) for image in exact)
    larger = contract.width * 3 // 2 + 1, contract.height * 3 // 2
    if is_large(golden):  # PNG takes a megabyte for a large image, and the golden images are JPEG already
        smaller = contract.width // 2, contract.height // 2
        images = [_encode(_resize(pictures[0], larger)), _encode(_resize(pictures[-1], smaller), lossless=True)]
    else:
        resized = [_resize(picture, larger) if number % 2 else picture for number, picture in enumerate(pictures)]
        images = [_encode(picture, lossless=lossless) for picture in resized for lossless in (False, True)]
    needed = (math.ceil(side / contract.resize.crop_ratio) for side in (contract.width, contract.height))
    width, height = (SCALED * side + 4 for side in needed)
    if contract.resize.jpeg_scaling and width * height <= MAX_SCALED_PIXELS:
        images.append(_encode(_resize(pictures[0], (width, height)), SCALED_QUALITY))
    return tuple(Encoded.of(image, contract) for image in images)


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
