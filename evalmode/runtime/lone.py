"""Requests that are alone: while no other request is in flight, a network may run on several threads."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from evalmode.artifact.tensors import Tensors
from evalmode.runtime.model import Model
from evalmode.runtime.session import limit_runs, open_cpu_session

log = logging.getLogger(__name__)

MIN_RUN_S = 1e-3  # networks that run faster on one thread gain less than waking the other threads costs
MAX_SHARE = 0.8  # of the time on one thread; a session that gains less is not worth its memory
RUNS = 8  # of each session; the fastest counts, since other processes slow some of them down


def add_lone(model: Model, graph: bytes, threads: int, replay_s: float = 0.0) -> Model:
    """Add a session with several threads to a model, if that pays and gives the same bits.

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
    golden = certificate.inputs
    with limit_runs(replay_s) as options:
        if _time_run(model, golden, options) < MIN_RUN_S:
            return model
        wide = replace(model, lone=open_cpu_session(graph, threads))
        if not all(_give_same_bits(wide, inputs, options) for inputs in _split(golden)):
            log.info("%r: %s threads give other bits than one: requests that are alone run on one", model, threads)
            return model
        one, several = (_time_run(wide, golden, options, alone) for alone in (False, True))
    if several > MAX_SHARE * one:
        log.info(
            "%r: %s threads take %.1f ms, one takes %.1f: requests that are alone run on one",
            model,
            threads,
            several * 1e3,
            one * 1e3,
        )
        return model
    log.info(
        "%r: a request that is alone runs on %s threads in %.1f ms instead of %.1f", model, threads, several * 1e3, one * 1e3
    )
    return wide


def _split(golden: Tensors) -> list[Tensors]:
    rows = range(len(next(iter(golden.values()))))
    return [{name: array[row : row + 1] for name, array in golden.items()} for row in rows]


def _give_same_bits(model: Model, inputs: Tensors, options: Any) -> bool:
    """Whether both sessions give the same bits."""
    one, several = (model.run(inputs, model.optional.names, alone, options) for alone in (False, True))
    return all(one[name].tobytes() == several[name].tobytes() for name in one)


def _time_run(model: Model, golden: Tensors, options: Any, alone: bool = False) -> float:
    """Return the seconds of the fastest run of one golden input."""
    seconds = []
    for inputs in islice(cycle(_split(golden)), RUNS):
        started = time.perf_counter()
        model.run(inputs, (), alone, options)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
