"""Changes of files are detected, and the polling thread ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from unittest.mock import patch

import pytest

from serving.watching import Poller, WatchedFiles
from tests.serving.conftest import wait_until


def test_a_change_is_reported_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    watched = WatchedFiles(one, other)
    assert not watched.changed()
    one.write_text("more than before")
    assert watched.changed()
    assert not watched.changed()
    other.write_text("a file that did not exist")
    assert watched.changed()
    other.unlink()
    assert watched.changed()
    assert not watched.changed()


def test_a_file_that_replaces_another_of_the_same_size_and_time_is_a_change(tmp_path: Path) -> None:
    path, new = tmp_path / "file", tmp_path / "new"
    for one in (path, new):
        one.write_text("same size")
        os.utime(one, ns=(0, 0))
    watched = WatchedFiles(path)
    new.replace(path)
    assert watched.changed()


def test_polling_ends_with_close() -> None:
    polled = threading.Event()
    with patch("serving.watching.POLL_S", 0.001):
        poller = Poller("poller-of-a-test", polled.set)
        wait_until(polled.is_set)
        poller.close()
        assert not any(one.name.startswith("poller-of-a-test") for one in threading.enumerate())


def test_polling_continues_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def poll() -> None:
        calls.append(1)
        raise OSError("stale file handle")

    with patch("serving.watching.POLL_S", 0.001):
        poller = Poller("poller-of-a-test", poll)
        wait_until(lambda: len(calls) > 1)
        poller.close()
    assert "stale file handle" in caplog.text


def test_a_call_that_does_not_end_delays_close_for_a_limited_time() -> None:
    polling, end = threading.Event(), threading.Event()

    def poll() -> None:
        polling.set()
        end.wait()

    with patch("serving.watching.POLL_S", 0.001), patch("serving.watching.JOIN_S", 0.01):
        poller = Poller("poller-of-a-test", poll)
        wait_until(polling.is_set)
        poller.close()
    assert any(one.name.startswith("poller-of-a-test") for one in threading.enumerate())
    end.set()
