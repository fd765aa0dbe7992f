"""Tables of measured figures about serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.tables.markdown import draw
from docs.tables.measured.results import find_result, read_result

Row = tuple[object, ...]

CONTESTANTS = {
    "native fp32": "`--transport native`, fp32",
    "native int8": "native, int8",
    "native fp32, 2 workers": "native, 2 workers",
    "native JPEG": "native, JPEG",
    "native ModelInfer": "native, ModelInfer",
    "grpcio fp32": "`--transport grpcio`, fp32",
    "grpcio int8": "grpcio, int8",
    "grpcio fp32, 2 workers": "grpcio, 2 workers",
    "grpcio JPEG": "grpcio, JPEG",
    "grpcio ModelInfer": "grpcio, ModelInfer",
    "mlserver": "MLServer {}",
    "kserve": "KServe SDK {}",
    "pytriton": "PyTriton {}",
    "mosec": "mosec {} (HTTP, one process per core)",
}
LOADS = ("1 in flight", "8 in flight", "32 in flight", "32 in flight, 8 connections")
ALONE = {"raw fp32": "ONNX Runtime alone", "raw int8": "ONNX Runtime alone, int8"}
UNKNOWN_PROCESSES = ("mlserver",)  # a process that outlives the one that was started answers


def show_serving() -> str:
    """Show servers compared with ONNX Runtime alone."""
    result = read_result(find_result("serve"))
    summary = result["summary"]
    versions = {name: peer["version"] for name, peer in result["peers"].items()}
    alone = [describe_alone(label, summary[name]) for name, label in ALONE.items() if name in summary]
    servers = [
        describe_contestant(label.format(versions.get(name, "")), name, summary[name])
        for name, label in CONTESTANTS.items()
        if name in summary
    ]
    return draw(("", "start", *LOADS, "CPU time per request"), [*alone, *servers])


def describe_alone(label: str, figures: Mapping[str, Any]) -> Row:
    """Describe ONNX Runtime without a server."""
    best = f"{figures['all']['rate']['median']:,.0f}/s"
    return (label, "", f"{figures['alone_ms']['median']:.2f} ms", "", best, "", "")


def describe_contestant(label: str, name: str, figures: Mapping[str, Any]) -> Row:
    """Describe a server by its medians."""
    one, eight, many, spread_out = (figures[load] for load in LOADS)
    is_known = name not in UNKNOWN_PROCESSES
    return (
        label,
        f"{figures['start_s']['median']:.2f} s" if is_known else "",
        f"{one['p50_ms']['median']:.2f} ms",
        f"{eight['rate']['median']:,.0f}/s",
        *(f"{load['rate']['median']:,.0f}/s, {load['of_raw']['median']:.2f}" for load in (many, spread_out)),
        f"{many['server_cpu_us']['median']:,.0f} us" if is_known else "",
    )


def show_scheduler() -> str:
    """Show the cost of a request before and after the scheduler that both transports share."""
    rows = [
        (
            f"{transport}, {kind}",
            *(f"{value:,.0f} us" for value in one["cpu_us"]),
            *(f"{value:,.0f}" for value in one["answers_per_s"]),
            f"{one['answers_per_s_ratio']:.2f} ({' to '.join(f'{b:.2f}' for b in one['answers_per_s_interval'])})",
        )
        for transport, name in (("grpcio", "throughput"), ("native", "throughput-native"))
        for kind, one in read_result(find_result(name))["kinds"].items()
    ]
    return draw(("", "CPU time per request, before", "after", "answers per second, before", "after", "ratio"), rows)


def show_photo_serving() -> str:
    """Show how much of the processor's time for photos is decoding and the network."""
    one = read_result(find_result("photo-serving"))["medians"]
    rows = [
        (
            name,
            f"{one[f'{name}_answers_per_s']:,.0f}",
            f"{one[f'{name}_share']:.2f}",
            f"{one[f'{name}_lone_ms']:.1f} ms",
            f"{one[f'{name}---one-thread_lone_ms']:.1f} ms",
        )
        for name in ("grpcio", "native")
    ]
    table = draw(("", "answers per second", "share", "a request that is alone", "with one thread"), rows)
    share = one["network_alone_ms"] / one["network_ms"]
    return (
        f"{table}\nThe decode takes {one['decode_ms']:.1f} ms and the network {one['network_ms']:.1f} ms on one core."
        f" A request that is alone gets all cores for its network, which then takes {share:.2f} of that time.\n"
    )


def show_idle() -> str:
    """Show what an idle server takes."""
    summary = read_result(find_result("serve-idle"))["summary"]
    shares = (f"{name} {summary[f'{name} fp32']['idle_share']['median']:.2%}" for name in ("native", "grpcio"))
    return f"Of one core: {', '.join(shares)}.\n"


def show_decoding() -> str:
    """Show the time to decode JPEG files."""
    rows = [
        (
            f"{row['side']}x{row['side']}",
            f"{row['bytes']:,}",
            *(f"{row[way]:,.0f} us" for way in ("pillow_us", "one_thread_us", "thread_per_core_us")),
        )
        for row in read_result(find_result("decoding"))["rows"]
    ]
    return draw(("pixels", "bytes", "Pillow", "evalmode, one thread", "a thread per core"), rows)


def show_scaled_decoding() -> str:
    """Show what scaled decoding of a JPEG takes."""
    rows = [
        (
            name,
            f"{row['bytes'] / 1024:,.0f} KiB",
            f"{row['plain_cpu_ms']:.1f} ms",
            f"{row['scaled_cpu_ms']:.1f} ms",
            f"{row['ratio']:.2f}",
            f"{row['library_cpu_ms']:.1f} ms",
            f"{row['floor']:.2f}",
        )
        for name, row in read_result(find_result("scaled-decoding"))["rows"].items()
    ]
    return draw(("JPEG", "size", "every pixel", "scaled", "ratio", "of it libjpeg-turbo", "floor"), rows)


def show_scaled_accuracy() -> str:
    """Show what scaled decoding changes in the answers."""
    one = read_result(find_result("scaled-accuracy"))
    middle, largest = (one[f"{which}_difference_of_probabilities"] for which in ("median", "largest"))
    return (
        f"Of {one['photos']} photos, {one['plain_accuracy']:.4f} are right by every pixel, and"
        f" {one['scaled_accuracy']:.4f} scaled. Labels that differ: {one['labels_changed']}; right only by every pixel:"
        f" {one['right_only_plain']}; right only scaled: {one['right_only_scaled']}. The probabilities of a photo"
        f" differ by {middle:.4f} in the median, and by {largest:.2f} at most.\n"
    )
