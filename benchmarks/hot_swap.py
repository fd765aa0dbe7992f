"""Swap a model a thousand times under load: no request fails, no reply has wrong labels, no memory leaks.

    python benchmarks/hot_swap.py --out benchmarks/results/DATE-hot-swap.json [--swaps 1000] [--transport native]

Two artifacts with different labels are published in turns, while callers compare the labels of each reply with its
version. Exit 1 if a request failed, a label was wrong, or the server's memory after the last swap is more than 20 MB
above that after the hundredth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from servers import SIDE, make_artifact, serving  # in this folder

from evalmode.artifact.publishing import publish
from evalmode.artifact.repository import list_versions
from evalmode.client import AsyncClient, CallFailed

NAME = "network"
LABELS = [tuple(f"{word}{number}" for number in range(10)) for word in ("even", "odd")]
CALLERS = 8
WARM = 100  # swaps before the first measurement of memory
MAX_GROWTH_MB = 20
SETTLE_S = 2.0
LEFT = 4  # versions that are kept on disk


def main() -> None:
    """Run the swaps, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--transport", choices=("grpcio", "native"), default="grpcio")
    arguments = parser.parse_args()
    artifacts = [make_artifact(labels) for labels in LABELS]
    with tempfile.TemporaryDirectory() as name:
        publish(Path(name), NAME, artifacts[1])
        with serving(Path(name), "--poll", 0.05, "--transport", arguments.transport) as server:
            memory = psutil.Process(server.process.pid)
            results = asyncio.run(swap(server.address, Path(name), artifacts, arguments.swaps, memory))
    arguments.out.write_text(json.dumps({"transport": arguments.transport, **results}, indent=1) + "\n")
    grown = results["settled_mb"][-1] - results["settled_mb"][0]
    print({**results, "rss_mb": f"{grown:+.1f} since swap {WARM}"})
    if results["failed"] or results["wrong"] or grown > MAX_GROWTH_MB:
        sys.exit(1)


async def swap(
    address: str, repository: Path, artifacts: list[bytes], swaps: int, memory: psutil.Process
) -> dict[str, Any]:
    """Publish in turns, each version once the previous one answers, while callers send requests.

    Args:
        address: HOST:PORT of the server.
        repository: Its repository.
        artifacts: The two files.
        swaps: Number of swaps.
        memory: The server's process.
    """
    counts: Counter[str] = Counter()
    newest, stop, rss_mb, settled_mb, took_s = [1], asyncio.Event(), [], [], []
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)

    async def ask(client: AsyncClient) -> None:
        while not stop.is_set():
            try:
                found = await client.predict_pixels(pixels)
            except CallFailed as error:
                counts[f"failed: {error}"] += 1
                continue
            version = int(found.version)
            newest[0] = max(newest[0], version)
            counts["right" if found.label in LABELS[version % 2] else "wrong"] += 1

    async with AsyncClient(address) as client:
        callers = [asyncio.create_task(ask(client)) for _ in range(CALLERS)]
        started = time.monotonic()
        for version in range(2, swaps + 2):
            published = time.monotonic()
            await asyncio.to_thread(publish, repository, NAME, artifacts[version % 2])
            while newest[0] < version:
                await asyncio.sleep(0.005)
            took_s.append(time.monotonic() - published)
            if version in (WARM + 1, swaps + 1):  # between two swaps a third version may exist
                await asyncio.sleep(SETTLE_S)
                settled_mb.append(round(memory.memory_info().rss / 1e6, 1))
            rss_mb.append(round(memory.memory_info().rss / 1e6, 1))
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
