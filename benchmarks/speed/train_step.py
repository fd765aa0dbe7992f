"""Milliseconds per training step, by variants that could make it faster: layout, precision, threads and memory.

    python -m benchmarks.speed.train_step --out FILE

Each process measures one network (``python -m benchmarks.training_steps``). The number of iterations for which OpenMP's
threads spin is also measured while two other trainings use the cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.processes import list_command, make_environment
from benchmarks.record import add_out, write_result

VARIANTS = {
    "reference": ("channels_last", "contiguous", "channels_last, guarded"),
    "compact": (
        *("channels_last", "contiguous", "channels_last, guarded"),
        *("channels_last, compiled", "channels_last, bfloat16"),
    ),
}
SPINS = (300, 1_000, 3_000, 10_000, 30_000, 300_000)  # the last is OpenMP's default
BUSY_SPINS = (10_000, 300_000)
RUNS = {"spins": 2, "memory": 3}


def main() -> None:
    """Measure all variants, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    arguments = parser.parse_args()
    variants = {network: measure(network, *names) for network, names in VARIANTS.items()}
    write_result(arguments, {"variants": variants, "spins": compare_spins(), "memory": compare_memory()})


def compare_spins() -> list[dict[str, Any]]:
    """Measure how long threads should spin, on free cores and on busy ones, in interleaved runs."""
    found = []
    for network in VARIANTS:
        for busy in (False, True):
            for _ in range(RUNS["spins"]):
                for spins in BUSY_SPINS if busy else SPINS:
                    with keep_busy() if busy else ExitStack():
                        steps = measure(network, "channels_last", GOMP_SPINCOUNT=str(spins))
                    found.append({"network": network, "busy": busy, "spins": spins, **steps["channels_last"]})
    return found


def compare_memory() -> list[dict[str, Any]]:
    """Measure a step with memory that is kept and with memory that is returned, in interleaved runs."""
    return [
        {"freed": freed, **measure("compact", "channels_last", freed=freed)["channels_last"]}
        for _ in range(RUNS["memory"])
        for freed in (True, False)
    ]


def measure(network: str, *variants: str, freed: bool = False, **variables: str) -> dict[str, Any]:
    """Measure variants of a network in a process of its own, and print the medians.

    Args:
        network: The name of the network.
        variants: The names of the variants.
        freed: Whether memory is returned to the system.
        variables: Variables of the environment.
    """
    options = ["--freed"] * freed
    command = list_command("benchmarks.training_steps", *options, network, *variants)
    done = subprocess.run(command, env=make_environment(**variables), stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    for name, found in figures.items():
        shown = " ".join([network, *options, *(f"{key}={value}" for key, value in variables.items())])
        print(f"{shown:44} {name:24} {found['median_ms']:8.1f} ms  {found['faults']:7.0f} faults", flush=True)
    return figures


@contextmanager
def keep_busy() -> Iterator[None]:
    """Train two other networks until the block ends."""
    command = list_command("benchmarks.training_steps", "--rounds", 1_000_000, "reference", "channels_last")
    others = [subprocess.Popen(command, env=make_environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for one in others:
            assert one.stderr is not None
            if not one.stderr.readline():
                raise SystemExit(f"a training that should keep the cores busy ended with exit code {one.wait()}")
        yield
    finally:
        for one in others:
            one.kill()
            one.communicate()


if __name__ == "__main__":
    main()
