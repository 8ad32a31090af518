"""A lane whose forwards take a set time: overlap can be measured anywhere, with no fast device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pearl_decode.lanes.cpu import CpuLane


class PacedLane(CpuLane):
    """A CpuLane that sleeps at the end of each forward until `forward_s` seconds have passed since its start."""

    def __init__(self, name: str, cores: Sequence[int], forward_s: float) -> None:
        super().__init__(name, cores)
        self.forward_s = forward_s

    @contextmanager
    def forward(self) -> Iterator[None]:
        with super().forward():
            start = time.perf_counter()
            yield
            time.sleep(max(0.0, start + self.forward_s - time.perf_counter()))
