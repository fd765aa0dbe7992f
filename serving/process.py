"""The process of ``evalmode serve``: its signals, its memory, its output and its exit code."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from serving.config import ServeConfig
from serving.engine.memory import return_large_blocks
from serving.logs import shut_down_log
from serving.threads import start_threads
from serving.trials import Trials

log = logging.getLogger("serving")

IMPORTED = time.perf_counter()
CLOSE_S = 0.9  # after the grace period, for clients to close their connections


def run(config: ServeConfig, announce: Callable[[str], object]) -> NoReturn:
    """Serve a model repository until a signal arrives, then drain and exit.

    The process exits with 0 if every request was answered, and with 1 if requests were cut.

    Args:
        config: The options of the server.
        announce: Called once with the addresses, two lines, when the server is ready.

    Raises:
        EvalmodeError: The server cannot start.
    """
    config.check_addresses()
    config.warn_of_plaintext()
    trials = Trials(config.limits)
    stop = listen_for_signals(trials.close)
    return_large_blocks()
    trials.prepare()  # the child process imports its modules while this process imports the following
    from serving.server import Server

    log_phase("imports")
    server = Server(config, trials, stop)
    server.load()
    if stop.is_set():
        server.close()
        exit_now(0)
    log_phase("models loaded, checked and replayed")
    server.listen()
    gc.freeze()  # a full collection would otherwise visit everything that is loaded, and delay every call
    server.start()
    log_phase("listening")
    announce(server.describe())
    stop.wait()
    limits = config.limits
    exit_within(limits.lame_duck + limits.grace + CLOSE_S, trials.close)
    drained = server.drain()
    drained.log(limits.grace)
    trials.close()  # a child process that checks a new version would outlive this process
    exit_now(1 if drained.cut else 0)


def listen_for_signals(before_exit: Callable[[], object] = lambda: None) -> threading.Event:
    """Return an event that the first SIGTERM, SIGINT or SIGHUP sets. The second ends the process with exit code 1.

    A thread waits for the signals. A Python signal handler would run inside whatever the main thread is doing, for
    example in ``Event.wait``, and deadlock on a lock that the main thread holds. An ignored SIGHUP, as under nohup,
    stays ignored.

    Args:
        before_exit: Called before the second signal ends the process. It must not block.

    Raises:
        ThreadsUnavailable: The system cannot start the thread.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        os.read(reader, 1)
        stop.set()
        os.read(reader, 1)
        before_exit()
        os._exit(1)  # at once: anything else could block

    start_threads(1, "signals", listen)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)  # Python writes the number to the pipe
    return stop


def exit_now(code: int) -> NoReturn:
    """Exit without waiting for other threads, for which the interpreter would wait.

    Args:
        code: The exit code.
    """
    shut_down_log()
    sys.stdout.flush()
    os._exit(code)


def exit_within(seconds: float, before_exit: Callable[[], object] = lambda: None) -> None:
    """Exit with code 1 after some seconds, even if every other thread is blocked.

    Args:
        seconds: The delay.
        before_exit: Called before. It must not block.
    """

    def leave() -> None:
        before_exit()
        os._exit(1)

    backstop = threading.Timer(seconds, leave)
    backstop.daemon = True
    backstop.start()


def log_phase(name: str) -> None:
    """Log at debug level that a phase of the start has ended, with the time since this module was imported.

    Args:
        name: The phase.
    """
    log.debug("%.3f s: %s", time.perf_counter() - IMPORTED, name)
