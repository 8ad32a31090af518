"""A lane whose forwards take a set time: overlap can be measured anywhere, with no fast device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pearl_decode.lanes.cpu import CpuLane

WAKE_S = 0.1e-3  # a sleeper wakes about this much late: the rest is waited out awake


class PacedLane(CpuLane):
    """A CpuLane that sleeps at the end of each forward until `forward_s` seconds have passed since its start."""

    AT_ONCE = False

    def __init__(self, name: str, cores: Sequence[int], forward_s: float) -> None:
        super().__init__(name, cores)
        self.forward_s = forward_s

    @contextmanager
    def forward(self, count: int = 1) -> Iterator[None]:
        with super().forward(count):
            end = time.perf_counter() + count * self.forward_s
            yield
            time.sleep(max(0.0, end - WAKE_S - time.perf_counter()))
            while time.perf_counter() < end:
                pass  # time.sleep(0) would take a timer's slack, and more than what is left
