"""Threads that all run before the first call: nothing starts one later, and a start that fails says so in a line."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from queue import SimpleQueue
from unittest.mock import patch

import pytest

from serving.errors import ThreadsUnavailable
from serving.transports.threads import Lane, Threads
from tests.serving.conftest import WAIT_S, wait_until


def running(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]


def test_all_are_started_at_once_and_none_later() -> None:
    threads = Threads(5, "early")
    assert len(running("early")) == 5
    done: SimpleQueue[str] = SimpleQueue()
    with patch("threading.Thread.start", side_effect=AssertionError("started late")):
        for _ in range(20):
            threads.submit(lambda: done.put(threading.current_thread().name))
    assert {done.get(timeout=WAIT_S).rpartition("-")[0] for _ in range(20)} == {"early"}
    threads.end()
    wait_until(lambda: not running("early"))


def test_they_run_calls_at_the_same_time() -> None:
    threads, together = Threads(3, "together"), threading.Barrier(3)
    done: SimpleQueue[int] = SimpleQueue()
    for _ in range(3):
        threads.submit(lambda: done.put(together.wait(WAIT_S)))
    assert sorted(done.get(timeout=WAIT_S) for _ in range(3)) == [0, 1, 2]
    threads.end()


def test_one_that_cannot_be_started_is_an_error_of_one_line_and_the_others_end() -> None:
    start, left = threading.Thread.start, [3]

    def start_three(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    with (
        patch("threading.Thread.start", start_three),
        pytest.raises(ThreadsUnavailable, match=r"^10 scarce threads are needed and 3 could be started") as caught,
    ):
        Threads(10, "scarce")
    assert "\n" not in str(caught.value)
    assert "--max-queue" in str(caught.value)
    wait_until(lambda: not running("scarce"))


@pytest.mark.parametrize("count", [0, 2, 40, 700, 900])
def test_a_server_that_gets_too_few_does_not_start_and_says_so_in_a_line(colours: Path, count: int) -> None:
    code = (
        "import sys, threading, _thread\n"
        f"left, start = [{count}], _thread.start_new_thread\n"
        "def limited(*arguments):\n"
        "    left[0] -= 1\n"
        '    if left[0] < 0: raise RuntimeError("can\'t start new thread")\n'
        "    return start(*arguments)\n"
        "threading._start_new_thread = limited\n"
        "from serving.commands.main import main\n"
        f"sys.argv = ['evalmode', 'serve', '--repository', {str(colours)!r}, '--port', '0', '--metrics-port', '0']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 2, done.stderr
    assert "can't start new thread" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_handler_that_fails_is_logged_and_its_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    threads, done = Threads(1, "fails"), threading.Event()

    def fail() -> None:
        raise ValueError("of the handler")

    with caplog.at_level(logging.ERROR):
        threads.submit(fail)
        threads.submit(done.set)
        assert done.wait(WAIT_S)
    assert "of the handler" in caplog.text
    threads.end()


def test_what_was_run_is_not_kept() -> None:
    class Request:
        """A call's message."""

    threads, request = Threads(1, "keeps"), Request()
    kept = weakref.ref(request)
    threads.submit(lambda one: None, request)
    del request

    def is_gone() -> bool:
        gc.collect()
        return kept() is None

    wait_until(is_gone)
    threads.end()


def test_a_right_to_a_thread_is_one_thread() -> None:
    lane, freed = Lane(3, "rights"), []
    lane.on_free = lambda: freed.append(lane.taken)
    assert [lane.take() for _ in range(4)] == [True, True, True, False]
    assert lane.taken == 3
    assert lane.is_scarce(0)
    lane.give_back()
    assert freed == [2]
    assert (lane.is_scarce(0), lane.is_scarce(1)) == (False, True)
    assert lane.take()
    lane.threads.end()
