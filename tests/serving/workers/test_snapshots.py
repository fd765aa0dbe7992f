"""The figures of several workers are those that one process would have counted, and no counter ever decreases."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evalmode.errors import QueueFull
from serving.engine.scheduler import Load
from serving.services.drift import WINDOW
from serving.services.figures import UNKNOWN, Counts, Figures, Version, VersionState, Workers
from serving.services.statistics import Statistics
from serving.workers.snapshots import WorkerFigures, decode_figures, encode_figures
from tests.serving.services.test_figures import FACTS, ONE, Samples, draw_images, render

TWO: Version = ("network", "2")
ALL = Workers(configured=3, ready=3, restarts=0)
LABELS = ("a", "b", "c", "\ud800")
MANIFEST = SimpleNamespace(properties={}, image_inputs={}, predict_labels=lambda outputs: [LABELS[outputs["label"]]])
MODEL: Any = SimpleNamespace(name="network", version="1", manifest=MANIFEST)


def answer(statistics: Statistics, label: int) -> None:
    """Count a request for one input that took 70 us."""
    outputs: Any = {"label": label}
    statistics.count_answer(MODEL, {"x": np.zeros((1, 1))}, outputs, 10, 20, 40)
    statistics.count_run(MODEL, 1, 40)


def take(statistics: Statistics, *versions: Version) -> Figures:
    """The figures of a worker that has loaded some versions, by default the only one."""
    versions = versions or (ONE,)
    states = {version: VersionState(ready=True, failed=False) for version in versions}
    models = dict.fromkeys(versions, FACTS)
    return Figures(Load(1, 1, 2, 3), states, models, statistics.copy(), statistics.refused.copy(), statistics.answered)


def keep(counts: dict[Version, Counts], *versions: Version) -> bytes:
    """The snapshot of a worker that has counted something and loaded some versions."""
    states = {version: VersionState(ready=True, failed=False) for version in versions}
    return encode_figures(Figures(Load(1, 0, 0, 0), states, dict.fromkeys(versions, FACTS), counts, Counter(), 0))


def is_counter(name: str) -> bool:
    return name.endswith(("_total", "_bucket", "_sum", "_count"))


def counters_of(samples: Samples) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every counter, and every bucket and sum of a histogram."""
    return {(name, key): value for name, one in samples.items() if is_counter(name) for key, value in one.items()}


def fill() -> Statistics:
    """Statistics with everything that can be counted."""
    statistics = Statistics()
    for label in (3, 1, 1, 0):
        answer(statistics, label)
    statistics.count_run(MODEL, 8, 100)
    statistics.count_refusal(MODEL, 0.5, QueueFull("full"))
    statistics.count_refusal(None, 0.5, ZeroDivisionError())
    statistics.count_early_refusal(QueueFull("full"))
    statistics.counts[ONE].recent.extend(draw_images(WINDOW, mean=2.5))
    return statistics


def test_a_snapshot_holds_all_figures() -> None:
    figures = take(fill())
    snapshot = encode_figures(figures)
    decoded = decode_figures(snapshot)
    assert encode_figures(decoded) == snapshot
    assert render(decoded) == render(figures)
    assert decoded.answered == 4
    assert list(decoded.counts[ONE].labels) == ["\ud800", "b", "a"]


def remove(part: str, snapshot: bytes) -> bytes:
    fields = json.loads(snapshot)
    del fields[part]
    return json.dumps(fields).encode()


def cut_buckets(snapshot: bytes) -> bytes:
    fields = json.loads(snapshot)
    del fields["counts"][0][2]["runs"][0][2][0]
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda snapshot: b"",
        lambda snapshot: b"\xff",
        lambda snapshot: b"[]",
        lambda snapshot: snapshot[:-1],
        lambda snapshot: remove("refused", snapshot),
        lambda snapshot: snapshot.replace(b'"digest"', b'"other"'),
        lambda snapshot: snapshot.replace(b'"labels"', b'"other"'),
        cut_buckets,
    ],
)
def test_a_damaged_snapshot_is_refused_and_changes_nothing(damage: Any) -> None:
    server, snapshot = WorkerFigures(1), encode_figures(take(fill()))
    server.receive(0, snapshot)
    before = render(server.merge(ALL))
    with pytest.raises(ValueError):  # noqa: PT011  the message is that of the JSON decoder, too
        server.receive(0, damage(snapshot))
    assert render(server.merge(ALL)) == before


def test_the_figures_of_two_workers_are_added() -> None:
    server, merged = WorkerFigures(2), fill()
    one, other = fill(), fill()
    for worker, statistics in enumerate((one, other)):
        server.receive(worker, encode_figures(take(statistics)))
    for label in (3, 1, 1, 0):
        answer(merged, label)
    merged.count_run(MODEL, 8, 100)
    merged.count_refusal(MODEL, 0.5, QueueFull("full"))
    merged.count_refusal(None, 0.5, ZeroDivisionError())
    merged.count_early_refusal(QueueFull("full"))
    figures = server.merge(ALL)
    assert counters_of(render(figures)) == counters_of(render(take(merged))) | {
        ("evalmode_worker_restarts_total", ()): 0
    }
    assert figures.load == Load(1, 2, 4, 6)  # the slots are shared
    assert figures.answered == 8
    assert figures.counts[ONE].last_ms == other.counts[ONE].last_ms
    assert figures.counts[UNKNOWN].durations["fail"].count == 2


EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", "c", "refuse", "snapshot", "kill", "reload"])), max_size=40
)


@settings(max_examples=50, deadline=None)
@given(EVENTS)
@example([(0, "refuse"), (0, "snapshot"), (1, "snapshot"), (0, "kill")])
@example([(0, "a"), (0, "a"), (0, "snapshot"), (0, "reload"), (0, "a"), (0, "snapshot")])
def test_no_counter_decreases_whatever_ends(events: list[tuple[int, str]]) -> None:
    """Neither those of labels, of which only two have a counter of their own."""
    server, workers = WorkerFigures(3), [Statistics() for _ in range(3)]
    sent, known, last = [0, 0, 0], 0, counters_of({})
    for worker, event in events:
        match event:
            case "refuse":
                workers[worker].count_early_refusal(QueueFull("full"))
                workers[worker].count_refusal(None, 0.5, QueueFull("full"))
            case "snapshot":
                server.receive(worker, encode_figures(take(workers[worker])))
                known += workers[worker].answered - sent[worker]
                sent[worker] = workers[worker].answered
            case "kill":  # what it has counted since its snapshot is lost
                server.end(worker)
                workers[worker], sent[worker] = Statistics(), 0
            case "reload":  # the worker unloads the version and loads it again
                workers[worker].keep([])
            case label:
                answer(workers[worker], LABELS.index(label))
        if event not in ("snapshot", "kill"):
            continue  # the supervisor cannot know of it
        figures = server.merge(ALL)
        now = counters_of(render(figures, labels=2))
        assert all(now[key] >= value for key, value in last.items())
        assert figures.answered == known
        last = now


def test_labels_are_in_the_order_in_which_the_server_has_seen_them() -> None:
    server = WorkerFigures(2)
    server.receive(1, keep({ONE: Counts(labels=Counter(b=1))}, ONE))
    server.merge(ALL)
    server.receive(0, keep({ONE: Counts(labels=Counter(c=2, b=3))}, ONE))
    assert server.merge(ALL).counts[ONE].labels == Counter(b=4, c=2)
    server.end(1)
    server.end(0)
    assert list(server.merge(ALL).counts[ONE].labels.items()) == [("b", 4), ("c", 2)]


def test_the_counters_of_a_version_end_once_no_worker_has_it_loaded() -> None:
    server, old = WorkerFigures(2), {ONE: Counts(inputs=5, labels=Counter(b=5, a=5))}
    for worker in range(2):
        server.receive(worker, keep(old, ONE))
    server.receive(0, keep({TWO: Counts(inputs=1)}, TWO))
    figures = server.merge(ALL)
    assert {version: counts.inputs for version, counts in figures.counts.items()} == {ONE: 10, TWO: 1}
    assert {version for version, state in figures.versions.items() if state.ready} == set()  # not in every worker
    server.receive(1, keep({TWO: Counts(inputs=2)}, TWO))
    figures = server.merge(ALL)
    assert {version: counts.inputs for version, counts in figures.counts.items()} == {TWO: 3}
    assert {version for version, state in figures.versions.items() if state.ready} == {TWO}
    server.receive(0, keep({ONE: Counts(inputs=4, labels=Counter(a=4))}, ONE))
    assert server.merge(ALL).counts[ONE].labels == Counter(a=4)


@pytest.mark.parametrize(
    ("states", "merged"),
    [
        ([(True, False), (True, False)], (True, False)),
        ([(True, False), (False, True)], (False, True)),
        ([(True, False), None], (False, False)),
    ],
)
def test_a_version_is_ready_in_all_workers_and_failed_in_any(
    states: list[tuple[bool, bool] | None], merged: tuple[bool, bool]
) -> None:
    server = WorkerFigures(3)  # the third has sent nothing yet
    for worker, state in enumerate(states):
        versions = {ONE: VersionState(*state)} if state else {}
        server.receive(worker, encode_figures(Figures(Load(1, 0, 0, 0), versions, {}, {}, Counter(), 0)))
    assert server.merge(ALL).versions == {ONE: merged}


def test_without_a_running_worker_nothing_is_ready_and_counters_stay() -> None:
    server = WorkerFigures(1)
    server.receive(0, encode_figures(take(fill())))
    before = counters_of(render(server.merge(ALL)))
    server.end(0)
    figures = server.merge(ALL)
    assert counters_of(render(figures)) == before
    assert figures.versions == {ONE: (False, False)}
    assert figures.load == Load(0, 0, 0, 0)


class TestDrift:
    def test_follows_from_the_last_images_of_the_whole_server(self) -> None:
        server, old, new = WorkerFigures(2), Counts(), Counts()
        old.recent.extend(draw_images(WINDOW, 0))
        new.recent.extend(draw_images(150, 1000))
        server.receive(0, keep({ONE: new}, ONE))
        server.receive(1, keep({ONE: old}, ONE))
        recent = [image.ns for image in server.merge(ALL).counts[ONE].recent]
        assert recent == [*range(150, 200), *range(1000, 1150)]

    def test_a_snapshot_without_images_keeps_those_before(self) -> None:
        server, counts = WorkerFigures(1), Counts()
        counts.recent.extend(draw_images(120))
        for _ in range(3):
            server.receive(0, keep({ONE: counts}, ONE))
            assert len(server.merge(ALL).counts[ONE].recent) == 120
            counts = Counts(counts.began_ns, inputs=7)
        assert server.merge(ALL).counts[ONE].inputs == 7
