"""Rounds on their way: what the host knows of a round between queueing it and reading what it gave."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pearl_decode.auto import Choice, Timing
from pearl_decode.device.round import StaticRound
from pearl_decode.device.shape import ALONE, Shape
from pearl_decode.lanes.queue import DeviceLane
from pearl_decode.request import Request

Span = tuple[int, int]  # of numbers of a lane's pieces of work
Lanes = tuple[DeviceLane, DeviceLane]


@dataclass(frozen=True)
class Flight:
    """One round that was queued.

    choice, reason: how, and why; shape: of what was queued
    requests:       of each row
    matched:        how much of each row's text prompt lookup went by, as far as was known
    spans:          of the target's and the draft's lane
    work:           the same, with what had to be done first
    host_s:         what queueing it took
    warm:           whether it took as long as the next ones of its kind will
    """

    choice: Choice
    reason: str
    shape: Shape
    requests: list[Request]
    matched: list[int]
    spans: tuple[Span, Span]
    work: tuple[Span, Span]
    host_s: float
    warm: bool

    def busy_s(self, lanes: Lanes) -> tuple[float, float]:
        """What each lane computed for it, as far as that is known."""
        target, draft = (lane.times.seconds(*span) or [] for lane, span in zip(lanes, self.work, strict=True))
        return sum(target), sum(draft)

    def timing(self, lanes: Lanes) -> Timing | None:
        """The round as the lanes' own clocks saw it; None where that is not known, or will not happen again.

        A round takes as long as its parts, those of both lanes at once counted once, but no less than the host needs to
        queue it.
        """
        target, draft = (lane.times.seconds(*span) for lane, span in zip(lanes, self.spans, strict=True))
        if target is None or draft is None or not self.warm:
            return None
        draft_s = sum(draft)
        # PEARL's target reads its window beside the draft, and verifies after it.
        beside = target[0] if self.shape.runs_ahead else 0.0
        device_s = max(beside, draft_s) + sum(target) - beside
        steps = [draft_s / self.shape.drafted] * self.shape.drafted if self.shape.drafted else []
        return Timing(self.shape.width, max(device_s, self.host_s), beside or sum(target), steps)


def numbers(lanes: Lanes) -> tuple[int, int]:
    """Of each lane's next piece of work."""
    return lanes[0].queued, lanes[1].queued


def fly(
    choice: Choice,
    reason: str,
    requests: list[Request],
    matched: list[int],
    lanes: Lanes,
    before: tuple[int, int],
    queue: Callable[[], StaticRound],
) -> tuple[Flight, StaticRound]:
    """Queue a round, and note what belongs to it. before: the lanes' numbers when work for it began"""
    begin, firsts = time.perf_counter(), numbers(lanes)
    round = queue()
    (target, draft), host_s = numbers(lanes), time.perf_counter() - begin
    if round.shape == ALONE:
        choice = Choice("autoregressive", 1)
    spans, work = (((first, target), (other, draft)) for first, other in (firsts, before))
    return Flight(choice, reason, round.shape, requests, matched, spans, work, host_s, round.warm), round
