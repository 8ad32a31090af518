"""A lane on a GPU: a stream, events, and graphs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

import torch

from pearl_decode.lanes.graph import capture, give_back
from pearl_decode.lanes.queue import Event
from pearl_decode.lanes.times import Times

T = TypeVar("T")
HIGH, NORMAL = -1, 0  # of streams: lower goes first


class CudaLane:
    """A stream of its own on one GPU.

    device:    with or without an index
    priority:  HIGH lets short kernels in between the long ones of another lane on the same GPU
    times:     in seconds since the first lane of the device was made, by the device's own clock
    can_capture: False for a model that is spread over several devices
    """

    _origins: dict[torch.device, torch.cuda.Event] = {}  # noqa: RUF012  one clock for all lanes of a device

    def __init__(self, device: torch.device | str, priority: int = NORMAL, *, can_capture: bool = True) -> None:
        index = torch.device(device).index
        self.device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
        self.stream = torch.cuda.Stream(self.device, priority=priority)  # type: ignore[no-untyped-call]
        self.can_capture = can_capture
        self.queued = 0
        self.times = Times()
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        if self.device not in self._origins:
            self._origins[self.device] = self._stamp(torch.cuda.current_stream(self.device))
            torch.cuda.synchronize(self.device)

    def _stamp(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        with torch.cuda.device(self.device):
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(stream)
        return event

    def make(self, work: Callable[[], T]) -> T:
        # Weights may still be on their way, on the caller's stream.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            return work()

    def run(self, work: Callable[[], object]) -> None:
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            start = self._stamp(self.stream)
            work()
            self._running.append((start, self._stamp(self.stream)))
            self.queued += 1

    def record(self) -> Event:
        with torch.cuda.device(self.device):
            # A host that waits for it sleeps: with rounds queued ahead, it has time to.
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(self.stream)
        return event

    def wait(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event), f"expected an event of a CudaLane, got {type(event).__name__}"
        self.stream.wait_event(event)

    def join(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Work as a CUDA graph. It must have been run once on this lane, so that nothing is compiled or set up in it.

        Waits for the device. The graph keeps its own memory; the tensors work leaves behind stay where they are as long
        as they, or the graph, are kept.
        """
        return capture(work, self.stream)

    def settle(self) -> None:
        while self._running and self._running[0][1].query():  # type: ignore[no-untyped-call]
            start, end = self._running.popleft()
            # float32 milliseconds: since the origin, hours back, too coarse to take a difference of two.
            began, busy_s = 1e-3 * self._origins[self.device].elapsed_time(start), 1e-3 * start.elapsed_time(end)
            self.times.add(began, began + busy_s)

    def release(self) -> None:
        give_back(self.device)
