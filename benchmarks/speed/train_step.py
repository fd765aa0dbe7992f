"""Milliseconds per training step, by variants that could make it faster.

    python -m benchmarks.speed.train_step [--freed] [--out FILE] [reference|compact [VARIANT...]]
    GOMP_SPINCOUNT=0 python -m benchmarks.speed.train_step compact channels_last     threads that never spin

"guarded" checks after each step whether all gradients are finite, as training does, and prints its share of the step.
Variants are interleaved; `seconds to start` is the cost of compiling before the first step, `faults` the pages that a
step requests from the system. With --freed, memory is returned to the system, which is glibc's default.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as training does

import numpy as np
import torch
from torch.nn import functional

from benchmarks.record import add_out, write_result
from training.datasets import Dataset, Split
from training.networks import build_network, scale_pixels
from training.nonfinite import are_finite
from training.optimizers import make_optimizers
from training.recipe import Recipe, choose_recipe
from training.torch_runtime import keep_memory

STEPS, ROUNDS = 5, 5
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
GUARD: list[float] = []  # seconds of each check
VARIANTS = (
    *("channels_last", "channels_last, guarded", "contiguous"),
    *("channels_last, bfloat16", "channels_last, compiled"),
)
IMAGES = Split(np.zeros((45_000, 32, 32, 3), np.uint8), np.zeros(45_000, np.int64))  # as many as in CIFAR-10


def main() -> None:
    """Compare the variants that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--freed", action="store_true")
    add_out(parser, required=False)
    parser.add_argument("network", choices=("reference", "compact"), nargs="?", default="compact")
    parser.add_argument("variants", nargs="*", default=VARIANTS)
    arguments = parser.parse_args()
    with nullcontext() if arguments.freed else keep_memory():
        figures = compare(arguments.network, arguments.variants)
    write_result(arguments, {"steps": STEPS, "rounds": ROUNDS, "variants": figures})


def compare(network: str, variants: list[str]) -> dict[str, dict[str, float]]:
    """Interleave the variants of a network, and print and return the figures of each."""
    recipe = choose_recipe(network, Dataset("benchmark", tuple("0123456789"), IMAGES, IMAGES, IMAGES))
    steps: dict[str, Callable[[], None]] = {}
    figures: dict[str, dict[str, float]] = {}
    for name in variants:
        started = time.perf_counter()
        steps[name] = prepare(recipe, name)
        steps[name]()
        figures[name] = {"start_s": time.perf_counter() - started}
        print(f"{name:28} {figures[name]['start_s']:6.1f} seconds to start")
    times: dict[str, list[float]] = {name: [] for name in steps}
    faults: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            times[name].append(time_steps(step))
            faults[name].append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / STEPS)
    first = statistics.median(next(iter(times.values())))
    for name, values in times.items():
        median, asked = statistics.median(values), statistics.median(faults[name])
        figures[name] |= {"median_ms": median, "min_ms": min(values), "ratio": median / first, "faults": asked}
        shown = f"median {median:6.1f} ms  min {min(values):6.1f}  ratio {median / first:.2f}  faults {asked:7.0f}"
        if name.endswith("guarded"):
            figures[name]["guard_share"] = statistics.median(GUARD) * 1e3 / median
            shown += f"  guard {figures[name]['guard_share']:.1%}"
        print(f"{name:28} {shown}")
    return figures


def time_steps(step: Callable[[], None]) -> float:
    """Measure the milliseconds per step."""
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - started) / STEPS * 1e3


def prepare(recipe: Recipe, variant: str) -> Callable[[], None]:
    """Return a function that runs one step of training on 32x32 RGB images."""
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
            GUARD.append(time.perf_counter() - started)
        for optimizer in optimizers:
            optimizer.step()

    return step


if __name__ == "__main__":
    main()
