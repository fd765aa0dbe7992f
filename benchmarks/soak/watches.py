"""Clients open health watches and leave, a hundred thousand times, while honest callers must be served.

    python -m benchmarks.soak.watches --out FILE [--minutes 10]

64 clients open, cancel, reset and abandon watches: 48 with grpcio, as any client that balances by health, and 16 that
write their own frames. Honest callers run in rounds of ten seconds. Ends after --watches watches, or after --minutes.
Exit 1 if an honest call failed or is slower than benchmarks/soak/strangers.py allows, memory grew beyond what that
allows, or the server does not stop after SIGTERM as it should.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.honest import Asking, Memory, find_misses
from benchmarks.record import add_out, write_result
from benchmarks.servers import Server, make_artifact, serving
from benchmarks.soak.attackers import Attacking
from benchmarks.soak.strangers import SERVER_OPTIONS, WARM_S, find_wrong_end, stop
from evalmode.artifact.publishing import publish

CLIENTS = (("watches-ordinary", 24 / 64), ("watches-ordinary", 24 / 64), ("watches-come-and-go", 16 / 64))
PREDICTS_PER_S = 100.0
ROUND_S = 10.0


def main() -> None:
    """Run the clients, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument("--transport", choices=("grpcio", "native"), default="grpcio")
    parser.add_argument("--watches", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="in place of a number of watches")
    parser.add_argument("--seconds", type=float, default=ROUND_S, help="of each round of honest callers")
    arguments = parser.parse_args()
    options = ("--transport", arguments.transport, *SERVER_OPTIONS)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile("w+") as log:
        publish(Path(name), "network", make_artifact(tuple(map(str, range(10)))))
        with serving(Path(name), *options, log=log) as server, Memory(server.process.pid) as memory:
            results = watch(server, memory, arguments)
            log.seek(0)
            results["misses"] += find_wrong_end(results, log.read(), 1)
    write_result(arguments, results)
    for key, value in results.items():
        print(f"{key:12} {value}")
    sys.exit(1 if results["misses"] else 0)


def watch(server: Server, memory: Memory, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run rounds of honest callers while the other clients open watches. Ends after the first round that fails.

    Args:
        server: A running server.
        memory: The server's memory.
        arguments: The command-line arguments.
    """
    Asking(server.address, WARM_S).figures()
    quiet = Asking(server.address, arguments.seconds, PREDICTS_PER_S).figures()
    memory.start_again()
    limit = math.inf if arguments.minutes < math.inf else arguments.watches / len(CLIENTS)
    started = time.monotonic()
    rounds: list[dict[str, Any]] = []
    misses: list[str] = []
    with ExitStack() as stack:
        attacks = [stack.enter_context(Attacking(kind, server.address, scale, limit)) for kind, scale in CLIENTS]
        while not misses and time.monotonic() - started < arguments.minutes * 60:
            if all(one.is_over for one in attacks):
                break
            rounds.append(Asking(server.address, arguments.seconds, PREDICTS_PER_S).figures())
            misses = find_misses(quiet, rounds[-1], memory.idle_mb, memory.most_mb)
        seconds = time.monotonic() - started
        stopped = stop(server, 1)
    counts = sum((Counter(one.counts) for one in attacks), Counter())
    return {
        "seconds_watched": round(seconds, 1),
        "watches_begun": counts["watches"],
        "clients": dict(counts),
        "quiet": quiet,
        "rounds": rounds,
        "idle_mb": memory.idle_mb,
        "most_mb": memory.most_mb,
        **stopped,
        "misses": misses,
    }


if __name__ == "__main__":
    main()
