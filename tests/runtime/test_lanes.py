"""Both lanes really work at once, and a round costs the longer of them."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from itertools import count, zip_longest

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.lanes import CpuLane, PacedLane, worker
from pearl_decode.lanes.cpu import available_cores, lane_pair
from pearl_decode.lanes.worker import Job
from pearl_kernels import kernels_alone
from tests.runtime.scripted import scripted_pair


def _paced(target_s: float, draft_s: float) -> tuple[PacedLane, PacedLane]:
    return PacedLane("target", [0], target_s), PacedLane("draft", [0], draft_s)


def _overlap(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> float:
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in first for b in second)


def _intervals(lane: PacedLane) -> list[tuple[float, float]]:
    return lane.times.between(0, lane.times.count) or []


@pytest.fixture
def pair():
    return scripted_pair(0.8, rows=1)


def test_busy_intervals_of_the_two_lanes_intersect(pair):
    lanes = _paced(0.040, 0.010)
    with PearlDecoder(*pair, strategy="pearl", gamma=4, lanes=lanes) as decoder:
        [result] = decoder.generate([[0]], SamplingParams(max_tokens=24))
        overlap = _overlap(*map(_intervals, lanes))
    stats = result.stats
    # Four draft steps take as long as the target's forward: side by side they nearly double what a lane does.
    assert overlap > 0.7 * stats.target_busy_s
    assert stats.decode_s < 0.75 * (stats.target_busy_s + stats.draft_busy_s)
    assert stats.target_idle_s == pytest.approx(stats.decode_s - stats.target_busy_s)


def test_sequential_strategy_never_overlaps(pair):
    lanes = _paced(0.010, 0.003)
    with PearlDecoder(*pair, gamma=4, strategy="sequential", lanes=lanes) as decoder:
        decoder.generate([[0]], SamplingParams(max_tokens=24))
        assert _overlap(*map(_intervals, lanes)) == 0.0


class _SecondLane(CpuLane):
    """On which every forward is said to take a second, `period` seconds after the one before."""

    period = 1

    @contextmanager
    def forward(self):
        yield
        start = self.period * self.times.count
        self.times.add(start, start + 1)


def test_streams_that_take_turns_on_a_lane_are_timed_apart(pair):
    lanes = _SecondLane("target", [0]), _SecondLane("draft", [0])
    with PearlDecoder(*pair, gamma=2, strategy="sequential", lanes=lanes) as decoder:
        streams = [decoder.start([[0]], SamplingParams(max_tokens=12)) for _ in range(2)]
        for _ in zip_longest(*(rounds for _, rounds in streams)):
            pass
    for (request,), _ in streams:
        stats = request.stats
        assert stats.rounds > 2
        assert (stats.target_busy_s, stats.draft_busy_s) == (stats.rounds, 2 * stats.rounds)


def test_what_a_lane_does_between_its_forwards_is_its_work_too(pair):
    lanes = _SecondLane("target", [0]), _SecondLane("draft", [0])
    lanes[1].period = 3
    with PearlDecoder(*pair, gamma=2, strategy="sequential", lanes=lanes) as decoder:
        [result] = decoder.generate([[0]], SamplingParams(max_tokens=12))
    stats = result.stats
    assert (stats.target_busy_s, stats.draft_busy_s) == (stats.rounds, 4 * stats.rounds)


def test_statistics_count_forwards_and_tokens(pair):
    target, draft = pair
    with PearlDecoder(target, draft, strategy="pearl", gamma=4) as decoder:
        [result] = decoder.generate([[0]], SamplingParams(max_tokens=50))
    stats = result.stats
    assert stats.target_forwards == stats.rounds == target.forwards
    assert stats.draft_forwards == 4 * stats.rounds == draft.forwards
    assert stats.emitted_tokens == 50 == len(result.token_ids)
    assert sum(stats.accepted_lengths) == stats.rounds
    assert sum(n * count for n, count in enumerate(stats.accepted_lengths)) == stats.accepted_tokens
    assert stats.tokens_per_target_forward == 50 / stats.rounds


def test_lane_runs_work_in_order_on_its_own_cores_and_threads():
    lane = CpuLane("test", [0])
    seen = []
    futures = [lane.run(lambda i=i: seen.append(i)) for i in range(50)]
    [future.result() for future in futures]
    assert seen == list(range(50))
    assert lane.run(torch.get_num_threads).result() == 1
    assert lane.run(threading.get_ident).result() != threading.get_ident()
    if hasattr(os, "sched_getaffinity"):
        assert lane.run(lambda: os.sched_getaffinity(0)).result() == {0}
    lane.close()


def test_lane_keeps_its_threads_whatever_other_threads_are_given():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    lane = CpuLane("test", available_cores()[:1] * 3)
    lane.run(lambda: None).result()
    torch.set_num_threads(1)
    try:
        assert lane.run(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
        lane.close()


def test_lane_takes_no_more_threads_than_torch_was_given():
    torch.set_num_threads(1)
    lane = CpuLane("test", available_cores() * 2)
    assert lane.run(torch.get_num_threads).result() == 1
    lane.close()


def test_lane_hands_an_exception_to_whoever_waits():
    lane = CpuLane("test", [0])

    def fail() -> None:
        raise OSError("no such thing")

    with pytest.raises(OSError, match="no such thing"):
        lane.run(fail).result()
    assert lane.run(lambda: 3).result() == 3
    lane.close()


def test_close_ends_the_threads(pair):
    before = set(threading.enumerate())
    with PearlDecoder(*pair) as decoder:
        decoder.generate([[0]], SamplingParams(max_tokens=4))
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before


def test_lanes_that_take_turns_share_a_thread_and_others_have_one_each():
    for concurrent in (False, True):
        pair = lane_pair(concurrent)
        threads = {lane.run(threading.get_ident).result() for lane in pair}
        assert len(threads) == 1 + concurrent
        for lane in pair:
            lane.close()


@pytest.mark.parametrize(
    ("cores", "by_kernels", "target", "draft"),
    [
        ([3], True, (3,), (3,)),
        ([0, 1], False, (0,), (1,)),
        ([0, 1], True, (0, 1), (1,)),
        ([0, 1, 5], True, (0, 1), (5,)),
        ([0, 1, 5], False, (0, 1), (5,)),
    ],
)
def test_lanes_that_work_at_once_share_the_cores_out(cores, by_kernels, target, draft, monkeypatch):
    monkeypatch.setattr("pearl_decode.lanes.cpu.available_cores", lambda: cores)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)  # there may be fewer here
    pair = lane_pair(True, by_kernels=by_kernels)
    assert tuple(lane.cores for lane in pair) == (target, draft)
    for lane in pair:
        lane.close()


def test_a_lane_at_rest_has_no_compute_threads_and_works_again():
    lane = CpuLane("target", available_cores())
    x = torch.randn(1 << 20)
    wanted = lane.run(x.exp).result()
    lane.rest()
    assert torch.equal(lane.run(x.exp).result(), wanted)
    lane.close()
    lane.rest()


def test_work_that_waits_when_a_lane_is_closed_is_an_error_not_a_wait():
    lane, begun, go_on = CpuLane("test", [0]), threading.Event(), threading.Event()

    def first() -> str:
        begun.set()
        go_on.wait()
        return "done"

    running, waiting = lane.run(first), lane.run(lambda: None)
    begun.wait()
    threading.Timer(0.05, go_on.set).start()
    lane.close()
    assert running.result() == "done"
    assert waiting.done
    with pytest.raises(RuntimeError, match="the lane was closed before this was done"):
        waiting.result()
    with pytest.raises(RuntimeError, match="the lane is closed"):
        lane.run(lambda: None)


def test_work_that_comes_as_a_lane_is_closed_is_an_error_not_a_wait(monkeypatch):
    lane = CpuLane("test", [0])

    class LateJob(worker.Job):
        def __init__(self, work):
            super().__init__(work)
            lane.close()  # by another thread, between what is asked of the lane and what it is given

    monkeypatch.setattr(worker, "Job", LateJob)
    late = lane.run(int)
    late.wait(10)
    assert late.done
    with pytest.raises(RuntimeError, match="the lane was closed before this was done"):
        late.result()


def test_a_lane_that_is_not_closed_ends_with_who_had_it():
    lane = CpuLane("test", [0])
    thread = lane.run(threading.current_thread).result()
    del lane
    thread.join(10)
    assert not thread.is_alive()


def test_cores_that_are_not_there_are_named_at_once():
    with pytest.raises(OSError, match="Invalid argument"):
        CpuLane("test", [1 << 20])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="nothing interrupts here")
def test_who_waits_may_be_interrupted_anywhere():
    lane, dice, waiting, interrupted = CpuLane("test", [0]), random.Random(0), False, 0

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if waiting:
            interrupted += 1
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(1000):
            with suppress(KeyboardInterrupt):
                waiting = True
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-5, 3e-4))
                for _ in range(20):
                    lane.run(int).result()
                waiting = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    last = lane.run(lambda: 7)
    last.wait(30)
    assert last.done
    assert last.result() == 7
    assert interrupted > 100
    lane.close()


class Circle:
    """Something that only the collector ends."""

    def __init__(self) -> None:
        self.itself = self


def test_rounds_that_nobody_asks_for_may_be_collected_on_a_lane(pair):
    """Where they end, they would wait for the lane."""
    lanes = CpuLane("target", [0]), CpuLane("draft", [0])
    with PearlDecoder(*pair, gamma=2, strategy="sequential", lanes=lanes) as decoder:
        for lane in lanes:
            circle = Circle()
            _, circle.rounds = decoder.start([[0]], SamplingParams(max_tokens=30))
            next(circle.rounds)
            del circle
            collecting = lane.run(gc.collect)
            collecting.wait(30)
            assert collecting.done
        assert len(decoder.generate([[0]], SamplingParams(max_tokens=9))[0].token_ids) == 9


def test_a_decoder_that_was_used_before_a_fork_works_after_it(pair):
    with PearlDecoder(*pair, gamma=2, strategy="sequential") as decoder:
        params = SamplingParams(max_tokens=9)
        wanted = decoder.generate([[0]], params)[0].token_ids
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                os._exit(decoder.generate([[0]], params)[0].token_ids != wanted)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0


def test_a_lane_says_that_a_fork_has_no_thread_of_it():
    lane = CpuLane("test", [0])
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        with suppress(BaseException):
            with pytest.raises(RuntimeError, match="the lane has no thread in this process, which was forked"):
                lane.run(int).result()
            lane.rest()
            lane.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert lane.run(int).result() == 0
    lane.close()


def test_a_decoder_has_the_threads_of_when_it_was_made(pair, monkeypatch):
    monkeypatch.setattr("pearl_decode.lanes.cpu.available_cores", lambda: [0] * 3)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with PearlDecoder(*pair, gamma=2, strategy="sequential") as decoder, kernels_alone():
            decoder.generate([[0]], SamplingParams(max_tokens=4))
            [(lane, _)] = decoder.runner._lanes.values()
            assert lane.run(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_who_is_interrupted_holds_up_nobody_else_who_waits():
    """Wherever it is: a lane may wait for another's work as its caller does."""
    for at in [*range(8)] * 3:
        lines, job = count(), Job(lambda: time.sleep(0.01))
        waiter = threading.Timer(0.005, job.wait)  # behind who is interrupted
        others = [threading.Thread(target=job.do), waiter]

        def interrupt(frame, event, _, at=at, lines=lines):
            if frame.f_code is Job.wait.__code__ and event == "line" and next(lines) == at:
                raise KeyboardInterrupt
            return interrupt

        for other in others:
            other.daemon = True
            other.start()
        sys.settrace(interrupt)
        try:
            with suppress(KeyboardInterrupt):
                job.wait()
        finally:
            sys.settrace(None)
        for other in others:
            other.join(5)
            assert not other.is_alive()
