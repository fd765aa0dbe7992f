"""Threads are started before the first call and never later; a failed start is an error of one line."""

import gc
import logging
import subprocess
import sys
import threading
import weakref
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from unittest.mock import patch

import pytest

from docs.tables.server import count_threads
from evalmode.errors import ThreadsUnavailable
from evalmode.runtime.cpus import count_cpus
from serving.threads import Threads, start_threads
from tests.serving.conftest import WAIT_S, wait_until


def running(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]


def test_all_threads_are_started_at_once_and_none_later() -> None:
    threads = Threads(5, "early")
    assert len(running("early")) == 5
    done: SimpleQueue[str] = SimpleQueue()
    with patch("threading.Thread.start", side_effect=AssertionError("started late")):
        for _ in range(20):
            threads.call(lambda: done.put(threading.current_thread().name))
    assert {done.get(timeout=WAIT_S).rpartition("-")[0] for _ in range(20)} == {"early"}
    threads.close()
    wait_until(lambda: not running("early"))


def test_calls_run_at_the_same_time() -> None:
    threads, together = Threads(3, "together"), threading.Barrier(3)
    done: SimpleQueue[int] = SimpleQueue()
    for _ in range(3):
        threads.call(lambda: done.put(together.wait(WAIT_S)))
    assert sorted(done.get(timeout=WAIT_S) for _ in range(3)) == [0, 1, 2]
    threads.close()


def test_calls_that_were_queued_before_close_run_in_order() -> None:
    threads, may_continue = Threads(1, "last"), threading.Event()
    done: list[int] = []
    threads.call(lambda: may_continue.wait(WAIT_S))
    for number in range(5):
        threads.call(partial(done.append, number))
    threads.close()
    assert not done
    may_continue.set()
    wait_until(lambda: not running("last"))
    assert done == [0, 1, 2, 3, 4]


def test_threads_are_daemons() -> None:
    threads = Threads(2, "daemons")
    assert all(thread.daemon for thread in running("daemons"))
    threads.close()


def test_a_thread_that_cannot_be_started_is_an_error_of_one_line() -> None:
    start, left, end = threading.Thread.start, [3], threading.Event()

    def start_three(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    def wait_for_end() -> None:
        end.wait(WAIT_S)

    with (
        patch("threading.Thread.start", start_three),
        pytest.raises(ThreadsUnavailable, match=r"^10 scarce threads are needed and 3 could be started") as caught,
    ):
        start_threads(10, "scarce", wait_for_end)
    assert "\n" not in str(caught.value)
    assert "can't start new thread" in str(caught.value)
    assert "raise the limit on processes or memory" in str(caught.value)
    end.set()
    wait_until(lambda: not running("scarce"))


ANSWERING = sum(count_threads(count_cpus()).values())


# Other threads start before those that answer requests.
@pytest.mark.parametrize("count", [0, 2, 3, *range(ANSWERING // 2, ANSWERING + 1, 3)])
def test_a_server_with_too_few_threads_does_not_start_and_logs_one_line(colours: Path, count: int) -> None:
    code = (
        "import sys, threading, _thread\n"
        f"left, start = [{count}], _thread.start_new_thread\n"
        "def limited(*arguments):\n"
        "    left[0] -= 1\n"
        '    if left[0] < 0: raise RuntimeError("can\'t start new thread")\n'
        "    return start(*arguments)\n"
        "threading._start_new_thread = limited\n"
        "from evalmode.cli.main import main\n"
        f"sys.argv = ['evalmode', 'serve', '--repository', {str(colours)!r}, '--port', '0', '--metrics-port', '0']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 2, done.stderr
    assert "can't start new thread" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_call_that_fails_is_logged_and_its_thread_continues(caplog: pytest.LogCaptureFixture) -> None:
    threads, done = Threads(1, "fails"), threading.Event()

    def fail() -> None:
        raise ValueError("of the handler")

    with caplog.at_level(logging.ERROR):
        threads.call(fail)
        threads.call(done.set)
        assert done.wait(WAIT_S)
    assert "of the handler" in caplog.text
    threads.close()


def test_a_call_that_has_run_is_not_referenced() -> None:
    class Request:
        """A call's message."""

        def answer(self) -> None:
            pass

    threads, request = Threads(1, "keeps"), Request()
    kept = weakref.ref(request)
    gc.disable()
    try:
        threads.call(request.answer)
        del request
        wait_until(lambda: kept() is None)
    finally:
        gc.enable()
    threads.close()
