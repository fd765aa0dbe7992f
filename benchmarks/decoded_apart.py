"""Measures the decoding of one image: seconds, peak memory, and how long other threads wait for the interpreter lock.

Each image is decoded in a process of its own, forked from one that has imported everything.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from serving.engine.memory import return_large_blocks

BEAT_S = 0.001


class Taken(NamedTuple):
    """The cost of one decode.

    Attributes:
        seconds: Wall clock time.
        peak_bytes: Peak of the resident memory above its value before.
        lock_s: The longest time that another thread waited for the interpreter lock.
        answer: "ok", or the name of the error.
    """

    seconds: float
    peak_bytes: int
    lock_s: float
    answer: str


def measure_apart(decode: Callable[[], object], warm_up: Callable[[], object]) -> Taken:
    """Measure a call in a forked process.

    Args:
        decode: The call to measure.
        warm_up: A call made before, so that one-time allocations do not count.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, json.dumps(_measure(decode, warm_up)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return Taken(*json.loads(text))


def _measure(decode: Callable[[], object], warm_up: Callable[[], object]) -> Taken:
    return_large_blocks()
    warm_up()
    longest_s, done = 0.0, False

    def beat() -> None:
        nonlocal longest_s
        last = time.perf_counter()
        while not done:
            time.sleep(BEAT_S)
            now = time.perf_counter()
            longest_s, last = max(longest_s, now - last - BEAT_S), now

    heart = threading.Thread(target=beat)
    heart.start()
    time.sleep(10 * BEAT_S)
    longest_s = 0.0
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
    before = _read_status("VmRSS")
    started = time.perf_counter()
    try:
        decode()
        answer = "ok"
    except Exception as error:
        answer = type(error).__name__
    seconds = time.perf_counter() - started
    done = True
    heart.join()
    return Taken(seconds, _read_status("VmHWM") - before, longest_s, answer)


def _read_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024
