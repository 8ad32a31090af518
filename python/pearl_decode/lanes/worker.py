"""A thread that does what it is given, one piece after the other."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_here = threading.local()


def on_worker() -> bool:
    """Whether the calling thread is a worker, which would wait for itself, or another for it.

    It may be where nobody meant it to: the collector ends what nobody refers to any more on any thread.
    """
    return getattr(_here, "works", False)


class Job(Generic[T]):
    """A piece of work, and, when it is done, what came of it.

    Who waits for it may be interrupted anywhere in here: the worker goes on, and so does who waits again. (Those who
    wait for a `concurrent.futures.Future` may be interrupted while they hold a lock that the worker needs.)
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._value: T
        self._error: BaseException | None = None
        self.done = False
        # Each is who waits's own: one that is interrupted may leave it in any state.
        self._undone: list[threading.Lock] = []

    def do(self) -> None:
        """The worker's part."""
        assert self._work is not None
        try:
            self._value = self._work()
        except BaseException as error:  # whoever asks for the result gets it
            self._error = error
        self._end()

    def drop(self) -> None:
        """In place of doing it."""
        self._error = RuntimeError("the lane was closed before this was done")
        self._end()

    def _end(self) -> None:
        self._work = None  # and what it holds
        self.done = True
        for lock in self._undone:
            lock.release()

    @property
    def failed(self) -> bool:
        """Whether it is done, and raised, or was dropped."""
        return self._error is not None

    def wait(self, timeout_s: float = -1) -> None:
        """Until it is done, or for so long."""
        lock = threading.Lock()
        lock.acquire()
        self._undone.append(lock)
        if not self.done:
            lock.acquire(timeout=timeout_s)

    def result(self) -> T:
        """What it returned, or raised, when it is done."""
        self.wait()
        try:
            if self._error is not None:
                raise self._error
            return self._value
        finally:
            del self  # which the error's traceback would hold, and with it all that its frames do


class Worker:
    """The thread. It ends when it is closed, collected, or Python ends.

    begin: what it does before all else; what that raises is raised
    """

    def __init__(self, name: str, begin: Callable[[], None]) -> None:
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._process = os.getpid()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()
        self._close = weakref.finalize(self, _end, self._jobs, self._thread)
        self.submit(begin).result()

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Raises RuntimeError if it is closed, or of another process, from which this one was forked."""
        if not self._close.alive:
            raise RuntimeError("the lane is closed")
        if self._process != os.getpid():
            raise RuntimeError("the lane has no thread in this process, which was forked from the one it was made in")
        job = Job(work)
        self._jobs.put(job)
        if not self._close.alive:
            _drop(self._jobs)  # closed just now: this may have come after the end
        return job

    def close(self) -> None:
        """Finish what it is at, drop what waits, and end."""
        self._close()


def _work(jobs: SimpleQueue[Job[Any] | None]) -> None:
    _here.works = True
    while (job := jobs.get()) is not None:
        job.do()
        del job  # or its result would be kept until there is another


def _end(jobs: SimpleQueue[Job[Any] | None], thread: threading.Thread) -> None:
    _drop(jobs)
    if not on_worker():
        thread.join()


def _drop(jobs: SimpleQueue[Job[Any] | None]) -> None:
    """Let none wait, and the thread end."""
    with suppress(Empty):
        while True:
            job = jobs.get_nowait()
            if job is not None:
                job.drop()
    jobs.put(None)
