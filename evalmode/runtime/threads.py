"""How many threads a network may use: several, where that is faster and gives the same bits."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from evalmode.artifact.tensors import Tensors
from evalmode.runtime.lone import Lone
from evalmode.runtime.model import Model
from evalmode.runtime.session import limit_runs, open_lone_session

log = logging.getLogger(__name__)

MIN_RUN_S = 1e-3  # networks that run faster on one thread gain less than waking the other threads costs
RUNS = 16  # of each session; the fastest counts, since other processes slow some of them down


def add_lone(model: Model, graph: bytes, threads: int, replay_s: float = 0.0) -> Model:
    """Add a session with several threads to a model, if it is large enough and they give the same bits.

    The outputs of both sessions are compared on the golden inputs, one by one: larger batches stay on one thread. The
    certificate has compared one and two threads in the same way, on the machine that made it.

    Args:
        model: A model whose certificate was replayed.
        graph: What its session was opened from, the bytes of an ONNX file.
        threads: Threads of the second session.
        replay_s: Seconds that the comparison may take; 0 for no limit.

    Returns:
        The model with the second session, or as it was.

    Raises:
        LoadLimitExceeded: The comparison takes more than ``replay_s`` seconds.
    """
    certificate = model.manifest.certificate
    if threads < 2 or certificate is None or not (model.provider.is_reference and model.batch_invariant):
        return model
    golden = _split(certificate.inputs)
    with limit_runs(replay_s) as options:
        if _time_runs(model, golden, options) < MIN_RUN_S:
            return model
        session = open_lone_session(graph, threads)
        wide = replace(model, lone=Lone(session, math.inf))
        if not all(_give_same_bits(wide, inputs, options) for inputs in golden):
            log.info("%r: %s threads give other bits than one, which every request gets", model, threads)
            return model
        one = _time_runs(model, golden, options)
        several = _time_runs(wide, golden, options, alone=True)
    how = "%r: %.1f ms on one thread; a request that is alone gets %s, %.1f ms"
    log.info(how, model, one * 1e3, threads, several * 1e3)
    return replace(model, lone=Lone(session, one))


def _split(golden: Tensors) -> list[Tensors]:
    rows = range(len(next(iter(golden.values()))))
    return [{name: array[row : row + 1] for name, array in golden.items()} for row in rows]


def _give_same_bits(model: Model, inputs: Tensors, options: Any) -> bool:
    """Whether both sessions give the same bits."""
    one, several = (model.run(inputs, model.optional.names, alone, options) for alone in (False, True))
    return all(one[name].tobytes() == several[name].tobytes() for name in one)


def _time_runs(model: Model, golden: list[Tensors], options: Any, alone: bool = False) -> float:
    """Return the seconds of the fastest run of one golden input."""
    seconds = []
    for inputs in islice(cycle(golden), RUNS):
        started = time.perf_counter()
        model.run(inputs, (), alone, options)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
