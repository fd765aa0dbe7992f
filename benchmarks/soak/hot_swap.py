"""Swap a model a thousand times under load: no request fails, no reply has wrong labels, no memory leaks.

    python -m benchmarks.soak.hot_swap --out FILE [--swaps 1000] [--transport native]

Two artifacts with different labels are published in turns, while callers compare the labels of each reply with its
version. Exit 1 if a request failed, a label was wrong, or the server's memory after the last swap is more than 20 MB
above that after the hundredth.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.honest import ALONE, Memory, make_request
from benchmarks.record import add_out, write_result
from benchmarks.servers import add_server_options, list_server_options, make_artifact, serving
from evalmode.artifact.publishing import publish
from evalmode.artifact.repository import list_versions
from evalmode.wire.classifier_pb2 import PredictRequest
from evalmode.wire.classifier_pb2_grpc import ClassifierStub

NAME = "network"
LABELS = [tuple(f"{word}{number}" for number in range(10)) for word in ("even", "odd")]
CALLERS = 8
DEADLINE_S = 10
WARM = 100  # swaps before the first measurement of memory
MAX_GROWTH_MB = 20
SETTLE_S = 2.0
LEFT = 4  # versions that are kept on disk


def main() -> None:
    """Run the swaps, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument("--swaps", type=int, default=1000)
    add_server_options(parser)
    arguments = parser.parse_args()
    artifacts = [make_artifact(labels) for labels in LABELS]
    with tempfile.TemporaryDirectory() as name:
        publish(Path(name), NAME, artifacts[1])
        with (
            serving(Path(name), "--poll", 0.05, *list_server_options(arguments)) as server,
            Memory(server.process.pid) as memory,
        ):
            results = asyncio.run(swap(server.address, Path(name), artifacts, arguments.swaps, memory))
    write_result(arguments, results)
    grown = results["settled_mb"][-1] - results["settled_mb"][0]
    print({**results, "rss_mb": f"{grown:+.1f} since swap {WARM}"})
    if results["failed"] or results["wrong"] or grown > MAX_GROWTH_MB:
        sys.exit(1)


async def swap(address: str, repository: Path, artifacts: list[bytes], swaps: int, memory: Memory) -> dict[str, Any]:
    """Publish in turns, each version once the previous one answers, while callers send requests.

    Args:
        address: HOST:PORT of the server.
        repository: Its repository.
        artifacts: The two files.
        swaps: Number of swaps.
        memory: Measures the server.
    """
    counts: Counter[str] = Counter()
    newest, stop, rss_mb, settled_mb, took_s = [1], asyncio.Event(), [], [], []
    request = PredictRequest.FromString(make_request())

    async def ask(channel: grpc.aio.Channel) -> None:
        predict = ClassifierStub(channel).Predict  # type: ignore[no-untyped-call]
        while not stop.is_set():
            try:
                reply = await predict(request, timeout=DEADLINE_S)
            except grpc.RpcError as error:
                counts[f"failed: {error.code().name} {error.details()}"] += 1
                continue
            version = int(reply.version)
            newest[0] = max(newest[0], version)
            counts["right" if reply.scores[0].label in LABELS[version % 2] else "wrong"] += 1

    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=ALONE)) for _ in range(CALLERS)
        ]
        callers = [asyncio.create_task(ask(channel)) for channel in channels]
        started = time.monotonic()
        for version in range(2, swaps + 2):
            published = time.monotonic()
            await asyncio.to_thread(publish, repository, NAME, artifacts[version % 2])
            while newest[0] < version:
                await asyncio.sleep(0.005)
            took_s.append(time.monotonic() - published)
            if version in (WARM + 1, swaps + 1):  # between two swaps a third version may exist
                await asyncio.sleep(SETTLE_S)
                settled_mb.append(memory.now_mb())
            rss_mb.append(memory.now_mb())
            for old in list_versions(repository, NAME)[:-LEFT]:
                shutil.rmtree(repository / NAME / str(old))
        stop.set()
        await asyncio.gather(*callers)
    return {
        "swaps": swaps,
        "seconds": round(time.monotonic() - started, 1),
        "answers": counts["right"],
        "wrong": counts["wrong"],
        "failed": sum(count for name, count in counts.items() if name.startswith("failed")),
        "failures": [name for name in counts if name.startswith("failed")],
        "swap_s": {"median": round(float(np.median(took_s)), 3), "most": round(max(took_s), 3)},
        "settled_mb": settled_mb,
        "rss_mb": rss_mb,
    }


if __name__ == "__main__":
    main()
