"""Lanes as queues of work on a device: what a round needs of them, and the one that has no queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from pearl_decode.lanes.times import Times

T = TypeVar("T")


class Event(Protocol):
    """A place in a lane's queue."""

    def synchronize(self) -> None:
        """Hold the host up until all that was queued before has run."""


class DeviceLane(Protocol):
    """Runs work in the order it is queued, beside other lanes, without holding up the caller.

    Work only queues what a device is to do, on tensors whose values it does not read.

    can_capture: whether `capture` may be called
    queued:      pieces of work that were queued, ever: the number of the next one
    times:       of the pieces that `settle` saw ended, by one clock for all lanes of a device
    """

    device: torch.device
    can_capture: bool
    queued: int
    times: Times

    def make(self, work: Callable[[], T]) -> T:
        """Do work now, behind all that the caller has queued on the device: it makes tensors for the lane to use."""

    def run(self, work: Callable[[], object]) -> None:
        """Queue work."""

    def record(self) -> Event:
        """The present end of the queue."""

    def wait(self, event: Event) -> None:
        """Nothing that is queued from here on runs before the event, which may be another lane's."""

    def join(self) -> None:
        """What the caller queues on the device from here on runs after all that this lane has queued."""

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Work as one piece to `run` again and again: what it queues now, for the tensors it uses now. Not run yet."""

    def settle(self) -> None:
        """Note the times of work that has ended, without waiting for any."""

    def release(self) -> None:
        """Give unused memory back to the device."""


class _Now:
    def synchronize(self) -> None:
        """All that was queued has run."""


class InlineLane:
    """Runs work at once, in the caller's thread: static rounds on CPU tensors."""

    can_capture = False

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.queued = 0
        self.times = Times()

    def make(self, work: Callable[[], T]) -> T:
        with torch.inference_mode():
            return work()

    def run(self, work: Callable[[], object]) -> None:
        self.finish(work)
        self.queued += 1

    def finish(self, work: Callable[[], object]) -> None:
        """Run queued work, and note its time."""
        start = time.perf_counter()
        with torch.inference_mode():
            work()
        self.times.add(start, time.perf_counter())

    def record(self) -> Event:
        return _Now()

    def wait(self, event: Event) -> None:
        pass

    def join(self) -> None:
        pass

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        raise NotImplementedError("work on a CPU leaves nothing to replay")

    def settle(self) -> None:
        pass

    def release(self) -> None:
        pass
