"""The limits of a server. The command line, the documentation and the tests are generated from this table."""

from __future__ import annotations

from dataclasses import dataclass

from evalmode.options import convert_fields, option

MIB = 1024 * 1024
LARGEST_BATCH = 64  # inputs: certificates cover batches up to this size


def _limit(default: int, minimum: int, maximum: int, what: str, beyond: str) -> int:
    limit: int = option(default, what, minimum=minimum, maximum=maximum, beyond=beyond)
    return limit


@dataclass(frozen=True)
class Limits:
    """The limits of a server. Sizes are in bytes, times in seconds.

    The metadata of a field holds ``minimum``, ``maximum``, ``what`` (what the option limits) and ``beyond`` (what
    happens when the limit is exceeded).

    Raises:
        UsageError: A value has another type, or is outside its range.
    """

    # 178,956,970 pixels is the limit above which Pillow refuses an image as a decompression bomb.
    max_image_bytes: int = _limit(10 * MIB, 1, 2**31 - 1, "size of an encoded image, bytes", "INVALID_ARGUMENT")
    max_image_pixels: int = _limit(
        50_000_000, 1, 178_956_970, "size of a decoded image according to its header, pixels", "INVALID_ARGUMENT"
    )
    max_decode_bytes: int = _limit(
        0,
        0,
        2**40,
        "memory for decoding images, bytes; 0: a quarter of the memory of the container or machine, at most 2 GiB",
        "the image waits; INVALID_ARGUMENT if one image needs more",
    )
    max_request_bytes: int = _limit(32 * MIB, 1024, 2**31 - 1, "size of a request message, bytes", "RESOURCE_EXHAUSTED")
    max_batch: int = _limit(
        LARGEST_BATCH,
        1,
        LARGEST_BATCH,
        "inputs in one batch",
        "the other requests wait; INVALID_ARGUMENT if one request holds more",
    )
    max_queue: int = _limit(
        512, 0, 4096, "requests that may wait in addition to one per slot", "RESOURCE_EXHAUSTED with RetryInfo"
    )
    max_streams: int = _limit(128, 1, 4096, "open streams", "RESOURCE_EXHAUSTED with RetryInfo")
    max_watches: int = _limit(256, 1, 4096, "open health watches", "RESOURCE_EXHAUSTED with RetryInfo")
    max_connections: int = _limit(
        1024, 1, 65536, "open connections", "the connection that has been idle longest is closed"
    )
    message_timeout: int = _limit(
        20,
        1,
        3600,
        "time to receive a request, and for the client to read the response, seconds",
        "DEADLINE_EXCEEDED; if the response is not read, the connection is closed",
    )
    default_deadline: int = _limit(
        0, 0, 3600, "deadline of calls that have none, seconds after their arrival; 0: none", "DEADLINE_EXCEEDED"
    )
    grace: int = _limit(30, 0, 3600, "time for requests in flight at shutdown, seconds", "they are cut; exit code 1")
    lame_duck: int = _limit(
        5, 0, 3600, "time from NOT_SERVING until new requests are refused, seconds", "new requests are refused"
    )
    load_seconds: int = _limit(50, 1, 3600, "time to check and replay a new version, seconds", "the version is refused")
    load_bytes: int = _limit(
        640 * MIB,
        64 * MIB,
        2**40,
        "memory to check and replay a new version, in addition to 4 times its file, bytes",
        "the version is refused",
    )

    def __post_init__(self) -> None:
        convert_fields(self)


OWN_IMAGES = Limits(max_image_bytes=2**31 - 1, max_image_pixels=178_956_970)  # for local files instead of requests
