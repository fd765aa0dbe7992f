"""Restart one of two replicas repeatedly under load: no request fails.

    python -m benchmarks.soak.restarts --out FILE [--restarts 200] [--transport native]

The client watches the health of both and balances between those that report SERVING; it does not retry. A replica gets
SIGTERM, reports NOT_SERVING, answers for one more second, drains, exits with 0 and is restarted on the same port.
Exit 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.record import add_out, write_result
from benchmarks.servers import SIDE, Server, add_server_options, list_server_options, make_artifact, serving
from evalmode.artifact.publishing import publish
from evalmode.wire import classifier_pb2 as wire
from evalmode.wire import classifier_pb2_grpc as wire_grpc

CALLERS = 8
CONFIG = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
CHANNEL = (
    ("grpc.service_config", json.dumps(CONFIG)),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # each caller has connections of its own
    ("grpc.default_authority", "evalmode"),  # otherwise the list of addresses, which native refuses as a server name
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
)
SETTLE_S = 0.5  # between two restarts, so that clients reconnect to both


def main() -> None:
    """Run the restarts, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument("--restarts", type=int, default=200)
    add_server_options(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        publish(Path(name), "network", make_artifact(tuple(map(str, range(10)))))
        options = (Path(name), *list_server_options(arguments), "--lame-duck", 1)
        results = asyncio.run(restart(options, arguments.restarts))
    write_result(arguments, results)
    print(results)
    if results["failed"] or set(results["exit_codes"]) != {"0"}:
        sys.exit(1)


async def restart(options: tuple[Any, ...], restarts: int) -> dict[str, Any]:
    """Restart the two replicas in turns while callers send requests."""
    counts: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    stop = asyncio.Event()
    drawn = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    request = wire.PredictRequest(pixels=wire.Pixels(data=drawn.tobytes(), height=SIDE, width=SIDE, channels=3))
    with ExitStack() as first, ExitStack() as second:
        stacks = [first, second]
        replicas: list[Server] = [stack.enter_context(serving(*options)) for stack in stacks]
        addresses = [replica.address for replica in replicas]

        async def ask(stub: wire_grpc.ClassifierStub) -> None:
            while not stop.is_set():
                try:
                    reply = await stub.Predict(request, timeout=10)
                except grpc.RpcError as error:
                    counts[f"{error.code().name}: {error.details()}"] += 1
                else:
                    counts["answers" if len(reply.scores) == 5 else "short answers"] += 1

        async with AsyncExitStack() as opened:
            target = f"ipv4:{','.join(addresses)}"
            for_each = [grpc.aio.insecure_channel(target, options=CHANNEL) for _ in range(CALLERS)]
            channels = [await opened.enter_async_context(channel) for channel in for_each]
            stubs = [wire_grpc.ClassifierStub(channel) for channel in channels]  # type: ignore[no-untyped-call]
            callers = [asyncio.create_task(ask(stub)) for stub in stubs]
            await asyncio.sleep(1)
            started = time.monotonic()
            for number in range(restarts):
                which = number % 2
                replicas[which].process.send_signal(signal.SIGTERM)
                codes[str(await asyncio.to_thread(replicas[which].process.wait))] += 1
                stacks[which].close()
                port = addresses[which].rpartition(":")[2]
                replicas[which] = await asyncio.to_thread(
                    stacks[which].enter_context, serving(*options, "--port", port)
                )
                await asyncio.sleep(SETTLE_S)
            stop.set()
            await asyncio.gather(*callers)
    failures = {name: count for name, count in counts.items() if name != "answers"}
    return {
        "restarts": restarts,
        "seconds": round(time.monotonic() - started, 1),
        "answers": counts["answers"],
        "failed": sum(failures.values()),
        "failures": failures,
        "exit_codes": codes,
    }


if __name__ == "__main__":
    main()
