"""Drain a loaded server repeatedly: accepted requests are answered, all others are refused as UNAVAILABLE.

    python -m benchmarks.soak.drains --out FILE [--transport native]

64 callers in a closed loop and 8 streams of ModelStreamInfer, over 8 connections; SIGTERM in the middle; no retries.
Exit 1 if a call ended with anything but OK or UNAVAILABLE, if the number of answers differs from the one in the
server's last log record (`all requests answered: N`), or if the server did not exit with 0 in time.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks import http2
from benchmarks.honest import make_infer_request, make_request
from benchmarks.record import add_out, write_result
from benchmarks.servers import Server, add_server_options, list_server_options, make_artifact, serving
from benchmarks.soak.strangers import SERVER_OPTIONS, find_wrong_end, stop
from evalmode.artifact.publishing import publish
from evalmode.wire import open_inference_pb2 as wire

CALLERS, STREAMS, CHANNELS = 64, 8, 8
LOADED_S = 1.5
REFUSED = 3  # in a row: the server has stopped
PAUSE_S = 0.05
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
FINE = ("OK", "UNAVAILABLE")
STREAM = " (stream)"
LATE_WRITE = "Internal error from Core"  # grpc.aio's message for a write to a stream that the server has ended
ANSWERED = re.compile(r"all requests answered: (\d+)")


def main() -> None:
    """Run the drains, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    add_server_options(parser)
    parser.add_argument("--drains", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=LOADED_S, help="of load before each SIGTERM")
    arguments = parser.parse_args()
    drains: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        publish(Path(name), "network", make_artifact(tuple(map(str, range(10)))))
        for number in range(arguments.drains):
            drains.append(drain(Path(name), arguments))
            print(f"{number + 1:3} {drains[-1]}", flush=True)
            write_result(arguments, {**add_up(drains), "drains": drains})
    print(add_up(drains))
    sys.exit(1 if any(one["misses"] for one in drains) else 0)


def add_up(drains: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum the figures of all drains."""
    codes = sum((Counter(one["codes"]) for one in drains), Counter())
    misses = Counter(re.sub(r"\d+", "N", miss) for one in drains for miss in one["misses"])
    return {"codes_of_all": dict(codes), "answers": sum(one["answers"] for one in drains), "misses": dict(misses)}


def drain(repository: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Load and drain one server.

    Args:
        repository: A repository with one model.
        arguments: The command-line arguments.
    """
    options = (*list_server_options(arguments), *SERVER_OPTIONS)
    with tempfile.TemporaryFile("w+") as log, serving(repository, *options, log=log) as server:
        codes, stopped = asyncio.run(load_and_stop(server, arguments.seconds))
        log.seek(0)
        logged = log.read()
    answers = codes["OK"]
    misses = find_wrong_end(stopped, logged, 1)
    wrong = {code: count for code, count in codes.items() if code.removesuffix(STREAM) not in FINE}
    if wrong:
        misses.append(f"{sum(wrong.values())} calls ended in {wrong}")
    if stopped["exit_code"] != 0:
        misses.append(f"exit code {stopped['exit_code']}: {(logged.splitlines() or ['no log'])[-1]}")
    counted = ANSWERED.search(logged)
    if counted is None:
        misses.append("the server did not log how many requests it answered")
    elif int(counted[1]) != answers:
        misses.append(f"the server counted {counted[1]} answers, {answers} arrived")
    return {"answers": answers, "codes": dict(codes), **stopped, "misses": misses}


async def load_and_stop(server: Server, seconds: float) -> tuple[Counter[str], dict[str, Any]]:
    """Load a server and stop it.

    Args:
        server: A running server.
        seconds: Duration of the load before the server is stopped.

    Returns:
        How calls ended, where each reply of a stream counts as OK, and how the server ended.
    """
    codes: Counter[str] = Counter()
    request, streamed = make_request(), make_infer_request()

    async def call(channel: grpc.aio.Channel) -> None:
        predict, refused = channel.unary_unary(http2.PREDICT), 0
        while refused < REFUSED:
            try:
                await predict(request, timeout=30)
            except grpc.RpcError as error:
                codes[name_end(error)] += 1
                refused += 1
                await asyncio.sleep(PAUSE_S)
            else:
                codes["OK"] += 1
                refused = 0

    async def stream(channel: grpc.aio.Channel) -> None:
        answered = asyncio.Event()

        async def requests() -> AsyncIterator[bytes]:
            while True:
                yield streamed
                await answered.wait()
                answered.clear()

        try:
            async for reply in channel.stream_stream(http2.STREAM_INFER)(requests()):
                response = wire.ModelStreamInferResponse.FromString(reply)
                codes["OK" if not response.error_message else f"streamed: {response.error_message}"] += 1
                answered.set()
        except grpc.RpcError as error:
            late_write = error.details() == LATE_WRITE  # the earlier status is lost
            codes[("UNAVAILABLE" if late_write else name_end(error)) + STREAM] += 1
        else:
            codes["OK" + STREAM] += 1

    channels = [grpc.aio.insecure_channel(server.address, options=OPTIONS) for _ in range(CHANNELS)]
    callers = [call(channels[number % CHANNELS]) for number in range(CALLERS)]
    streams = [stream(channels[number % CHANNELS]) for number in range(STREAMS)]
    everybody = asyncio.gather(*callers, *streams)
    await asyncio.sleep(seconds)
    stopped = await asyncio.to_thread(stop, server, 1)
    await everybody
    for channel in channels:
        await channel.close()
    return codes, stopped


def name_end(error: Any) -> str:
    """Return the status, with its message if the status is not an expected one."""
    code = error.code().name
    return code if code in FINE else f"{code}: {error.details()}"


if __name__ == "__main__":
    main()
