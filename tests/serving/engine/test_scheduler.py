"""The rules of the scheduler, each in a few steps. Time is an argument, and no test waits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from evalmode.errors import DeadlineExpired, ImageNeedsTooMuchMemory, QueueFull, RequestCancelled
from serving.engine.decodes import MIB, PACE_BYTES_PER_S, SMALL_BYTES, Decodes
from serving.engine.lane import TRY_S, TURN_S
from serving.engine.pace import MARGIN
from serving.engine.scheduler import BATCH_S, SHARE_S, Load
from serving.engine.shared_limits import Alone, SharedSlots
from tests.serving.engine.bench import LARGE_MIB, Bench, Network

CALM = Network()  # of unknown duration


def make_busy(slots: int = 1, **options: int) -> Bench:
    """A scheduler whose slots run ``"busy0"``, ``"busy1"``, ..."""
    bench = Bench(slots, **options)
    for slot in range(slots):
        bench.run(f"busy{slot}", Network())
    assert len(bench.start()) == slots
    return bench


class TestAdmission:
    def test_is_refused_if_slots_and_queue_are_full(self) -> None:
        bench = Bench(slots=2, max_queue=1)
        for name in "abc":
            bench.admit(name)
        for refused in (lambda: bench.admit("d"), lambda: bench.scheduler.check(math.inf, bench.now)):
            with pytest.raises(QueueFull, match="3 requests are in flight") as caught:
                refused()
            assert caught.value.facts == {"limit_requests": "3"}
        bench.leave("b")
        bench.admit("d")
        assert bench.scheduler.load.in_flight == 3

    def test_counts_the_requests_of_other_processes(self) -> None:
        bench = Bench(slots=1, max_queue=1)
        bench.in_flight.others = 1
        assert not bench.scheduler.is_busy()
        bench.admit("a")
        with pytest.raises(QueueFull):
            bench.admit("b")
        bench.leave("a")
        bench.in_flight.others = 2
        assert bench.scheduler.is_busy()
        with pytest.raises(QueueFull):
            bench.admit("a")

    def test_may_have_to_wait_once_each_slot_has_a_request(self) -> None:
        bench = Bench(slots=2)
        busy = [bench.scheduler.is_busy()]
        for name in "abc":
            bench.admit(name)
            busy.append(bench.scheduler.is_busy())
        assert busy == [False, False, True, True]


def measure_pace(bench: Bench, model: Network, seconds: float) -> None:
    """Answer one request, alone, after a number of seconds."""
    bench.run("first", model)
    bench.start()
    bench.now += seconds
    bench.end("first")


def model_pace(bench: Bench, model: Network) -> float:
    """The time that a request for a model takes if it is alone."""
    return bench.scheduler._find_lane(model).pace.expect_s(0)


class TestPace:
    """A request that would be answered after its deadline is refused, unless a slot is free."""

    def test_is_checked_when_the_model_is_known(self) -> None:
        bench = Bench()
        measure_pace(bench, CALM, 1.0)
        bench.run("a", CALM, remaining_s=0.1)  # a slot is free
        expected_s = 2 * MARGIN
        with pytest.raises(QueueFull, match="longer than the deadline of this request"):
            bench.run("b", CALM, remaining_s=expected_s - 0.01)
        bench.leave("b")
        bench.run("c", CALM, remaining_s=expected_s)
        with pytest.raises(QueueFull):
            bench.decode("d", model=CALM, remaining_s=expected_s)  # with "c", it takes longer
        bench.run("e", CALM)
        bench.run("f", CALM, remaining_s=0)  # ends as expired
        bench.run("g", Network(), remaining_s=1e-6)  # of a model whose pace is unknown

    def test_is_checked_on_arrival_for_the_quickest_model_that_is_served(self) -> None:
        bench, slow = Bench(), Network()
        measure_pace(bench, CALM, 1.0)
        measure_pace(bench, slow, 10.0)
        bench.run("a", slow)

        def refuses(remaining_s: float) -> bool:
            try:
                bench.scheduler.check(bench.now + remaining_s, bench.now)
            except QueueFull:
                return True
            return False

        assert not refuses(0.01)  # the models are unknown
        bench.scheduler.serve([CALM, slow])
        assert refuses(MARGIN - 0.01)
        assert not refuses(MARGIN)
        assert not refuses(0)
        bench.scheduler.serve([slow])
        assert refuses(2 * 10 * MARGIN - 0.01)
        bench.leave("a")
        assert not refuses(0.01)  # a slot is free

    def test_counts_answers_by_the_number_of_requests_in_flight_before_them(self) -> None:
        bench, model = Bench(), Network()
        bench.run("a b", model)
        bench.start()
        bench.now += 4
        bench.scheduler.leave(bench.jobs["b"], True, bench.now)  # after 4 s, with one before it
        assert model_pace(bench, model) == pytest.approx(2 * MARGIN)

    def test_counts_requests_without_an_answer_that_took_longer_than_expected(self) -> None:
        bench, model = Bench(), Network()
        measure_pace(bench, model, 1.0)
        bench.run("a b", model)
        bench.leave("a")  # at once
        assert model_pace(bench, model) == pytest.approx(MARGIN)
        bench.now += 34
        bench.leave("b")  # 17 s each
        assert model_pace(bench, model) == pytest.approx(2 * MARGIN)

    def test_counts_requests_whose_model_is_unknown(self) -> None:
        bench = Bench()
        measure_pace(bench, CALM, 1.0)
        bench.scheduler.serve([CALM])
        bench.decode("a b")
        with pytest.raises(QueueFull, match="longer than the deadline of this request"):
            bench.decode("c", remaining_s=3 * MARGIN - 0.01)
        bench.decode("d", remaining_s=3 * MARGIN)

    def test_does_not_count_the_decode_of_a_large_image(self) -> None:
        bench, model = Bench(), Network()
        bench.decode("a", 20, model)
        bench.start()
        bench.now += 60
        bench.end("a", keep=True)
        bench.run("a", model)
        bench.start()
        bench.now += 1
        bench.end("a")
        assert model_pace(bench, model) == pytest.approx(MARGIN)

    def test_of_decodes_ends_those_that_would_be_late(self) -> None:
        bench = Bench()
        bench.decode("a", model=CALM)
        bench.start()
        bench.now += 2
        bench.end("a")
        bench.decode("b", model=CALM)
        bench.start()
        bench.decode("c", model=CALM, remaining_s=100)
        bench.now += 99
        bench.end("b")
        assert isinstance(bench.errors["c"], DeadlineExpired)


class TestFreeSlots:
    def test_run_each_request_at_once(self) -> None:
        bench = Bench(slots=3)
        for name, model in (("a", CALM), ("b", CALM), ("c", Network())):
            bench.run(name, model)
            assert bench.start() == [name]
        bench.run("d", CALM)
        bench.decode("e")
        assert bench.start() == []
        assert bench.end("b") == ["e"]
        assert bench.end("e") == ["d"]

    def test_are_shared_with_other_workers_which_have_at_least_one_each(self) -> None:
        bench = Bench(slots=3, max_batch=1)
        bench.counts["slots_busy"].others = 2
        bench.run("a b c", CALM)
        assert bench.start() == ["a"]
        assert (bench.counts["slots_busy"].mine, bench.scheduler.occupy()) == (1, False)
        bench.counts["slots_busy"].others = 1
        assert bench.start() == ["b"]
        bench.counts["slots_busy"].others = 3
        assert bench.end("a") == []
        assert bench.end("b") == ["c"]
        bench.end("c")
        assert bench.counts["slots_busy"].mine == 0

    def test_are_awaited_by_what_could_run_in_them(self) -> None:
        bench, limited = Bench(slots=2), Network(max_slots=1)
        awaited, large = (bench.counts[f"{name}_awaited"] for name in ("slots", "large_slots"))
        bench.run("a", limited)
        bench.start()
        bench.run("b", limited)
        bench.decode("c d", 20)
        bench.start()
        bench.run("e", CALM)
        assert bench.start() == ["e"]
        assert (awaited.mine, large.mine) == (0, 0)
        bench.run("f", CALM)
        bench.decode("g", 20)
        assert bench.start() == []
        assert (awaited.mine, large.mine) == (1, 1)
        assert (bench.end("e"), bench.end("c")) == (["f"], ["g"])
        assert (awaited.mine, large.mine) == (0, 0)

    def test_know_whether_a_request_is_alone(self) -> None:
        bench = Bench(slots=2)
        bench.run("a", CALM)
        bench.start()
        bench.run("b", CALM)
        bench.start()
        bench.end("a")
        bench.end("b")
        bench.in_flight.others = 1
        bench.run("c", CALM)
        bench.start()
        assert bench.alone == [True, False, False]

    def test_load(self) -> None:
        bench = make_busy()
        bench.run("a", CALM)
        bench.decode("b")
        bench.decode("c", 20)
        bench.admit("d")
        assert bench.scheduler.load == Load(slots=1, slots_busy=1, waiting=3, in_flight=5)
        bench.start()  # the large image has its own slot
        assert bench.scheduler.load == Load(slots=1, slots_busy=1, waiting=2, in_flight=5)
        bench.end("busy0")
        bench.end("b")
        bench.end("a")
        bench.leave("d")
        assert bench.scheduler.load == Load(slots=1, slots_busy=0, waiting=0, in_flight=1)


class TestBatch:
    def test_holds_the_runs_that_wait_in_order_of_arrival(self) -> None:
        bench = make_busy()
        bench.run("c a b", CALM)
        assert bench.start() == []
        assert bench.end("busy0") == ["c a b"]

    @pytest.mark.parametrize(("of_server", "of_model"), [(3, 64), (64, 3)])
    def test_is_limited_by_the_server_and_by_the_model(self, of_server: int, of_model: int) -> None:
        bench = make_busy(max_batch=of_server)
        bench.run("a b c d e f g", Network(max_batch=of_model))
        assert bench.end("busy0") == ["a b c"]
        assert bench.end("a b c") == ["d e f"]
        assert bench.end("d e f") == ["g"]

    def test_counts_inputs_and_leaves_out_what_does_not_fit(self) -> None:
        bench = make_busy(max_batch=4)
        for name, rows in {"a": 9, "b": 2, "c": 3, "d": 1, "e": 2, "f": 1, "g": 1}.items():
            bench.run(name, CALM, rows)
        assert bench.end("busy0") == ["a"]  # larger than a batch
        assert bench.end("a") == ["b d f"]
        assert bench.end("b d f") == ["c g"]  # in order of arrival
        assert bench.end("c g") == ["e"]

    def test_holds_one_kind_of_one_model(self) -> None:
        bench, other = make_busy(), Network()
        for name, model, kind in (("a", CALM, 1), ("b", other, 1), ("c", CALM, 2), ("d", CALM, 1), ("e", other, 1)):
            bench.run(name, model, kind=kind)
        assert bench.end("busy0") == ["a d"]
        assert bench.end("a d") == ["b e"]
        assert bench.end("b e") == ["c"]

    def test_is_limited_in_time(self) -> None:
        bench, quick, slow = make_busy(), Network(BATCH_S / 2), Network(10 * BATCH_S)
        bench.run("a b c d e", quick)
        assert bench.end("busy0") == ["a b"]
        bench.run("x y", slow)
        assert bench.end("a b") == ["x"]
        bench.withdraw("y")
        assert bench.end("x") == ["c d"]

    def test_is_shorter_if_another_slot_is_free(self) -> None:
        bench = Bench(slots=2)
        bench.run("a b c d e", Network(SHARE_S / 2))
        assert bench.start() == ["a b", "c d e"]
        limited = Bench(slots=2)
        limited.run("a b c", Network(SHARE_S / 2, max_slots=1))
        assert limited.start() == ["a b c"]  # the other slot may not run it
        busy = make_busy(slots=2)
        busy.run("a b c", Network(SHARE_S / 2))
        assert busy.end("busy0") == ["a b c"]  # the other slot runs another model

    def test_ends_before_the_deadline_of_each_request(self) -> None:
        bench, model = make_busy(), Network(row_s := BATCH_S / 10)
        for name, remaining in {"a": math.inf, "b": 2.5, "c": math.inf, "d": 1.5}.items():
            bench.run(name, model, remaining_s=remaining * row_s)
        assert bench.end("busy0") == ["a b"]
        assert bench.end("a b") == ["c"]  # with "d", it would be late
        assert bench.end("c") == ["d"]

    def test_leaves_out_cancelled_and_expired_requests(self) -> None:
        bench = make_busy()
        bench.run("a b", CALM)
        bench.run("c", CALM, remaining_s=0.5)
        bench.run("d", CALM, remaining_s=1)
        bench.calls["a"].is_cancelled = True  # without a withdrawal
        bench.now += 0.5
        assert bench.end("busy0") == ["b d"]
        assert isinstance(bench.errors["a"], RequestCancelled)
        assert isinstance(bench.errors["c"], DeadlineExpired)
        assert bench.scheduler.load.waiting == 0

    def test_does_not_begin_if_its_first_request_would_be_late(self) -> None:
        bench, model = make_busy(), Network(0.25)
        bench.run("late", model, rows=2, remaining_s=0.5 + TRY_S)
        bench.run("early", model, rows=2, remaining_s=0.6)
        bench.now += TRY_S
        assert bench.end("busy0") == ["early"]
        with pytest.raises(DeadlineExpired, match="passes in 500 ms, and the answer needs 500 ms: the network did"):
            raise bench.errors["late"]

    def test_is_tried_if_it_has_not_waited(self) -> None:
        """The expected duration may be wrong, and would never be corrected if nothing ran."""
        bench = make_busy()
        bench.run("a", Network(0.5), remaining_s=0.1)
        bench.now += TRY_S * 0.99
        assert bench.end("busy0") == ["a"]

    @pytest.mark.parametrize("begin", [lambda bench: bench.run("a", CALM, remaining_s=0), None])
    def test_does_not_begin_for_a_call_that_ended_before_its_arrival(
        self, begin: Callable[[Bench], None] | None
    ) -> None:
        bench = Bench()
        bench.run("a", CALM, remaining_s=0 if begin else math.inf)
        bench.calls["a"].is_cancelled = begin is None
        assert bench.start() == []
        assert isinstance(bench.errors["a"], DeadlineExpired if begin else RequestCancelled)
        assert bench.scheduler.load == Load(1, 0, 0, 0)


class TestDecodes:
    """Small decodes, which take the slots of batches."""

    def test_go_before_a_small_batch_which_their_images_may_join(self) -> None:
        bench = make_busy()
        bench.run("a", CALM)
        bench.decode("b c")
        assert bench.end("busy0") == ["b"]
        bench.now += SHARE_S * 0.9
        assert bench.end("b", keep=True) == ["c"]
        bench.run("b", CALM)
        assert bench.end("c") == ["a b"]

    def test_do_not_go_before_a_batch_that_is_full(self) -> None:
        for model, max_batch in ((CALM, 2), (Network(max_batch=2), 32)):
            bench = make_busy(max_batch=max_batch)
            bench.run("a", model)
            bench.run("b", model)
            bench.decode("c")
            assert bench.end("busy0") == ["a b"]

    def test_do_not_go_before_a_batch_that_is_long_enough(self) -> None:
        bench = make_busy()
        bench.run("a b", Network(SHARE_S / 2))
        bench.decode("c")
        assert bench.end("busy0") == ["a b"]

    def test_do_not_go_before_a_batch_that_has_waited(self) -> None:
        bench = make_busy()
        bench.run("a", CALM)
        bench.now += SHARE_S / 2
        bench.run("b", CALM)
        bench.decode("c")
        bench.now += SHARE_S / 2 + 1e-6
        assert bench.end("busy0") == ["a b"]

    def test_take_every_second_turn_while_batches_always_wait(self) -> None:
        bench, model = make_busy(), Network(BATCH_S)
        bench.run("a b c", model)
        bench.decode("x y")
        bench.decode("z")
        order = [*bench.end("busy0")]
        while len(order) < 6:
            order += bench.end(order[-1])
        assert order == ["a", "x", "b", "y", "c", "z"]

    def test_that_cannot_be_used_take_no_turn(self) -> None:
        bench, model = make_busy(), Network(BATCH_S)
        bench.run("a b c", model)
        bench.decode("u v", remaining_s=1)
        bench.decode("w x y z")
        bench.calls["w"].is_cancelled = True
        bench.now += 1
        assert bench.end("busy0") == ["a"]
        assert bench.end("a") == ["x"]
        assert sorted(bench.errors) == ["u", "v", "w"]
        assert bench.scheduler.load.waiting == 4

    def test_are_limited_by_the_slots_alone(self) -> None:
        bench = Bench(slots=2)
        bench.decode("a b c", SMALL_BYTES / MIB)
        assert bench.start() == ["a", "b"]
        assert bench.end("b") == ["c"]

    @pytest.mark.parametrize(("slots", "mib", "small_mib"), [(2, 1000, 8), (4, 64, 2), (1, 8, 1)])
    def test_are_small_up_to_an_eighth_of_the_memory(self, slots: int, mib: int, small_mib: int) -> None:
        decodes = Decodes(SharedSlots(slots, "large_slots", Alone), mib * MIB)
        assert decodes.is_small(small_mib * MIB)
        assert not decodes.is_small(small_mib * MIB + 1)
        assert decodes.max_bytes == (mib - slots * small_mib) * MIB


class TestLargeDecodes:
    """Large decodes, which are limited by memory and have slots of their own."""

    def test_run_at_the_same_time_if_they_fit_into_the_memory(self) -> None:
        bench = Bench(slots=3)
        bench.decode("a", LARGE_MIB - 400)
        assert bench.start() == ["a"]
        bench.decode("b", 400)
        assert bench.start() == ["b"]
        bench.decode("c", 401)
        assert bench.start() == []
        assert bench.end("b") == []
        assert bench.end("a") == ["c"]

    def test_have_as_many_slots_as_there_are_besides_these(self) -> None:
        bench = make_busy(slots=2)
        bench.decode("a b c", 20)
        assert bench.start() == ["a", "b"]
        bench.end("busy0")
        bench.decode("d")
        bench.run("e", CALM)
        assert bench.start() == ["d"]
        assert bench.end("busy1") == ["e"]
        assert bench.end("a") == ["c"]

    def test_are_not_overtaken_for_long(self) -> None:
        """Smaller ones overtake a larger one if they arrive soon after it. All wait for the first."""
        bench = Bench(slots=3)
        bench.decode("a", 600)
        bench.start()
        lead_s = (500 - 300) * MIB / PACE_BYTES_PER_S
        bench.decode("b", 500)
        bench.now += lead_s * 0.99
        bench.decode("c", 300)
        assert bench.start() == ["c"]
        bench.now += lead_s * 0.02
        bench.decode("d", 300)
        assert bench.end("c") == []  # there would be memory for "d"
        assert bench.end("a") == ["b", "d"]

    def test_of_one_size_run_in_order_of_arrival(self) -> None:
        bench = Bench()
        bench.decode("b d c a", 20)
        assert [bench.start(), bench.end("b"), bench.end("d"), bench.end("c")] == [["b"], ["d"], ["c"], ["a"]]

    def test_that_are_withdrawn_let_others_start(self) -> None:
        bench = Bench(slots=2)
        bench.decode("a", 600)
        bench.start()
        bench.decode("b", 500)
        bench.now += 10
        bench.decode("c d", 300)
        assert bench.start() == []
        bench.withdraw("b")
        assert bench.start() == ["c"]
        assert bench.end("a") == ["d"]

    def test_that_cannot_be_used_take_no_memory(self) -> None:
        bench = Bench(slots=1)
        bench.decode("a b", 600)
        bench.decode("c", 600, remaining_s=1)
        bench.decode("d", LARGE_MIB)
        bench.start()
        bench.calls["b"].is_cancelled = True
        bench.now += 1
        assert bench.end("a") == ["d"]
        assert isinstance(bench.errors["b"], RequestCancelled)
        assert isinstance(bench.errors["c"], DeadlineExpired)
        assert bench.scheduler.load == Load(1, 0, 0, 1)

    def test_over_the_limit_are_refused(self) -> None:
        decodes, limit = Bench().decodes, LARGE_MIB * MIB
        decodes.check(limit)
        with pytest.raises(ImageNeedsTooMuchMemory, match=f"{limit + 1} bytes, the limit is {limit}") as caught:
            decodes.check(limit + 1)
        assert caught.value.facts == {"needed_bytes": str(limit + 1), "limit_bytes": str(limit)}

    def test_that_together_exceed_the_limit_run_alone(self) -> None:
        """The images of a request are checked one by one."""
        bench = Bench(slots=2)
        bench.decode("a", 10 * LARGE_MIB)
        bench.decode("b", 20)
        assert bench.start() == ["b"]
        assert bench.end("b") == ["a"]
        bench.decode("c", 20)
        assert bench.start() == []
        assert bench.end("a") == ["c"]

    def test_delay_no_other_request(self) -> None:
        bench, model = Bench(), Network()
        measure_pace(bench, model, 1.0)
        bench.scheduler.serve([model])
        bench.decode("a", model=model)  # the header of the image
        bench.start()
        bench.end("a", keep=True)
        bench.decode("a", 20, model)
        bench.start()
        bench.end("a", keep=True)
        bench.decode("a", 20, model)  # once more
        bench.decode("b", 20, model)
        assert bench.start() == ["a"]
        assert not bench.scheduler.is_busy()
        bench.run("c", model, remaining_s=0.1)
        assert bench.start() == ["c"]
        assert bench.scheduler.is_busy()
        bench.scheduler.check(bench.now + MARGIN * 2, bench.now)
        bench.now += 1
        bench.end("c")
        bench.now += 100
        bench.end("a")
        bench.end("b")
        assert model_pace(bench, model) == pytest.approx(MARGIN)
        assert not bench.scheduler.is_busy()
        bench.run("d", model)
        assert bench.scheduler.is_busy()


class TestModels:
    def test_take_turns_by_the_time_of_their_networks(self) -> None:
        bench, quick, slow = make_busy(), Network(0.1), Network(0.3)
        bench.run("s1 s2 s3", slow)
        bench.run("q1 q2 q3 q4 q5 q6", quick)
        order = [*bench.end("busy0")]
        while len(order) < 8:
            order += bench.end(order[-1])
        assert order == ["s1", "q1", "q2", "q3", "s2", "q4", "q5", "q6"]

    def test_of_unknown_duration_take_turns(self) -> None:
        bench, other = make_busy(max_batch=1), Network()
        bench.run("a1 a2 a3", CALM)
        bench.run("b1 b2 b3", other)
        order = [*bench.end("busy0")]
        while len(order) < 6:
            order += bench.end(order[-1])
        assert order == ["a1", "b1", "a2", "b2", "a3", "b3"]
        assert {lane.turn_s for lane in map(bench.scheduler._find_lane, (CALM, other))} == {3 * TURN_S}

    @pytest.mark.parametrize("first", ["busy", "idle"])
    def test_that_were_idle_have_not_saved_up_turns(self, first: str) -> None:
        """Whether another request of the busy model waits when the idle one wakes up or not."""
        bench, busy, idle = Bench(max_batch=1), Network(0.1), Network(0.1)
        for _ in range(100):
            bench.run("a", busy)
            bench.start()
            bench.end("a")
        bench.run("b0", busy)
        bench.start()
        for name in ("busy", "idle") if first == "busy" else ("idle", "busy"):
            bench.run(f"{name[0]}1 {name[0]}2 {name[0]}3", busy if name == "busy" else idle)
        order = [*bench.end("b0")]
        while len(order) < 6:
            order += bench.end(order[-1])
        assert "".join(name[0] for name in order) in ("ibibib", "iibibb", "bibibi")

    def test_may_be_limited_to_fewer_slots(self) -> None:
        bench, limited = Bench(slots=3), Network(max_batch=1, max_slots=2)
        bench.run("a b c d", limited)
        assert bench.start() == ["a", "b"]
        bench.run("e", CALM)
        bench.decode("f")
        assert bench.start() == ["f"]
        assert bench.end("f") == ["e"]
        assert bench.end("e") == []
        assert bench.end("a") == ["c"]
        assert bench.end("b") == ["d"]

    def test_give_up_their_slot_if_no_request_can_be_answered(self) -> None:
        bench, limited = Bench(max_batch=1), Network(max_slots=1)
        bench.run("a", limited, remaining_s=0)
        assert bench.start() == []
        bench.run("b", limited)
        assert bench.start() == ["b"]


class TestWithdrawal:
    """A withdrawn job ends at once if it waits, or before its next step."""

    @pytest.mark.parametrize("is_cancelled", [True, False])
    @pytest.mark.parametrize(("step", "awaited"), [("run", "a slot"), ("small", "a slot or"), ("large", "a slot or")])
    def test_of_a_step_that_waits(self, step: str, awaited: str, is_cancelled: bool) -> None:
        bench = make_busy()
        bench.decode("large", LARGE_MIB)
        bench.start()
        if step == "run":
            bench.run("a b", CALM)
        else:
            bench.decode("a b", 20 if step == "large" else 0)
        bench.calls["a"].is_cancelled = is_cancelled
        job, error = bench.jobs["a"], bench.withdraw("a")
        assert isinstance(error, RequestCancelled if is_cancelled else DeadlineExpired)
        assert f"while waiting for {awaited}" in str(error)
        assert bench.scheduler.withdraw(job) is None  # once
        assert bench.scheduler.load == Load(1, 1, 1, 3)
        assert bench.end("large") + bench.end("busy0") == ["b"]
        assert bench.scheduler.load.waiting == 0

    def test_of_the_only_step_that_waits(self) -> None:
        bench = make_busy()
        bench.run("a", CALM)
        bench.withdraw("a")
        assert bench.end("busy0") == []
        bench.run("b", CALM)
        assert bench.start() == ["b"]

    def test_of_inputs_makes_room_in_the_batch(self) -> None:
        bench = make_busy(max_batch=3)
        bench.run("a", CALM, rows=2)
        bench.run("b", CALM)
        bench.withdraw("a")
        bench.decode("c")
        assert bench.end("busy0") == ["c"]  # the batch is not full any more

    def test_of_a_step_that_runs_ends_the_job_before_its_next_step(self) -> None:
        bench = Bench()
        bench.decode("a")
        bench.start()
        assert bench.withdraw("a") is None
        bench.end("a", keep=True)
        with pytest.raises(DeadlineExpired, match="while waiting for a slot: the network did not run"):
            bench.run("a", CALM)
        bench.calls["a"].is_cancelled = True
        with pytest.raises(RequestCancelled, match="while waiting for a slot or memory to decode in"):
            bench.decode("a")
        bench.leave("a")
        assert bench.scheduler.load == Load(1, 0, 0, 0)

    def test_of_a_batch_that_runs_does_nothing(self) -> None:
        bench = Bench()
        bench.run("a", CALM)
        bench.start()
        assert bench.withdraw("a") is None
        bench.end("a")
        assert not bench.errors
