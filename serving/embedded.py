"""Servers that Python code starts: in a script, a test or a notebook."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

from evalmode.errors import UsageError
from serving.config import ServeConfig
from serving.server import Server
from serving.trials import Trials

log = logging.getLogger("serving")

# Defaults that differ from those of the command: free ports, and no delay at the end.
IN_PROCESS_DEFAULTS = {"port": 0, "metrics_port": 0, "lame_duck": 0}


def serve(repository: str | PathLike[str], **options: Any) -> None:
    """Serve a model repository over gRPC until the process is interrupted.

    It blocks until Ctrl-C or, in the main thread, SIGTERM. Then it drains like the command ``evalmode serve``: the
    health status becomes NOT_SERVING, requests are answered for ``lame_duck`` more seconds, and requests in flight for
    up to ``grace`` seconds. A second Ctrl-C raises KeyboardInterrupt at once. When the server is ready, the models and
    their ports are printed on standard output, as the command prints them.

    Args:
        repository: The model repository, a folder with NAME/VERSION/model.onnx; or any other layout of
            ``evalmode.artifact.recognition.recognise``, such as a file.
        options: The options of ``evalmode serve``, with underscores: ``port=8001``, ``max_queue=64``. There are no
            options for the log: the records go to the logger ``serving`` and its children. Several ``workers`` need
            the command.

    Raises:
        UsageError: An option is invalid, or the server cannot start.

    Example:
        ``evalmode.serve("models", port=8001)``
    """
    with _terminating_by_interrupt():
        try:
            server = _start({**options, "repository": repository})
        except KeyboardInterrupt:  # nothing to drain
            return
        try:
            print(server.describe(), flush=True)
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            server.stop()


def start_server(repository: str | PathLike[str], **options: Any) -> Server:
    """Start a server in this process, for tests and notebooks.

    It answers requests in its own threads until ``stop``, or until the ``with`` block ends. It handles no signals and
    does not configure logging. A process may run several servers.

    Args:
        repository: The model repository, a folder with NAME/VERSION/model.onnx; or any other layout of
            ``evalmode.artifact.recognition.recognise``, such as a file.
        options: See ``serve``. By default ``port`` and ``metrics_port`` are 0, a free port, and ``lame_duck`` is 0.

    Returns:
        The running server.

    Raises:
        UsageError: An option is invalid, or the server cannot start.

    Example:
        .. code-block:: python

            with evalmode.start_server("models") as server, evalmode.Client(server.address) as client:
                print(client.predict("cat.jpg").label)
    """
    return _start({**IN_PROCESS_DEFAULTS, **options, "repository": repository})


def _start(options: dict[str, Any]) -> Server:
    """Start a server, or release everything if it cannot start."""
    config = ServeConfig.from_options(options)
    if config.worker_count > 1:
        raise UsageError(f"workers {config.workers}: a Python process is one worker; use the command 'evalmode serve'")
    config.check_addresses()
    config.warn_of_plaintext()
    server = Server(config, Trials(config.limits), threading.Event())
    try:
        server.load()
        server.listen()
        server.start()
    except BaseException:
        server.close()
        raise
    return server


@contextmanager
def _terminating_by_interrupt() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt. Does nothing outside the main thread, where handlers cannot be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
