"""Rounds on their way: what the host knows of a round between queueing it and reading what it gave."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pearl_decode.auto import Choice, Timing
from pearl_decode.device.round import StaticRound
from pearl_decode.device.shape import Shape
from pearl_decode.lanes.queue import DeviceLane

Span = tuple[int, int]  # of a lane's intervals


@dataclass(frozen=True)
class Flight:
    """One round that was queued.

    choice, reason: how, and why; shape: of what was queued
    spans:          of the target's and the draft's lane
    host_s:         what queueing it took
    warm:           whether it took as long as the next ones of its kind will
    """

    choice: Choice
    reason: str
    shape: Shape
    spans: tuple[Span, Span]
    host_s: float
    warm: bool

    def timing(self, lanes: tuple[DeviceLane, DeviceLane]) -> Timing | None:
        """The round as the lanes' own clocks saw it; None where that is not known, or will not happen again.

        A round takes as long as its parts, those of both lanes at once counted once, but no less than the host needs to
        queue it.
        """
        durations = []
        for lane, (first, last) in zip(lanes, self.spans, strict=True):
            if len(lane.intervals) < last:
                return None
            durations.append([end - start for start, end in lane.intervals[first:last]])
        if not self.warm:
            return None
        target, draft_s = durations[0], sum(durations[1])
        # PEARL's target reads its window beside the draft, and verifies after it.
        beside = target[0] if self.shape.runs_ahead else 0.0
        device_s = max(beside, draft_s) + sum(target) - beside
        steps = [draft_s / self.shape.drafted] * self.shape.drafted if self.shape.drafted else []
        return Timing(self.shape.width, max(device_s, self.host_s), beside or sum(target), steps)


def fly(
    choice: Choice, reason: str, lanes: tuple[DeviceLane, DeviceLane], queue: Callable[[], StaticRound]
) -> tuple[Flight, StaticRound]:
    """Queue a round, and note what belongs to it."""
    begin, firsts = time.perf_counter(), [lane.queued for lane in lanes]
    round = queue()
    spans = tuple((first, lane.queued) for first, lane in zip(firsts, lanes, strict=True))
    if not round.shape.drafted:
        choice = Choice("autoregressive", 1)
    flight = Flight(choice, reason, round.shape, (spans[0], spans[1]), time.perf_counter() - begin, round.warm)
    return flight, round
