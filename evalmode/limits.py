"""The limits table: code, command line, README and tests all read this one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from evalmode.errors import UsageError

MIB = 1024 * 1024
LARGEST_BATCH = 64  # every certificate is proven up to here


def _limit(default: int, minimum: int, maximum: int, what: str, beyond: str) -> int:
    text = {"minimum": minimum, "maximum": maximum, "what": what, "beyond": beyond}
    return field(default=default, metadata=text)


@dataclass(frozen=True)
class Limits:
    """How much the server takes on. Sizes in bytes, times in seconds.

    Raises:
        UsageError: a limit outside its range.
    """

    # 178,956,970 pixels is Pillow's own ceiling against decompression bombs.
    max_image_bytes: int = _limit(10 * MIB, 1, 2**31 - 1, "encoded image, bytes", "INVALID_ARGUMENT")
    max_image_pixels: int = _limit(
        50_000_000, 1, 178_956_970, "decoded image, pixels in its header", "INVALID_ARGUMENT"
    )
    max_decode_bytes: int = _limit(
        0,
        0,
        2**40,
        "memory that decoding takes at once, bytes; 0: a quarter of the container's or machine's, at most 2 GiB",
        "waits; INVALID_ARGUMENT if one image needs more",
    )
    max_request_bytes: int = _limit(32 * MIB, 1024, 2**31 - 1, "whole request, bytes", "RESOURCE_EXHAUSTED")
    max_batch: int = _limit(
        LARGEST_BATCH,
        1,
        LARGEST_BATCH,
        "inputs that run as one batch",
        "the rest waits; INVALID_ARGUMENT if one request holds more",
    )
    max_queue: int = _limit(512, 0, 4096, "requests that wait beside one per slot", "RESOURCE_EXHAUSTED with RetryInfo")
    max_streams: int = _limit(128, 1, 4096, "streams open at once", "RESOURCE_EXHAUSTED with RetryInfo")
    max_watches: int = _limit(256, 1, 4096, "health watches open at once", "RESOURCE_EXHAUSTED with RetryInfo")
    max_connections: int = _limit(1024, 1, 65536, "connections open at once", "the one longest without data is closed")
    message_timeout: int = _limit(
        20,
        1,
        3600,
        "seconds for a request to arrive, and for its answer to be taken",
        "DEADLINE_EXCEEDED; the connection is closed",
    )
    grace: int = _limit(30, 0, 3600, "seconds for requests in flight at shutdown", "exit 1, saying how many were cut")
    lame_duck: int = _limit(5, 0, 3600, "seconds between NOT_SERVING and refusing", "requests are refused")
    load_seconds: int = _limit(50, 1, 3600, "seconds to check and replay a new version", "the version is refused")
    load_bytes: int = _limit(
        640 * MIB,
        64 * MIB,
        2**40,
        "memory to check and replay it, bytes, and 4 times its file",
        "the version is refused",
    )

    def __post_init__(self) -> None:
        for limit in fields(self):
            value, low, high = getattr(self, limit.name), limit.metadata["minimum"], limit.metadata["maximum"]
            if not low <= value <= high:
                raise UsageError(f"--{limit.name.replace('_', '-')} {value} is outside {low}..{high}")


OWN_IMAGES = Limits(max_image_bytes=2**31 - 1, max_image_pixels=178_956_970)  # files of one's own, not requests
