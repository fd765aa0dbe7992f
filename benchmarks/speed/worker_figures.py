"""What the figures of several workers cost: a read of a shared counter, a snapshot, and a scrape of the whole server.

    python -m benchmarks.speed.worker_figures [--labels 20000] [--rounds 20] [--out FILE]

Every worker has predicted each of the labels and received 200 images of 64x64 pixels. Prints the least CPU time of all
rounds: other processes can only add to it.
"""

from __future__ import annotations

import argparse
import os
import time
import timeit
from collections import Counter
from collections.abc import Callable

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.record import add_out, write_result
from evalmode.artifact.image_statistics import MAX_SIDE, MOMENTS
from serving.engine.scheduler import Load
from serving.services.drift import WINDOW, RecentImage
from serving.services.figures import Counts, Figures, ModelFacts, VersionState, Workers
from serving.services.metrics import Metrics
from serving.workers.counters import SharedCounters, create_counters
from serving.workers.snapshots import WorkerFigures, encode_figures

ONE = ("network", "1")
SHOWN = 1000  # labels with a counter of their own, the default of --label-metrics


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=20)
    add_out(parser, required=False)
    arguments = parser.parse_args()
    figures = make_figures(arguments.labels)
    snapshot = encode_figures(figures)
    draw_ms = measure(draw_images, arguments.rounds) * 1e3
    encode_ms = measure(lambda: encode_figures(figures), arguments.rounds) * 1e3
    print(f"a snapshot of {arguments.labels} labels and {WINDOW} images: {len(snapshot) / 1e3:.0f} kB")
    print(f"draw and measure {WINDOW} images: {draw_ms:.1f} ms\nencode: {encode_ms:.1f} ms")
    rows = []
    print("workers  total ns  put ns  receive all ms  merge ms  page ms  page kB")
    for workers in (1, 2, 4, 8, 16):
        counters = measure_counters(workers)
        scrape = measure_scrape(workers, snapshot, arguments.rounds)
        print(f"{workers:7}  {counters[0]:8.0f}  {counters[1]:6.0f}", end="")
        print(f"  {scrape[0]:14.1f}  {scrape[1]:8.1f}  {scrape[2]:7.1f}  {scrape[3]:7.0f}")
        names = ("total_ns", "put_ns", "receive_all_ms", "merge_ms", "page_ms", "page_kb")
        rows.append({"workers": workers, **dict(zip(names, (*counters, *scrape), strict=True))})
    whole = {"snapshot_bytes": len(snapshot), "draw_ms": draw_ms, "encode_ms": encode_ms}
    write_result(arguments, {**whole, "rows": rows})


def measure(function: Callable[[], object], rounds: int, calls: int = 1) -> float:
    """Measure the least CPU time of a call.

    Args:
        function: What is measured.
        rounds: The number of rounds.
        calls: The calls in a round.

    Returns:
        Seconds.
    """
    return min(timeit.repeat(function, timer=time.process_time, number=calls, repeat=rounds)) / calls


def make_figures(labels: int) -> Figures:
    """Make the figures of a worker that has predicted every label, and received many images."""
    recorded = {name: {"mean": [100.0] * 3, "std": [10.0] * 3} for name in MOMENTS}
    counts = Counts(labels=Counter({f"label {number}": number + 1 for number in range(labels)}))
    counts.recent.extend(draw_images())
    for phase in ("compute_input", "queue", "compute_infer", "success"):
        counts.durations[phase].add(1000)
    for size in range(1, 65):
        counts.runs[size].add(1000)
    facts = ModelFacts("sha256:" + "0" * 64, "CPU", True, True, recorded)
    return Figures(Load(1, 1, 0, 1), {ONE: VersionState(True, False)}, {ONE: facts}, {ONE: counts}, Counter(), 1)


def draw_images() -> list[RecentImage]:
    """Draw a window of images, and measure them."""
    drawn = np.random.default_rng(0).integers(0, 256, (WINDOW, MAX_SIDE, MAX_SIDE, 3), np.uint8)
    images = [RecentImage(number, image) for number, image in enumerate(drawn)]
    assert all(image.moments.any() for image in images)
    return images


def measure_counters(workers: int) -> tuple[float, float]:
    """Measure ``total`` and ``put`` of the shared counters, in nanoseconds."""
    fd = create_counters(workers)
    counters = SharedCounters(fd, workers, workers - 1)
    os.close(fd)
    calls: tuple[Callable[[], object], ...] = (
        lambda: counters.total("streams"),
        lambda: counters.put("streams", 1),
    )
    total, put = (measure(call, 20, 10_000) * 1e9 for call in calls)
    return total, put


def measure_scrape(workers: int, snapshot: bytes, rounds: int) -> tuple[float, float, float, float]:
    """Measure what the supervisor does for a scrape.

    Args:
        workers: The number of workers.
        snapshot: What each of them sends.
        rounds: The number of rounds.

    Returns:
        Milliseconds to receive a snapshot from every worker, to merge them, and to make the page from the result; and
        the kilobytes of the page.
    """
    server, known, registry = WorkerFigures(workers), Workers(workers, workers, 0), CollectorRegistry()

    def receive_all() -> None:
        for worker in range(workers):
            server.receive(worker, snapshot)

    received = measure(receive_all, rounds)
    merged = server.merge(known)
    registry.register(Metrics(lambda: merged, SHOWN, lambda: True))
    page = measure(lambda: generate_latest(registry), rounds)
    size = len(generate_latest(registry))
    return received * 1e3, measure(lambda: server.merge(known), rounds) * 1e3, page * 1e3, size / 1e3


if __name__ == "__main__":
    main()
