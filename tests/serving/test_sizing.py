"""What docs/operating.md says a server needs is what it takes."""

from __future__ import annotations

import re
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from docs.tables import count_threads
from serving.batching import Batcher
from serving.errors import MessagesFull
from serving.limits import Limits
from serving.model import Model
from serving.transports.messages import Messages
from tests.serving.conftest import classify_by, listen

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"


def test_a_server_starts_the_threads_of_the_table(model: Model) -> None:
    limits = Limits(max_queue=3, max_streams=5, max_watches=7)
    batcher = Batcher(2, limits)
    before = set(threading.enumerate())
    server = listen(classify_by(model, batcher=batcher, limits=limits), batcher, limits)
    names = [thread.name.rpartition("-")[0] for thread in threading.enumerate() if thread not in before]
    server.drain(0)
    wanted = count_threads(2, limits)
    assert Counter(name for name in names if name in wanted) == wanted


def test_as_many_of_the_largest_messages_are_held_as_the_table_says() -> None:
    (count,) = re.findall(r"\| messages of requests in flight \| (\d+) x `--max-request-bytes`", OPERATING.read_text())
    messages, largest = Messages(100, 1), bytes(100)
    with ExitStack() as held:
        for _ in range(int(count)):
            held.enter_context(messages.read(largest, bytes))
        with pytest.raises(MessagesFull):
            held.enter_context(messages.read(b"\0", bytes))
