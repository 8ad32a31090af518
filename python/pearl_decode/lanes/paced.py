"""A lane whose forwards take a set time: overlap can be measured anywhere, with no fast device."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pearl_decode.lanes.cpu import CpuLane

PR_SET_TIMERSLACK = 29  # linux/prctl.h
WAKE_S = (
    30e-6  # a sleeper wakes about this much late: the rest is waited out awake, and short, as it has the interpreter
)


class PacedLane(CpuLane):
    """A CpuLane that sleeps at the end of each forward until `forward_s` seconds have passed since its start."""

    def __init__(self, name: str, cores: Sequence[int], forward_s: float) -> None:
        super().__init__(name, cores)
        self.forward_s = forward_s

    def _settle(self) -> None:
        super()._settle()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # of this thread, in ns: it wakes when it is told to

    @contextmanager
    def forward(self) -> Iterator[None]:
        with super().forward():
            end = time.perf_counter() + self.forward_s
            yield
            time.sleep(max(0.0, end - WAKE_S - time.perf_counter()))
            while time.perf_counter() < end:
                pass  # time.sleep(0) would take a timer's slack, and more than what is left
