"""The largest images that fit into a server's memory are answered, larger ones are refused with the reason.

    python docker/largest_images.py ADDRESS MODEL

Run by ``docker/test.sh`` with a server in a small container. MODEL is the file that it serves, which tells how images
are decoded. The server's own refusal of a huge image tells how much memory a decode may take. For each kind of image,
several callers send the largest one that fits at once, and one sends an image of 10% more rows and columns.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import onnx
from PIL import Image

from evalmode import Client
from evalmode.artifact.manifest import read_manifest
from evalmode.client import CallFailed
from evalmode.images.headers import read_header
from evalmode.limits import Limits
from serving.engine.decoding import count_decode_bytes

CALLERS = 6
LIMITS = Limits()
LARGEST_SIDE = int(LIMITS.max_image_pixels**0.5)
TOO_LARGE = ("IMAGE_NEEDS_TOO_MUCH_MEMORY", "IMAGE_TOO_MANY_PIXELS")
NEAR = 0.95  # of the memory that a decode may take: how close the largest image comes

KINDS: dict[str, Callable[[int], bytes]] = {
    "JPEG": lambda side: draw(side, "RGB", "JPEG"),
    "JPEG, progressive": lambda side: draw(side, "RGB", "JPEG", progressive=True),
    "PNG": lambda side: draw(side, "RGB", "PNG", compress_level=1),
    "PNG, transparent": lambda side: draw(side, "RGBA", "PNG", compress_level=1),
    "WebP": lambda side: draw(side, "RGB", "WEBP", method=0),
}


def draw(side: int, mode: str, format_name: str, **options: int) -> bytes:
    """Encode a picture of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, (side, side), "red").save(buffer, format_name, **options)
    return buffer.getvalue()


def main() -> None:
    """Send the images, and print a line for each kind."""
    address, model = sys.argv[1:]
    contract = read_manifest({one.key: one.value for one in onnx.load(model).metadata_props}).pixels
    with Client(address) as client, ThreadPoolExecutor(CALLERS) as callers:
        allowed = ask_for_limit(client)

        def cost(image: bytes) -> int:
            return count_decode_bytes(read_header(image, LIMITS), contract)

        for kind, make in KINDS.items():
            side, image = find_largest(make, cost, allowed)
            assert cost(image) > NEAR * allowed or side == LARGEST_SIDE, (kind, side, cost(image), allowed)
            labels = {
                answer.label for answer in callers.map(lambda _, sent=image: client.predict(sent), range(CALLERS))
            }
            assert len(labels) == 1, labels
            reason = find_reason(client, make(side * 11 // 10))
            assert reason in TOO_LARGE, reason
            print(f"{kind}: {side}x{side} answered {CALLERS} times at once, larger: {reason}", flush=True)


def ask_for_limit(client: Client) -> int:
    """Return the bytes that one decode may take, from the refusal of a picture that takes more."""
    try:
        client.predict(draw(LARGEST_SIDE, "RGBA", "PNG", compress_level=1))
    except CallFailed as refused:
        return int(refused.facts["limit_bytes"])
    raise SystemExit("the server has so much memory that no image is too large")


def find_reason(client: Client, image: bytes) -> str:
    """Return why an image is refused."""
    try:
        client.predict(image)
    except CallFailed as refused:
        return str(refused.reason)
    return "answered"


def find_largest(make: Callable[[int], bytes], cost: Callable[[bytes], int], allowed: int) -> tuple[int, bytes]:
    """Find a picture that takes almost the memory that is allowed: its side, and the image."""
    side = 1500  # of the first guess
    image = make(side)
    for _ in range(3):
        side = min(LARGEST_SIDE, int(side * (0.99 * allowed / cost(image)) ** 0.5))
        image = make(side)
    return side, image


main()
