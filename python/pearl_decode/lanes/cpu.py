"""A lane on CPU cores: one worker thread, its own core set, its own number of compute threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import torch

from pearl_decode.lanes.times import Times
from pearl_decode.lanes.worker import Job, Worker, on_worker
from pearl_kernels import release_threads

T = TypeVar("T")


class CpuLane:
    """Runs work in order, one piece at a time, without holding up the caller.

    cores:     the processors it may use
    threads:   the most it computes with, where it has as many cores; None: what torch has where it is made
    thread_of: a lane of the same cores whose thread it runs on too, for two lanes that never work at once: compute
               threads of two would get in each other's way, waiting awake for more work
    times:     of the forwards, by time.perf_counter
    """

    AT_ONCE = True  # whether forwards may be one piece of work with those of the other lane

    def __init__(
        self, name: str, cores: Sequence[int], *, threads: int | None = None, thread_of: CpuLane | None = None
    ) -> None:
        self.name = name
        self.cores = tuple(cores)
        self.times = Times()
        threads = min(len(self.cores), threads or torch.get_num_threads())
        self._worker: Worker = (
            Worker(f"pearl-{name}", partial(_begin, self.cores, threads)) if thread_of is None else thread_of._worker
        )

    def run(self, work: Callable[[], T]) -> Job[T]:
        """Queue work; the job is its event: wait for it, take its result or its exception."""

        def infer() -> T:
            with torch.inference_mode():
                return work()

        return self._worker.submit(infer)

    def shares_thread(self, other: CpuLane) -> bool:
        return self._worker is other._worker

    def note(self, start: float, end: float, count: int = 1) -> None:
        """Forwards that ran one after another, each as long as the others."""
        each = (end - start) / count
        for index in range(count):
            self.times.add(start + index * each, start + (index + 1) * each)

    @contextmanager
    def forward(self, count: int = 1) -> Iterator[None]:
        """Wraps each model forward, or as many in one call, so that the lane can time it."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.note(start, time.perf_counter(), count)

    def settle(self) -> None:
        """Wait for what was queued, unless this is a lane's own thread."""
        self._run_last(lambda: None)

    def rest(self) -> None:
        """End its threads of torch's until there is work again, so that they are in the way of no others."""
        self._run_last(release_threads)

    def _run_last(self, work: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # of a lane that is closed, whose threads have ended
            last = self._worker.submit(work)
            if not on_worker():
                last.result()

    def close(self) -> None:
        """Finish what runs, drop what waits, end the thread."""
        self._worker.close()


def _begin(cores: Sequence[int], threads: int) -> None:
    # Affinity and thread count belong to the calling thread; compute threads it starts inherit the cores.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.get_num_threads()  # or torch would set it later, to what any thread was given last
    torch.set_num_threads(threads)


def available_cores() -> list[int]:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def lane_pair(concurrent: bool, *, by_kernels: bool = False, threads: int | None = None) -> tuple[CpuLane, CpuLane]:
    """Target and draft lane. Concurrent ones share the cores out: one to the draft, the rest to the target; others have
    all the cores each, and one thread.

    by_kernels: whether our kernels run the target. They take what they get of a core, so of two cores it has both, and
                the draft is in its way for as long as it computes, which is not long. torch's threads would stand still
    threads:    the most of each lane, as there
    """
    cores = available_cores()
    if concurrent and len(cores) > 1:
        of_target = cores if by_kernels and len(cores) == 2 else cores[:-1]
        return CpuLane("target", of_target, threads=threads), CpuLane("draft", cores[-1:], threads=threads)
    target = CpuLane("target", cores, threads=threads)
    return target, CpuLane("draft", cores, thread_of=target)
