"""ONNX Runtime sessions: the only module that imports onnxruntime, apart from the quantizer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Official builds of onnxruntime collect telemetry from their import on, unless this is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from evalmode.errors import LoadLimitExceeded

__all__ = [
    "ORT_VERSION",
    "limit_runs",
    "make_session_options",
    "open_cpu_session",
    "open_lone_session",
    "ort",
    "shrink_arena",
    "silence_run",
]

ORT_VERSION: str = ort.__version__  # of either distribution, onnxruntime or onnxruntime-gpu


def make_session_options(threads: int, spin: bool = False) -> ort.SessionOptions:
    """Make the session options that all providers share.

    Args:
        threads: Threads that one inference may use; 0 for as many as there are cores.
        spin: Whether the threads wait for each other in a loop during a run, which is faster if no core is busy.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # after a run: an idle server uses no CPU
    # Without this entry the bytes choose the format, and ORT's own has not been checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Initializers in other files would be looked for in a folder; this is not one.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def open_lone_session(graph: bytes, threads: int) -> ort.InferenceSession:
    """Open a session on the CPU for runs that have the cores to themselves.

    Its threads wait for each other in a loop, which saves waking them some fifty times a run.

    Args:
        graph: The bytes of an ONNX file.
        threads: Threads that one inference uses.

    Raises:
        Exception: onnxruntime cannot load the graph; its exceptions have no common base class.
    """
    options = make_session_options(threads, spin=True)
    options.add_session_config_entry("session.dynamic_block_base", "4")  # smaller shares, in case a core is busy
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def open_cpu_session(graph: bytes, threads: int = 1, optimise: bool = True, arena: bool = True) -> ort.InferenceSession:
    """Open a session on the CPU.

    Args:
        graph: The bytes of an ONNX file.
        threads: Threads that one inference may use; 0 for as many as there are cores.
        optimise: Whether onnxruntime may optimise the graph; if not, it is run node by node.
        arena: Whether memory is kept between runs: faster, but takes up to twice as much address space.

    Raises:
        Exception: onnxruntime cannot load the graph; its exceptions have no common base class.
    """
    options = make_session_options(threads)
    options.enable_cpu_mem_arena = arena
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def shrink_arena() -> ort.RunOptions:
    """Make options for a run of a session on the CPU that returns the memory that larger runs left in its arena."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def silence_run() -> ort.RunOptions:
    """Make options for a run that may fail, without a line of onnxruntime's on standard error."""
    options = ort.RunOptions()
    options.log_severity_level = 4  # fatal errors
    return options


@contextmanager
def limit_runs(seconds: float) -> Iterator[Any]:
    """Terminate runs that take longer than a time limit.

    Args:
        seconds: The limit for all runs inside the block together; 0 for none.

    Yields:
        Run options to pass to each run.

    Raises:
        LoadLimitExceeded: The limit was exceeded.
    """
    options = ort.RunOptions()
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield options
    except Exception as error:  # onnxruntime's own exceptions have no common base class
        if options.terminate:
            raise LoadLimitExceeded(f"replaying it takes more than {seconds:g} s") from error
        raise
    finally:
        timer.cancel()
