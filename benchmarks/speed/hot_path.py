"""The cost of a request apart from its network: each step of its way through Python, with the network run in between.

    python -m benchmarks.speed.hot_path [--batch 8] [--rounds 300] [--out FILE]

`reference` for 32x32 RGB runs on a batch, then its requests are parsed and answered one after the other, so that the
first steps after the network find cold caches. Then the engine answers them: what that takes longer is scheduling.
Prints medians over the rounds in microseconds per request.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import add_out, write_result
from benchmarks.speed.serve import SIDE, draw_jpeg, make_networks
from evalmode.limits import Limits
from evalmode.wire import classifier_pb2 as wire
from serving.engine.decodes import Decodes
from serving.engine.executor import Executor
from serving.engine.scheduler import Scheduler
from serving.engine.shared_limits import Alone, SharedLimit, SharedSlots
from serving.services.classifier import Classifier
from serving.services.inference import Inference, Timed, Unparsed, Work
from serving.services.models import Models
from serving.services.statistics import Statistics


class Patient:
    """A caller without a deadline."""

    arrived = 0.0
    deadline = math.inf

    def cancelled(self) -> bool:
        """Return False."""
        return False


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=300)
    add_out(parser, required=False)
    arguments = parser.parse_args()
    drawn = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    pixels = wire.Pixels(data=drawn.tobytes(), height=SIDE, width=SIDE, channels=3)
    asked = {"raw pixels": wire.PredictRequest(pixels=pixels), "JPEG": wire.PredictRequest(image=draw_jpeg())}
    with tempfile.TemporaryDirectory() as name:
        make_networks(Path(name))
        models = Models.open(Path(name) / "fp32")
    figures: dict[str, dict[str, float]] = {}
    for kind, request in asked.items():
        steps = measure(models, request.SerializeToString(), arguments.batch, arguments.rounds)
        print(f"{kind}, in batches of {arguments.batch}: microseconds a request")
        figures[kind] = {step: statistics.median(taken) / arguments.batch * 1e6 for step, taken in steps.items()}
        for step, median_us in figures[kind].items():
            print(f"  {step:30} {median_us:8.1f}")
    write_result(arguments, {"us_per_request": figures})


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
    statistics_, limits, decodes = (
        Statistics(),
        Limits(),
        Decodes(SharedSlots(1, "large_slots", Alone), 2**30),
    )
    service = Classifier(models, limits, decodes)
    scheduler = Scheduler(
        SharedSlots(1, "slots", Alone),
        size,
        decodes,
        SharedLimit(1 + size, Alone("in_flight")),
    )
    inference = Inference(Executor(scheduler, statistics_.count_run), statistics_)
    steps: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        messages = [bytes(bytearray(message)) for _ in range(size)]  # one object each, as from the wire
        clock = [time.perf_counter()]
        requests = [wire.PredictRequest.FromString(one) for one in messages]
        clock.append(time.perf_counter())
        found = [(one, service.find(one)) for one in requests]
        read = [service.begin(one, model, Patient()).finish() for one, model in found]
        clock.append(time.perf_counter())
        model, inputs = found[0][1], [one.inputs for one in read]
        outputs = model.run({name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]})
        answers = [{name: output[row : row + 1] for name, output in outputs.items()} for row in range(size)]
        clock.append(time.perf_counter())
        for one, answer in zip(inputs, answers, strict=True):
            statistics_.count_answer(model, one, answer, 10, 1000, 3000)
        clock.append(time.perf_counter())
        replies = [one.write(Timed(answer, 10, 1000, 3000)) for one, answer in zip(read, answers, strict=True)]
        clock.append(time.perf_counter())
        for reply in replies:
            reply.SerializeToString()
        clock.append(time.perf_counter())
        answer_all(inference, service, messages)
        clock.append(time.perf_counter())
        names = ("parse", "find, check, decode", "network", "count", "write the reply", "serialise it", "scheduling")
        taken = [end - start for start, end in itertools.pairwise(clock)]
        taken[-1] -= sum(taken[:-1])
        for step, seconds in zip(names, taken, strict=True):
            steps[step].append(seconds)
    return steps


def answer_all(inference: Inference, service: Classifier, messages: list[bytes]) -> None:
    """Answer messages that have arrived together, as a thread of the native transport does."""
    outcomes: list[Any] = []
    with inference.executor.receiving():
        for message in messages:
            unparsed = Unparsed(partial(wire.PredictRequest.FromString, message), len(message), serialize)
            Work(inference, service, unparsed, Patient(), outcomes.append, lambda *_: None)
    while inference.executor.help():
        pass
    assert len(outcomes) == len(messages)
    assert all(isinstance(outcome, bytes) for outcome in outcomes), outcomes  # replies, not refusals


def serialize(reply: wire.PredictResponse) -> bytes:
    """Serialize a reply."""
    return reply.SerializeToString()


if __name__ == "__main__":
    main()
