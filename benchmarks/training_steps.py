"""Times the training steps of one network in this process, by variants of the step.

    python -m benchmarks.training_steps [--freed] [--rounds N] NETWORK VARIANT...

Variants are interleaved. "guarded" checks after each step whether all gradients are finite, as training does. With
--freed, memory is returned to the system, which is glibc's default. GOMP_SPINCOUNT sets how long threads spin.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as training does

import numpy as np
import torch
from torch.nn import functional

from training.datasets import Dataset, Split
from training.networks import build_network, scale_pixels
from training.nonfinite import are_finite
from training.optimizers import make_optimizers
from training.recipe import Recipe, choose_recipe
from training.torch_runtime import keep_memory

STEPS = {"reference": 50, "compact": 5}  # of a round
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IMAGES = Split(np.zeros((45_000, 32, 32, 3), np.uint8), np.zeros(45_000, np.int64))  # as many as in CIFAR-10


@dataclass(frozen=True)
class Steps:
    """What the steps of a variant took.

    Attributes:
        start_s: Seconds until the first step ended, which compiles or plans.
        round_ms: Mean milliseconds per step, round by round.
        round_faults: Pages that a step requested from the system, round by round.
        guard_ms: Milliseconds of each check whether the gradients are finite.
    """

    start_s: float
    round_ms: list[float] = field(default_factory=list)
    round_faults: list[float] = field(default_factory=list)
    guard_ms: list[float] = field(default_factory=list)


def main() -> None:
    """Print the medians of the variants that the command line names, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--freed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("network", choices=STEPS)
    parser.add_argument("variants", nargs="+", help="LAYOUT[, bfloat16|compiled|guarded]")
    arguments = parser.parse_args()
    with nullcontext() if arguments.freed else keep_memory():
        measured = measure(arguments.network, arguments.variants, arguments.rounds)
    print(json.dumps({name: describe(steps) for name, steps in measured.items()}))


def measure(network: str, variants: list[str], rounds: int) -> dict[str, Steps]:
    """Run the variants of a network in turns.

    Args:
        network: The name of the network.
        variants: The names of the variants.
        rounds: The number of turns of each.
    """
    recipe = choose_recipe(network, Dataset("benchmark", tuple("0123456789"), IMAGES, IMAGES, IMAGES))
    runs: dict[str, Callable[[], None]] = {}
    found: dict[str, Steps] = {}
    for name in variants:
        started, guard_ms = time.perf_counter(), list[float]()
        runs[name] = prepare(recipe, name, guard_ms)
        runs[name]()
        found[name] = Steps(time.perf_counter() - started, guard_ms=guard_ms)
    print(f"{network}: {', '.join(variants)}: each step ran once", file=sys.stderr, flush=True)
    for _ in range(rounds):
        for name, run in runs.items():
            faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            for _ in range(STEPS[network]):
                run()
            found[name].round_ms.append((time.perf_counter() - started) / STEPS[network] * 1e3)
            asked = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            found[name].round_faults.append(asked / STEPS[network])
    return found


def prepare(recipe: Recipe, variant: str, guard_ms: list[float]) -> Callable[[], None]:
    """Return a function that runs one step of training on 32x32 RGB images.

    Args:
        recipe: The recipe of the network.
        variant: The layout of the pixels in memory, and a trick behind a comma.
        guard_ms: Takes the milliseconds of each check of the gradients.
    """
    torch.manual_seed(0)
    layout, _, trick = variant.partition(", ")
    memory_format = LAYOUTS[layout]
    network = build_network(recipe.network, (32, 32, 3), 10, 1.0, 0.0).train()
    network.to(memory_format=memory_format)  # type: ignore[call-overload]  # the annotations of torch leave it out
    optimizers = make_optimizers(network, recipe)
    learned = list(network.parameters())
    forward: Callable[..., torch.Tensor] = torch.compile(network) if trick == "compiled" else network
    pixels = torch.randint(0, 256, (recipe.batch_size, 32, 32, 3), dtype=torch.uint8)
    targets = torch.randint(0, 10, (recipe.batch_size,))

    def step() -> None:
        images = scale_pixels(pixels).contiguous(memory_format=memory_format)
        with torch.autocast("cpu", torch.bfloat16, enabled=trick == "bfloat16"):
            logits = forward(images)
        loss = functional.cross_entropy(logits.float(), targets)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if trick == "guarded":
            started = time.perf_counter()
            are_finite(one.grad for one in learned)
            guard_ms.append((time.perf_counter() - started) * 1e3)
        for optimizer in optimizers:
            optimizer.step()

    return step


def describe(steps: Steps) -> dict[str, float | list[float]]:
    """Add the medians to what was measured; the single checks are left out.

    Args:
        steps: What the steps of a variant took.
    """
    kept: dict[str, float | list[float]] = asdict(steps)
    del kept["guard_ms"]
    kept |= {"median_ms": statistics.median(steps.round_ms), "faults": statistics.median(steps.round_faults)}
    return kept | ({"guard_ms": statistics.median(steps.guard_ms)} if steps.guard_ms else {})


if __name__ == "__main__":
    main()
