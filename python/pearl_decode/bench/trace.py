"""When each lane computed: recorded from real rounds, and written for Perfetto and Chrome."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pearl_decode.decoder import PearlDecoder
from pearl_decode.device.engine import DeviceEngine
from pearl_decode.device.runner import DeviceRunner
from pearl_decode.engine import Plan
from pearl_decode.lanes.cpu import lane_pair
from pearl_decode.lanes.times import Interval, Times
from pearl_decode.request import Request
from pearl_decode.sampling import SamplingParams
from pearl_decode.stats import DecodeStats


@dataclass(frozen=True)
class Timeline:
    """One text. Seconds since decoding began: the work of each lane, and when each round was committed.

    target, draft: forwards; on a GPU all forwards of a round that a lane queues as one
    emitted:       tokens each round gave
    """

    strategy: str
    gamma: int
    target: list[Interval]
    draft: list[Interval]
    commits: list[float]
    emitted: list[int]

    @property
    def title(self) -> str:
        return f"{self.strategy}, gamma {self.gamma}" if self.draft else self.strategy

    @property
    def overlap_s(self) -> float:
        """Time in which both lanes computed."""
        return sum(
            max(0.0, min(end, other_end) - max(start, other_start))
            for start, end in self.target
            for other_start, other_end in self.draft
        )


def record(decoder: PearlDecoder, strategy: str, gamma: int, prompt: Sequence[int], params: SamplingParams) -> Timeline:
    """Decode one prompt on lanes of its own, as that strategy would share the cores out, and note the times. On a GPU
    the rounds are static ones.

    Raises RuntimeError if it fails.
    """
    if decoder.target.device.type == "cuda":
        return record_static(decoder, strategy, gamma, prompt, params)
    lanes = lane_pair(strategy == "pearl", by_kernels=decoder.target.runs_by_kernels)
    draft = decoder.draft.model if decoder.draft else None
    with PearlDecoder(
        decoder.target.model, draft, decoder.tokenizer, gamma=gamma, rule=decoder.plan.rule, lanes=lanes
    ) as own:
        commits, emitted = [], []
        requests, rounds = own.start([prompt], params, strategy=strategy)
        for updates in rounds:
            commits.append(time.perf_counter())
            emitted.append(sum(len(update.token_ids) for update in updates))
    if requests[0].error is not None:
        raise RuntimeError(requests[0].error)
    stats = requests[0].stats
    target, drafting = (
        _intervals(lane.times, lane.times.count - forwards, lane.times.count)
        for lane, forwards in zip(lanes, (stats.target_forwards, stats.draft_forwards), strict=True)
    )
    return _timeline(strategy, gamma, target, drafting, commits, emitted)


def record_static(
    decoder: PearlDecoder, strategy: str, gamma: int, prompt: Sequence[int], params: SamplingParams
) -> Timeline:
    """As `record`, of static rounds, timed by their device. It decodes twice: graphs that the first run captures are
    replayed in the second, which is the one that is shown.
    """
    plan = Plan(strategy, gamma, decoder.plan.rule)
    with closing(DeviceRunner(decoder.target, decoder.draft, compile=False)) as runner:
        return _record(runner, plan, decoder, prompt, params)


def _record(
    runner: DeviceRunner, plan: Plan, decoder: PearlDecoder, prompt: Sequence[int], params: SamplingParams
) -> Timeline:
    strategy, gamma = plan.strategy, int(plan.gamma)

    def decode() -> tuple[list[int], DeviceEngine]:
        stats = DecodeStats(strategy, gamma, plan.rule)
        request = Request(list(prompt), params, decoder.target.eos_ids(), decoder.tokenizer, stats)
        engine = runner.engine([request], plan)
        emitted = [sum(len(update.token_ids) for update in updates) for updates in engine.run()]
        if request.error is not None:
            raise RuntimeError(request.error)
        return emitted, engine

    decode()
    emitted, engine = decode()
    lanes: list[list[Interval]] = []
    for lane, begin in zip(runner.lanes, engine.begin, strict=True):
        lane.record().synchronize()
        lane.settle()
        lanes.append(_intervals(lane.times, begin, lane.queued))
    target, drafting = lanes
    commits = [target[end - engine.begin[0] - 1][1] for end in engine.ends[: len(emitted)]]
    return _timeline(strategy, gamma, target, drafting, commits, emitted)


def _intervals(times: Times, first: int, last: int) -> list[Interval]:
    intervals = times.between(first, last)
    assert intervals is not None, "a lane forgot when it began on a text"
    return intervals


def _timeline(
    strategy: str,
    gamma: int,
    target: Sequence[Interval],
    drafting: Sequence[Interval],
    commits: Sequence[float],
    emitted: list[int],
) -> Timeline:
    begin = min((start for start, _ in [*target, *drafting]), default=0.0)
    return Timeline(
        strategy,
        gamma,
        [(start - begin, end - begin) for start, end in target],
        [(start - begin, end - begin) for start, end in drafting],
        [commit - begin for commit in commits],
        emitted,
    )


def chrome_trace(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """The Trace Event Format: a process per strategy, a thread per lane, an instant per commit; microseconds."""
    events: list[dict[str, Any]] = []
    for pid, timeline in enumerate(timelines, start=1):
        events.append(_name("process_name", pid, 0, timeline.title))
        for tid, (lane, intervals) in enumerate((("target", timeline.target), ("draft", timeline.draft)), start=1):
            events.append(_name("thread_name", pid, tid, lane))
            events += [
                {"name": f"{lane} forward", "cat": lane, "ph": "X", "pid": pid, "tid": tid}
                | {"ts": start * 1e6, "dur": (end - start) * 1e6}
                for start, end in intervals
            ]
        events += [
            {"name": f"commit {count}", "cat": "commit", "ph": "i", "s": "p", "pid": pid, "tid": 1, "ts": at * 1e6}
            | {"args": {"tokens": count}}
            for at, count in zip(timeline.commits, timeline.emitted, strict=True)
        ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
