"""Tables of measured figures about serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.results import draw, find_result, read_result

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
# Those of results that do not record them.
VERSIONS = {"mlserver": "1.7.1", "kserve": "0.21.0", "pytriton": "0.7.0", "mosec": "0.9.6"}
UNKNOWN_PROCESSES = ("mlserver",)  # a process that outlives the one that was started answers


def show_serving() -> str:
    """Show servers compared with ONNX Runtime alone."""
    result = read_result(find_result("serve"))
    summary, versions = result["summary"], dict(VERSIONS)
    versions |= {name: peer["version"] for name, peer in result.get("peers", {}).items()}
    rows = [
        describe_contestant(label.format(versions.get(name, "")), name, summary[name])
        for name, label in CONTESTANTS.items()
        if name in summary
    ]
    loads = ("1 in flight", "8 in flight", "32 in flight", "32 in flight, 8 connections")
    return draw(("", "start", *loads, "CPU time per request"), rows)


def describe_contestant(label: str, name: str, figures: Mapping[str, Any]) -> Row:
    """Describe a server by its medians."""
    one, eight, many, spread_out = (
        figures[load] for load in ("1 in flight", "8 in flight", "32 in flight", "32 in flight, 8 connections")
    )
    is_known = name not in UNKNOWN_PROCESSES
    return (
        label,
        f"{figures['start_s']['median']:.2f} s" if is_known else "",
        f"{one['p50_ms']['median']:.2f} ms",
        f"{eight['rate']['median']:,.0f}/s",
        *(f"{load['rate']['median']:,.0f}/s, {load['of_raw']['median']:.2f}" for load in (many, spread_out)),
        f"{many['server_cpu_us']['median']:.0f} us" if is_known else "",
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
