"""Attack the server and measure its honest callers: each kind of attack against a new server.

    python -m benchmarks.soak.strangers --out FILE [--transport native]

For each kind (all of benchmarks/soak/attackers.py unless some are named): honest callers without it, then during it;
then SIGTERM (once or twice) while it continues. Exit 1 if an honest call failed, its p99 is above twice the quiet one
plus 20 ms, the server's memory is more than 400 MB above the idle figure, the server stops later than --lame-duck +
--grace + 1 s, or its exit code does not match its last log record.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.honest import Asking, Memory, find_misses
from benchmarks.record import add_out, write_result
from benchmarks.servers import Server, add_server_options, list_server_options, make_artifact, serving
from benchmarks.soak.attackers import KINDS, Attacking
from evalmode.artifact.publishing import publish

WARM_S = 2.0
BUILD_UP_S = 1.0  # of an attack before honest callers are measured
LAME_DUCK_S, GRACE_S, EXTRA_S = 1, 3, 1.0
SERVER_OPTIONS = ("--lame-duck", LAME_DUCK_S, "--grace", GRACE_S, "--log-level", "info")
SECOND_AFTER_S, SECOND_WITHIN_S = 0.5, 1.0
HANGS_S = 15.0  # a server that runs longer than this after SIGTERM is killed


def main() -> None:
    """Run the attacks, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    add_server_options(parser)
    parser.add_argument("--kind", choices=KINDS, action="append", help="may be given again; default: all")
    parser.add_argument("--seconds", type=float, default=20, help="of each attack")
    parser.add_argument("--scale", type=float, default=1, help="of each attack's size")
    parser.add_argument("--signals", type=int, choices=(1, 2), default=1, help="how many SIGTERMs end the server")
    parser.add_argument("--stops", type=int, default=1, help="how often each kind is run, each time with a new server")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    print(f"{'attack':22}{'predict':>10}{'p99':>8}{'check':>8}{'connect':>9}{'failed':>8}{'memory':>11}  exit")
    with tempfile.TemporaryDirectory() as name:
        publish(Path(name), "network", make_artifact(tuple(map(str, range(10)))))
        for kind in list(arguments.kind or KINDS) * arguments.stops:
            result = attack(kind, Path(name), arguments)
            figures.setdefault(kind, []).append(result)
            show(kind, result)
            write_result(arguments, {"attacks": figures})
    if any(result["misses"] for every in figures.values() for result in every):
        sys.exit(1)


def attack(kind: str, repository: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one kind of attack against a new server: without it, during it, and the shutdown.

    Args:
        kind: A key of ``KINDS``.
        repository: A repository with one model.
        arguments: The command-line arguments.
    """
    options = (*list_server_options(arguments), *SERVER_OPTIONS)
    with (
        tempfile.TemporaryFile("w+") as log,
        serving(repository, *options, log=log) as server,
        Memory(server.process.pid) as memory,
    ):
        Asking(server.address, WARM_S).figures()
        quiet = Asking(server.address, arguments.seconds).figures()
        memory.start_again()
        with Attacking(kind, server.address, arguments.scale) as attacking:
            time.sleep(BUILD_UP_S)
            attacked = Asking(server.address, arguments.seconds).figures()
            stopped = stop(server, arguments.signals)
        log.seek(0)
        misses = find_misses(quiet, attacked, memory.idle_mb, memory.most_mb)
        misses += find_wrong_end(stopped, log.read(), arguments.signals)
        if memory.killed:
            misses.append("killed before the machine's memory was full")
        megabytes = {"idle_mb": memory.idle_mb, "most_mb": memory.most_mb}
    return {"quiet": quiet, "attacked": attacked, **megabytes, **stopped, "attack": attacking.counts, "misses": misses}


def stop(server: Server, signals: int) -> dict[str, Any]:
    """Stop the server; kill it if it hangs.

    Args:
        server: A running server.
        signals: Number of SIGTERMs.
    """
    started = time.monotonic()
    for number in range(signals):
        time.sleep(SECOND_AFTER_S if number else 0)
        server.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    try:
        code: int | None = server.process.wait(HANGS_S)
    except subprocess.TimeoutExpired:
        code = None
        psutil.Process(server.process.pid).kill()
        server.process.wait()
    ended = time.monotonic()
    return {"exit_code": code, "exit_s": round(ended - (started if signals == 1 else asked), 2)}


def find_wrong_end(stopped: dict[str, Any], log: str, signals: int) -> list[str]:
    """List the requirements that the server's end did not meet.

    Args:
        stopped: The result of ``stop``.
        log: The server's log.
        signals: Number of SIGTERMs that it received.
    """
    bound = LAME_DUCK_S + GRACE_S + EXTRA_S if signals == 1 else SECOND_WITHIN_S
    misses = []
    if stopped["exit_code"] is None:
        return [f"still running {HANGS_S:.0f} s after SIGTERM"]
    if stopped["exit_s"] > bound:
        misses.append(f"ended after {stopped['exit_s']} s, above {bound} s")
    last = log.strip().splitlines()[-1] if log.strip() else ""
    right = 1 if signals == 2 or re.search(r"were cut", last) else 0
    if stopped["exit_code"] != right:
        misses.append(f"exit code {stopped['exit_code']} in place of {right}; its last line: {last}")
    elif signals == 1 and right == 0 and "all requests answered" not in last:
        misses.append(f"exit code 0; its last line: {last}")
    return misses


def show(kind: str, result: dict[str, Any]) -> None:
    """Print one line, and one for each requirement that was not met."""
    attacked = result["attacked"]
    p99s = "".join(f"{attacked[name]['p99_ms']:9.1f}" for name in ("predict", "check", "connect"))
    failed = sum(figures["failed"] for figures in attacked.values())
    grown = result["most_mb"] - result["idle_mb"]
    quiet = result["quiet"]["predict"]["p99_ms"]
    print(
        f"{kind:22}{quiet:8.1f}{p99s}{failed:8}{grown:+8.0f} MB  {result['exit_code']} in {result['exit_s']} s",
        flush=True,
    )
    for miss in result["misses"]:
        print(f"    failed: {miss}", flush=True)


if __name__ == "__main__":
    main()
