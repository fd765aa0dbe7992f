"""Drain a loaded server again and again: what is accepted is answered, all else is refused as UNAVAILABLE.

    python benchmarks/drains.py --out benchmarks/results/DATE-drains-TRANSPORT.json [--transport native]

64 callers in a closed loop and 8 streams of ModelStreamInfer, over 8 connections; SIGTERM in the middle; no retries.
Exit 1 where a call ended in anything but OK or UNAVAILABLE, the server counted another number of answers than arrived
(its last log line: `all requests answered: N`), or it did not end with 0 in time.
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
import http2  # beside this file
from honest import make_infer_request, make_request, write_figures
from servers import Server, make_artifact, serving
from strangers import SERVER_OPTIONS, find_wrong_end, stop

from evalmode.artifact.publishing import publish
from evalmode.wire import open_inference_pb2 as wire

CALLERS, STREAMS, CHANNELS = 64, 8, 8
LOADED_S = 1.5
REFUSED = 3  # in a row: the server is not there any more
PAUSE_S = 0.05
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
FINE = ("OK", "UNAVAILABLE")
STREAM = " (stream)"
LATE_WRITE = "Internal error from Core"  # grpc.aio's own word for a write to a stream that the server has ended
ANSWERED = re.compile(r"all requests answered: (\d+)")


def main() -> None:
    """Drain, judge, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--transport", choices=("grpcio", "native"), default="grpcio")
    parser.add_argument("--drains", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=LOADED_S, help="of load before each SIGTERM")
    arguments = parser.parse_args()
    drains: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        publish(Path(name), "network", make_artifact(tuple(map(str, range(10)))))
        for number in range(arguments.drains):
            drains.append(drain(Path(name), arguments))
            print(f"{number + 1:3} {drains[-1]}", flush=True)
            write_figures(arguments.out, arguments, {**add_up(drains), "drains": drains})
    print(add_up(drains))
    sys.exit(1 if any(one["misses"] for one in drains) else 0)


def add_up(drains: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all drains."""
    codes = sum((Counter(one["codes"]) for one in drains), Counter())
    misses = Counter(re.sub(r"\d+", "N", miss) for one in drains for miss in one["misses"])
    return {"codes_of_all": dict(codes), "answers": sum(one["answers"] for one in drains), "misses": dict(misses)}


def drain(repository: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One server, loaded and drained.

    Args:
        repository: with one model.
        arguments: of the command.
    """
    options = ("--transport", arguments.transport, *SERVER_OPTIONS)
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
        misses.append("the server does not say how many requests it answered")
    elif int(counted[1]) != answers:
        misses.append(f"the server counted {counted[1]} answers, {answers} arrived")
    return {"answers": answers, "codes": dict(codes), **stopped, "misses": misses}


async def load_and_stop(server: Server, seconds: float) -> tuple[Counter[str], dict[str, Any]]:
    """Load a server, stop it; how calls ended (each reply of a stream is one that ended OK), and how the server did.

    Args:
        server: a running one.
        seconds: of load before it is stopped.
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
                told = wire.ModelStreamInferResponse.FromString(reply)
                codes["OK" if not told.error_message else f"streamed: {told.error_message}"] += 1
                answered.set()
        except grpc.RpcError as error:
            late_write = error.details() == LATE_WRITE  # the status that came before is lost then
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
    """The status, with its message where the status is not one that is expected."""
    code = error.code().name
    return code if code in FINE else f"{code}: {error.details()}"


if __name__ == "__main__":
    main()
