"""The cost of a request apart from its network: each step of its way through Python, with the network run in between.

    python benchmarks/hot_path.py [--batch 8] [--rounds 300]

`reference` for 32x32 RGB runs on a batch, then its requests are parsed and answered one after the other, so that the
first steps after the network find cold caches. Prints medians over the rounds in microseconds per request.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from serve import SIDE, draw_jpeg, make_networks  # in this folder

from evalmode.limits import Limits
from evalmode.wire import classifier_pb2 as wire
from serving.engine.batch import Batch, Request, run_together
from serving.engine.decoding import DecodeBudget
from serving.services.classifier import Classifier
from serving.services.inference import Timed
from serving.services.models import Models
from serving.services.statistics import Statistics


class Patient:
    """A caller without a deadline."""

    def time_remaining_s(self) -> float:
        """Return a minute."""
        return 60.0

    def waited_s(self) -> float:
        """Return zero."""
        return 0.0

    def cancelled(self) -> bool:
        """Return False."""
        return False


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    drawn = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    pixels = wire.Pixels(data=drawn.tobytes(), height=SIDE, width=SIDE, channels=3)
    asked = {"raw pixels": wire.PredictRequest(pixels=pixels), "JPEG": wire.PredictRequest(image=draw_jpeg())}
    with tempfile.TemporaryDirectory() as name:
        make_networks(Path(name))
        models = Models.open(Path(name) / "fp32")
    for kind, request in asked.items():
        steps = measure(models, request.SerializeToString(), arguments.batch, arguments.rounds)
        print(f"{kind}, in batches of {arguments.batch}: microseconds a request")
        for step, taken in steps.items():
            print(f"  {step:30} {statistics.median(taken) / arguments.batch * 1e6:8.1f}")


def measure(models: Models, message: bytes, size: int, rounds: int) -> dict[str, list[float]]:
    """Measure each step.

    Args:
        models: The loaded models.
        message: A serialized PredictRequest.
        size: Requests per batch.
        rounds: Number of batches.

    Returns:
        The seconds that each step took for a whole batch, by its name, for every round.
    """
    statistics_, limits = Statistics(), Limits()
    budget = DecodeBudget(1)
    service = Classifier(models, limits, budget)
    steps: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        messages = [bytes(bytearray(message)) for _ in range(size)]  # one object each, as from the wire
        clock = [time.perf_counter()]
        requests = [wire.PredictRequest.FromString(one) for one in messages]
        clock.append(time.perf_counter())
        found = [(one, service.find(one)) for one in requests]
        read = [service.begin(one, model, Patient()).finish() for one, model in found]
        clock.append(time.perf_counter())
        batch = Batch[Request](size)
        for (_, model), one in zip(found, read, strict=True):
            request = Request(model, one.inputs, one.call, clock[0])
            if not batch.requests or batch.has_room_for(request):
                batch.add(request)
        clock.append(time.perf_counter())
        answers = run_together(batch.requests, statistics_.count_run)
        clock.append(time.perf_counter())
        for request, outputs in zip(batch.requests, answers, strict=True):
            statistics_.count_answer(request.model, request.inputs, outputs, 10, 1000, 3000)
        clock.append(time.perf_counter())
        replies = [one.write(Timed(outputs, 10, 1000, 3000)) for one, outputs in zip(read, answers, strict=True)]
        clock.append(time.perf_counter())
        for reply in replies:
            reply.SerializeToString()
        clock.append(time.perf_counter())
        names = ("parse", "find, check, decode", "batch", "network", "count", "write the reply", "serialise it")
        for number, step in enumerate(names):
            steps[step].append(clock[number + 1] - clock[number])
    return steps


if __name__ == "__main__":
    main()
