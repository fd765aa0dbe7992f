"""The most expensive images within the limits: the cost of decoding each, and the effect on a server.

    python -m benchmarks.soak.worst_images                                      # seconds, peak memory and lock time
    python -m benchmarks.soak.worst_images --server 127.0.0.1:8001 --pid PID    # other callers while 32 send it

Each is within the limits of 10 MiB encoded and 50 million pixels, and as expensive as possible within them.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from benchmarks.decoded_apart import measure_apart
from benchmarks.record import add_out, write_result
from benchmarks.worker_processes import find_workers
from evalmode.errors import ImageError
from evalmode.images.headers import read_header
from evalmode.images.pixels import PixelContract, decode_image
from evalmode.limits import Limits
from evalmode.wire import classifier_pb2, classifier_pb2_grpc
from serving.engine.decoding import count_decode_bytes
from serving.engine.memory import return_large_blocks

SIDE = 7071  # squared: 49,999,041, below the limit of 50 million
MAX_LOCK_S, MAX_HEALTH_S = 0.05, 0.1
DEADLINE_S, HEALTH_EVERY_S = 5.0, 0.05
REPEATS = 3
FULL_BYTES = 10 * 2**20 - 4096


def save(picture: Image.Image, image_format: str, **options: object) -> bytes:
    """Encode a picture."""
    encoded = io.BytesIO()
    picture.save(encoded, image_format, **options)
    return encoded.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """Make a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    size: tuple[int, int],
    depth: int,
    colour_type: int,
    *,
    interlaced: bool = False,
    paeth: bool = False,
    extra: bytes = b"",
) -> bytes:
    """Make a black PNG of a kind that Pillow does not write.

    Args:
        size: Width and height in pixels.
        depth: Bits per sample.
        colour_type: Color type of the PNG specification.
        interlaced: Whether to interlace by Adam7.
        paeth: Whether to use the slowest filter.
        extra: Chunks between header and pixels.
    """
    width, height = size
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    row = bytes([paeth and 4]) + bytes(-(-width * depth * samples // 8))
    packer = zlib.compressobj(9)
    data = [packer.compress(row) for _ in range(height + (8 * height if interlaced else 0))]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
    return start + chunk(b"IDAT", b"".join([*data, packer.flush()])) + chunk(b"IEND", b"")


def after_header(image: bytes, extra: bytes) -> bytes:
    """Insert chunks after the header of a PNG, or segments after the first marker of a JPEG."""
    place = 33 if image.startswith(b"\x89PNG") else 2
    return image[:place] + extra + image[place:]


def segment(marker: int, data: bytes) -> bytes:
    """Make a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def exif_bomb(size_bytes: int, entries: int) -> bytes:
    """Make an EXIF block whose entries all refer to the same bytes."""
    room = size_bytes - 14 - 12 * entries
    packed = b"".join(struct.pack("<HHII", 0x8000 + n, 7, room // 2, 10 + 12 * entries) for n in range(entries))
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", entries) + packed + bytes(room)


def noise(side: int) -> Image.Image:
    """Make a square that compresses badly, from one tile."""
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = np.tile(tile, (-(-side // 64), -(-side // 64), 1))[:side, :side]
    return Image.fromarray(np.ascontiguousarray(pixels))


def flat(mode: str, side: int) -> Image.Image:
    """Make a square of one color."""
    return Image.new(mode, (side, side), {"RGBA": (9, 9, 9, 128), "CMYK": (9, 9, 9, 9)}.get(mode, 9))


def oriented(orientation: int = 6) -> bytes:
    """Make an EXIF block with an orientation."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def empty_scans(side: int, scans: int) -> bytes:
    """Make a progressive JPEG with scans that change nothing."""
    image = save(flat("RGB", side), "JPEG", progressive=True)
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0]))  # one component, coefficients 1 to 63, no bits
    return image[:-2] + scan * scans + image[-2:]


def arithmetic(side: int, size_bytes: int, *, progressive: bool = False) -> bytes:
    """Make an arithmetic-coded JPEG from arbitrary data.

    Args:
        side: Side in pixels.
        size_bytes: Size of the data of each scan.
        progressive: Whether to use ten scans instead of one.
    """
    image = save(flat("RGB", side), "JPEG", progressive=progressive, subsampling=0)
    data = b"\x55" * size_bytes
    start = image.index(b"\xff\xda")
    pieces = [image[:start].replace(b"\xff\xc2", b"\xff\xca", 1).replace(b"\xff\xc0", b"\xff\xc9", 1)]
    while start >= 0:
        end = start + 2 + int.from_bytes(image[start + 2 : start + 4], "big")
        pieces += [image[start:end], data]
        start = image.find(b"\xff\xda", end)
    return b"".join([*pieces, b"\xff\xd9"])


def restarts(side: int) -> bytes:
    """Make a JPEG that restarts after each block, without restart markers."""
    image = save(flat("RGB", side), "JPEG", subsampling=0)
    return after_header(image, segment(0xDD, b"\0\1"))


def rle_bmp(width: int, height: int, codes: bytes, bits: int = 8) -> bytes:
    """Make a run-length encoded BMP.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        codes: Pairs of bytes, without the end code.
        bits: 8 or 4 bits per pixel.
    """
    palette = b"".join(bytes([n, 255 - n, n, 0]) for n in range(2**bits))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 1 if bits == 8 else 2, len(codes), 0, 0, 0, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(codes), 0, 0, start) + header + palette + codes + b"\0\1"


def raw_bmp(side: int, bits: int) -> bytes:
    """Make the header of an uncompressed BMP without its pixels."""
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(1024)


def webp_frames(side: int, frames: int) -> bytes:
    """Make an animation of many small frames on a large canvas."""
    still = save(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    frame = struct.pack("<4sI", b"ANMF", 16 + len(still)) + bytes(16) + still
    canvas = struct.pack("<I", side - 1)[:3] * 2
    body = b"WEBP" + struct.pack("<4sI", b"VP8X", 10) + bytes([2, 0, 0, 0]) + canvas
    body += struct.pack("<4sIIH", b"ANIM", 6, 0, 0) + frame * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


class _Bits:
    """A bit stream, least significant bit first."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def add(self, value: int, count: int) -> None:
        self._pieces.append(f"{value:0{count}b}"[::-1])

    def to_bytes(self) -> bytes:
        text = "".join(self._pieces)
        text += "0" * (-len(text) % 8)
        return int(text[::-1], 2).to_bytes(len(text) // 8, "little")


def webp_groups(side: int) -> bytes:
    """Make a lossless WebP with another set of Huffman codes for every 4x4 pixels, up to 65,536 of them."""
    bits, blocks = _Bits(), -(-side // 4)
    for value, count in ((side - 1, 14), (side - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (1, 1), (0, 3)):
        bits.add(value, count)  # size, no alpha, version, no transform, no color cache, Huffman image of 4x4 pixels
    bits.add(0, 1)  # which has no colour cache
    groups = min(blocks * blocks, 65536)

    def add_bytes_code(alphabet: int) -> None:
        """All 256 values in eight bits each: code lengths of 8, then of 0."""
        bits.add(0, 1)
        bits.add(8, 4)  # 12 lengths, in this order: 17 18 0 1 2 3 4 5 16 6 7 8
        for length in (0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1):
            bits.add(length, 3)
        bits.add(0, 1)  # all symbols follow
        for _ in range(256):
            bits.add(0, 1)  # 8, the first of two codes
        left = alphabet - 256
        while left:
            run = min(138, left)
            bits.add(1, 1)
            bits.add(run - 11, 7)
            left -= run

    def add_single() -> None:
        """A code of one symbol, 0."""
        for value in (1, 0, 0, 0):
            bits.add(value, 1)

    add_bytes_code(280)  # green: the group's low byte
    add_bytes_code(256)  # red: its high byte
    for _ in range(3):
        add_single()
    for number in range(blocks * blocks):
        group = min(number, groups - 1)
        for byte in (group & 255, group >> 8):
            bits.add(int(f"{byte:08b}"[::-1], 2), 8)
    for _ in range(groups):
        for _ in range(5):
            add_single()
    data = b"\x2f" + bits.to_bytes() + bytes(16)
    data += b"\0" * (len(data) & 1)
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


def apng(side: int, frames: int) -> bytes:
    """Make an animated PNG of many frames."""
    still = png((side, side), 8, 6)
    control = chunk(b"acTL", struct.pack(">II", frames, 0))
    first = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, side, side, 0, 0, 1, 10, 0, 0))
    pixels = zlib.compress(bytes((side * 4 + 1) * side), 9)
    more = b"".join(
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * n - 1, side, side, 0, 0, 1, 10, 2, 1))
        + chunk(b"fdAT", struct.pack(">I", 2 * n) + pixels)
        for n in range(1, frames)
    )
    end = len(still) - 12
    return after_header(still[:end], control + first) + more + still[end:]


def idat_bytes_of_blocks(size_bytes: int) -> bytes:
    """Make a PNG whose data are empty blocks of Huffman codes, followed by the actual data."""
    stored = b"\0\0\0\xff\xff"  # a stored block of no bytes
    rows = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"\x78\x9c" + stored * (size_bytes // 5) + rows.compress(bytes(64 * 193)) + rows.flush()
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    data += struct.pack(">I", zlib.adler32(bytes(64 * 193)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pictures_in_one(entries: int) -> bytes:
    """Make a JPEG that announces many more."""
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">H", 3)
    tiff += struct.pack(">HHI4s", 0xB000, 7, 4, b"0100") + struct.pack(">HHII", 0xB001, 4, 1, entries)
    tiff += struct.pack(">HHII", 0xB002, 7, 16 * entries, 50) + bytes(4) + bytes(16 * entries)
    return after_header(save(flat("RGB", 64), "JPEG"), segment(0xE2, b"MPF\0" + tiff))


def small_png() -> bytes:
    """Save a small PNG, to put other chunks into."""
    return save(flat("RGB", 64), "PNG")


def small_jpeg() -> bytes:
    """Save a small JPEG, to put other segments into."""
    return save(flat("RGB", 64), "JPEG")


# Name -> makes it, of a share of the full size: 1 for the benchmark, less for tests.
WORST: dict[str, Callable[[float], bytes]] = {
    "black PNG": lambda share: png((int(SIDE * share),) * 2, 8, 2),
    "interlaced 16-bit RGBA PNG": lambda share: png((int(SIDE * share),) * 2, 16, 6, interlaced=True),
    "16-bit RGBA PNG, filtered": lambda share: png((int(SIDE * share),) * 2, 16, 6, paeth=True),
    "16-bit grey PNG": lambda share: png((int(SIDE * share),) * 2, 16, 0),
    "palette PNG with alpha": lambda share: png(
        (int(SIDE * share),) * 2, 8, 3, extra=chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(range(256)))
    ),
    "RGB PNG with a transparent colour": lambda share: png(
        (int(SIDE * share),) * 2, 8, 2, extra=chunk(b"tRNS", bytes(6))
    ),
    "PNG of few rows": lambda share: png((65_535, int(762 * share)), 16, 6),
    "PNG of few columns": lambda share: png((int(762 * share), 65_535), 8, 6),
    "PNG of one column": lambda share: png((1, int(SIDE**2 * share**2)), 8, 6),
    "PNG with an EXIF bomb": lambda share: after_header(
        small_png(), chunk(b"eXIf", exif_bomb(int(FULL_BYTES * share), 1000)[6:])
    ),
    "PNG with text bombs": lambda share: after_header(
        small_png(),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**20 - 1), 9)) * int(9000 * share),
    ),
    "PNG of empty chunks": lambda share: after_header(small_png(), chunk(b"tEXt", b"") * int(870_000 * share)),
    "PNG of empty blocks": lambda share: idat_bytes_of_blocks(int(FULL_BYTES * share)),
    "animated PNG": lambda share: apng(int(2000 * share), int(500 * share) + 2),
    "giant WebP": lambda share: save(Image.new("RGB", (int(4096 * share),) * 2, 9), "WEBP", lossless=True),
    "giant WebP with alpha": lambda share: save(flat("RGBA", int(4096 * share)), "WEBP", quality=50),
    "WebP of many frames": lambda share: webp_frames(int(4096 * share), int(200_000 * share)),
    "WebP of fewer frames": lambda share: webp_frames(int(4096 * share), int(3_900 * share)),
    "WebP of many codes": lambda share: webp_groups(int(1024 * share)),
    "JPEG of empty scans": lambda share: empty_scans(int(2000 * share), int(25_000 * share)),
    "JPEG of as many scans as are allowed": lambda share: empty_scans(int(2000 * share), 235),
    "large JPEG of as many scans as are allowed": lambda share: empty_scans(int(SIDE * share), 9),
    "progressive JPEG": lambda share: save(
        noise(int(SIDE * share)), "JPEG", quality=10, progressive=True, subsampling=0
    ),
    "progressive CMYK JPEG, turned": lambda share: save(
        flat("CMYK", int(SIDE * share)), "JPEG", progressive=True, exif=oriented()
    ),
    "JPEG cut in half": lambda share: (image := save(noise(int(SIDE * share)), "JPEG", quality=10, progressive=True))[
        : len(image) // 2
    ],
    "arithmetic JPEG": lambda share: arithmetic(int(SIDE * share), int(FULL_BYTES * share)),
    "progressive arithmetic JPEG": lambda share: arithmetic(int(3000 * share), int(900_000 * share), progressive=True),
    "JPEG of restarts": lambda share: restarts(int(SIDE * share)),
    "JPEG of comments": lambda share: after_header(small_jpeg(), segment(0xFE, b"") * int(2_600_000 * share)),
    "JPEG of fill bytes": lambda share: after_header(small_jpeg(), b"\xff" * int(FULL_BYTES * share)),
    "JPEG with EXIF bombs": lambda share: after_header(
        small_jpeg(), segment(0xE1, exif_bomb(60_000, 2000)) * int(170 * share)
    ),
    "JPEG that announces others": lambda share: pictures_in_one(int(4000 * share)),
    "BMP of line ends": lambda share: rle_bmp(int(SIDE * share), int(SIDE * share), b"\1\1\0\0" * 250),
    "BMP of line ends, small": lambda share: rle_bmp(int(1000 * share), int(1000 * share), b"\1\1\0\0" * 1000),
    "BMP of 4-bit runs, small": lambda share: rle_bmp(
        int(1000 * share), int(1000 * share), (b"\xfa\x12" * int(4 * share) + b"\0\0") * int(1000 * share), bits=4
    ),
    "32-bit BMP without its pixels": lambda share: raw_bmp(int(SIDE * share), 32),
}


def main() -> None:
    """Measure each by itself, or its effect on a server; exit 1 if a figure exceeds its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", metavar="ADDRESS", help="send them to this server")
    parser.add_argument("--pid", type=int, help="of the server, whose memory is read")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of them")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--budget", type=int, default=2**31, help="the server's --max-decode-bytes")
    parser.add_argument("--only", default="", help="those whose name has this in it")
    add_out(parser, required=False)
    options = parser.parse_args()
    return_large_blocks()
    chosen = {name: make(1.0) for name, make in WORST.items() if options.only in name}
    processes = [options.pid, *find_workers(options.pid)] if options.pid else []
    idle_bytes = sum(map(read_resident, processes))
    figures: dict[str, dict[str, Any]] = {}
    for name, image in chosen.items():
        figures[name] = judge(name, image, options, idle_bytes) if options.server else show(name, image)
        write_result(options, {"images": figures})
    sys.exit(not all(one["good"] for one in figures.values()))


def show(name: str, image: bytes) -> dict[str, Any]:
    """Decode one by itself; print, judge and return its cost."""
    small, limits, contract = save(flat("RGB", 64), "PNG"), Limits(), PixelContract(224, 224, 3)
    try:
        cost_bytes = count_decode_bytes(read_header(image, limits), contract)
    except ImageError:
        cost_bytes = 2**20  # refused because of its header
    runs = [
        measure_apart(lambda: decode_image(image, contract, limits), lambda: decode_image(small, contract, limits))
        for _ in range(REPEATS)
    ]
    taken = max(runs, key=lambda run: run.peak_bytes)
    lock_s = min(run.lock_s for run in runs)  # a busy machine does not delay every run
    good = taken.peak_bytes <= cost_bytes and lock_s < MAX_LOCK_S
    print(
        f"{name:42} {len(image):9} bytes {taken.seconds:6.2f} s {taken.peak_bytes / 1e6:7.1f} MB of"
        f" {cost_bytes / 1e6:7.1f} counted, lock {lock_s * 1e3:3.0f} ms {taken.answer}"
        f"{'' if good else '  NOT GOOD'}",
        flush=True,
    )
    figures = {"bytes": len(image), "seconds": taken.seconds, "peak_bytes": taken.peak_bytes, "answer": taken.answer}
    return {**figures, "counted_bytes": cost_bytes, "lock_s": lock_s, "good": good}


def judge(name: str, image: bytes, options: argparse.Namespace, idle_bytes: int) -> dict[str, Any]:
    """Send an image to a server from many callers, while others call; print, judge and return what the others measure.

    Args:
        name: Name of the image.
        image: The image.
        options: The command-line arguments.
        idle_bytes: Memory of the server before the first image.
    """
    until = time.monotonic() + options.seconds
    callers = [
        multiprocessing.get_context("spawn").Process(
            target=flood, args=(options.server, image, options.callers // 2, options.seconds)
        )
        for _ in range(2)
    ]
    honest = save(noise(500), "JPEG")
    for caller in callers:
        caller.start()
    time.sleep(2.0)  # they import their modules
    until = time.monotonic() + options.seconds
    with ThreadPoolExecutor(4) as threads:
        peak = threads.submit(watch_memory, options.pid, until)
        checks = threads.submit(check_health, options.server, until)
        asks = [threads.submit(ask, options.server, honest, until) for _ in range(2)]
    for caller in callers:
        caller.join()
    answered = [answer for future in asks for answer in future.result()]
    failed = [code for code, _ in answered if code != "OK"]
    waits, times = checks.result(), [seconds for _, seconds in answered]
    health_p99, honest_p99 = (float(np.quantile(each, 0.99)) if each else np.inf for each in (waits, times))
    over = peak.result() - idle_bytes
    good = over <= options.budget + 40 * 2**20 and health_p99 < MAX_HEALTH_S and not failed
    print(
        f"{name:42} memory {idle_bytes / 1e6:5.0f} + {over / 1e6:6.1f} MB, health p99 {health_p99 * 1e3:5.1f} ms,"
        f" honest {len(answered)} answered, p99 {honest_p99 * 1e3:5.0f} ms, {len(failed)} failed"
        f" {Counter(failed) or ''}{'' if good else '  NOT GOOD'}",
        flush=True,
    )
    figures = {"bytes_above_idle": over, "health_p99_s": health_p99, "honest_p99_s": honest_p99}
    return {**figures, "honest_answers": len(answered), "failed": Counter(failed), "good": good}


def flood(address: str, image: bytes, callers: int, seconds: float) -> None:
    """Send an image repeatedly from many callers, in a process of its own."""
    with ThreadPoolExecutor(callers) as threads:
        answers = [threads.submit(ask, address, image, time.monotonic() + seconds + 2.0) for _ in range(callers)]
    codes = Counter(code for future in answers for code, _ in future.result())
    if "INTERNAL" in codes or "UNKNOWN" in codes:
        print(f"  NOT GOOD: {codes}", flush=True)


def ask(address: str, image: bytes, until: float) -> list[tuple[str, float]]:
    """Request predictions repeatedly. Return how each call ended, and how long it took."""
    ended = []
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        predict = classifier_pb2_grpc.ClassifierStub(channel).Predict  # type: ignore[no-untyped-call]
        while time.monotonic() < until:
            started = time.perf_counter()
            try:
                predict(classifier_pb2.PredictRequest(image=image), timeout=DEADLINE_S)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
            ended.append((code, time.perf_counter() - started))
    return ended


def check_health(address: str, until: float) -> list[float]:
    """Check the server's health 20 times per second. Return how long each call took."""
    waits = []
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while time.monotonic() < until:
            started = time.perf_counter()
            try:
                check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
            except grpc.RpcError:
                waits.append(DEADLINE_S)
            waits.append(time.perf_counter() - started)
            time.sleep(HEALTH_EVERY_S)
    return waits


def watch_memory(pid: int, until: float) -> int:
    """Return the peak of the resident memory of a server, in bytes."""
    peak, processes = 0, [pid, *find_workers(pid)]
    while time.monotonic() < until:
        peak = max(peak, sum(map(read_resident, processes)))
        time.sleep(0.005)
    return peak


def read_resident(pid: int) -> int:
    """Read the resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
