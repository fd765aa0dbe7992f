"""The resources of a server match docs/how-to/sizing.md."""

from __future__ import annotations

import re
import threading
from collections import Counter
from pathlib import Path

import pytest

from docs.tables.server import count_threads
from evalmode.errors import MessagesFull
from evalmode.limits import Limits
from evalmode.runtime.model import ImageClassifier
from serving.services.classifier import Classifier
from serving.services.inference import Inference
from serving.services.models import Models
from serving.services.source import Source
from serving.services.statistics import Statistics
from serving.transports.messages import MIN_HELD_BYTES, Messages
from tests.serving.conftest import Direct, listen, make_executor

SIZING = Path(__file__).parents[3] / "docs" / "how-to" / "sizing.md"


def test_a_server_starts_the_threads_of_the_table(model: ImageClassifier) -> None:
    slots, before = 2, set(threading.enumerate())
    executor = make_executor(slots)
    served, statistics = Models({model.name: (model,)}, Source(Path())), Statistics()
    direct = Direct(Classifier(served, Limits(), executor.decodes), Inference(executor, statistics))
    server = listen(direct)
    names = [thread.name for thread in threading.enumerate() if thread not in before]
    server.drain(0)
    wanted = count_threads(slots)
    started = Counter(name if name in wanted else name.rpartition("-")[0] for name in names)
    assert {name: started[name] for name in wanted} == wanted


def test_the_number_of_largest_messages_in_memory_is_that_of_the_table() -> None:
    (count,) = re.findall(r"\| messages of requests in flight \| (\d+) x `--max-request-bytes`", SIZING.read_text())
    largest = bytes(MIN_HELD_BYTES)
    messages = Messages(len(largest))
    for _ in range(int(count)):
        messages.hold(largest)
    with pytest.raises(MessagesFull):
        messages.hold(b"\0")
