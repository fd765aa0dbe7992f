"""Encoded images inside a certificate, and the digests of the pixels that they are decoded to.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalmode.artifact.packing import decode_bytes, encode_bytes
from evalmode.errors import DecoderMismatch, ImageError
from evalmode.images.pixels import PixelContract, Pixels, decode_image, decode_whole, probe_image
from evalmode.limits import Limits

ADVICE = "the image decoder differs; install the Pillow of the artifact's evalmode.versions"


@dataclass(frozen=True)
class Encoded:
    """An encoded image, and the digest of its pixels on the machine that made the certificate.

    Attributes:
        image: Encoded bytes, JPEG or PNG.
        digest: SHA-256 of the bytes of the decoded pixels, hexadecimal.
    """

    image: bytes
    digest: str

    @classmethod
    def of(cls, image: bytes, contract: PixelContract) -> Encoded:
        """Decode an image and compute the digest of its pixels.

        Args:
            image: Encoded bytes.
            contract: The pixels to decode it to.

        Raises:
            ImageError: The image cannot be decoded.
        """
        return cls(image, hashlib.sha256(decode_image(image, contract, Limits()).tobytes()).hexdigest())


@dataclass(frozen=True)
class GoldenImages:
    """Golden images as JPEG, of exactly the size that the network takes: the decoded pixels are the golden inputs.

    Attributes:
        images: Encoded bytes, N images.
        channels: C, 3 (RGB) or 1 (grey).
        digest: SHA-256 of the bytes of all pixels on the machine that made the certificate, hexadecimal.
    """

    images: tuple[bytes, ...]
    channels: int
    digest: str

    @classmethod
    def of(cls, images: Sequence[bytes], channels: int) -> GoldenImages:
        """Decode images and compute the digest of their pixels.

        Args:
            images: Encoded bytes; all have the same size.
            channels: 3 (RGB) or 1 (grey).
        """
        return cls(tuple(images), channels, _digest(_decode(images, channels)))

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> GoldenImages:
        """Read what ``to_json`` wrote.

        Raises:
            KeyError, TypeError, ValueError: The values are damaged.
        """
        golden = cls(tuple(map(decode_bytes, facts["images"])), facts["channels"], str(facts["digest"]))
        if golden.channels not in (1, 3) or not golden.images:
            raise ValueError(f"{len(golden.images)} golden images of {golden.channels!r} channels")
        return golden

    def to_json(self) -> dict[str, Any]:
        """Convert the images to JSON values."""
        return {
            "images": [encode_bytes(image) for image in self.images],
            "channels": self.channels,
            "digest": self.digest,
        }

    def measure(self) -> int:
        """Return the size of all pixels in bytes, according to the headers of the images.

        Raises:
            ValueError: The images have different sizes, or none that can be read.
        """
        try:
            shapes = {(probed.height, probed.width) for probed in (probe_image(one, Limits()) for one in self.images)}
        except ImageError as error:
            raise ValueError(f"a golden image cannot be read: {error}") from error
        if len(shapes) != 1:
            raise ValueError(f"golden images of {len(shapes)} sizes: expected one")
        return len(self.images) * math.prod(shapes.pop()) * self.channels

    def decode(self) -> Pixels:
        """Decode the images, uint8 (N, H, W, C).

        Raises:
            DecoderMismatch: An image cannot be decoded, or the pixels are not those that were certified.
        """
        try:
            pixels = _decode(self.images, self.channels)
        except ImageError as error:
            raise DecoderMismatch(f"a golden image of the certificate cannot be decoded: {error}") from error
        if _digest(pixels) != self.digest:
            raise DecoderMismatch(
                f"the golden images are decoded to other pixels than where the certificate was made: {ADVICE}"
            )
        return pixels


def count_pixel_bytes(image: bytes) -> int:
    """Return the size of an image's pixels according to its header; 0 if it has none, since decoding then fails.

    Args:
        image: Encoded bytes.
    """
    with suppress(ImageError):
        return math.prod(probe_image(image, Limits()).shape)
    return 0


def _decode(images: Sequence[bytes], channels: int) -> Pixels:
    return np.stack([decode_whole(image, channels, Limits()) for image in images])


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()
