"""Milliseconds of one training step of `reference`, by memory layout and optimiser.

python benchmarks/train_step.py
"""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional

from training.networks import scale_pixels
from training.networks.reference import Reference

BATCH, STEPS, ROUNDS = 32, 50, 5
VARIANTS = {
    "contiguous": (torch.contiguous_format, False),
    "contiguous, fused AdamW": (torch.contiguous_format, True),
    "channels_last": (torch.channels_last, False),
    "channels_last, fused AdamW": (torch.channels_last, True),
}


def main() -> None:
    """Interleave the variants and print the median of each."""
    steps = {name: prepare(*variant) for name, variant in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            times[name].append((time.perf_counter() - started) / STEPS * 1e3)
    slowest = statistics.median(times["contiguous"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:28} median {median:6.1f} ms  min {min(values):6.1f}  ratio {median / slowest:.2f}")


def prepare(memory_format: torch.memory_format, fused: bool) -> object:
    """One step of training, ready to be called."""
    torch.manual_seed(0)
    network = Reference(3, 32, 32, 10).to(memory_format=memory_format).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, fused=fused)
    pixels = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8)
    targets = torch.randint(0, 10, (BATCH,))

    def step() -> None:
        images = scale_pixels(pixels).contiguous(memory_format=memory_format)
        loss = functional.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
