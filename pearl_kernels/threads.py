"""The compute threads of the kernels on a CPU, and of torch beside them."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Lent(threading.local):
    threads: int | None = None


_lent = _Lent()


def num_threads() -> int:
    """Threads that the calling thread's kernels share their work out to: as many as torch has, or had before
    `kernels_alone`."""
    return _lent.threads or torch.get_num_threads()


@contextmanager
def kernels_alone() -> Iterator[None]:
    """Within, the calling thread's kernels have all of torch's compute threads, and torch's own operations one.

    Outside, the two share torch's OpenMP threads, which wait awake for milliseconds after each operation, and all for
    the last of them. Within, kernels have helpers of their own, which soon sleep and are not waited for when they come
    late: on cores that are busy with other work a forward is several times as fast. So this is for a sequence of
    kernels and small operations, as a forward over few rows is.

    torch gives the number that any thread set last to threads that have not asked for theirs: one that first asks while
    another is within this has one, until it sets its own.
    """
    before, lent = torch.get_num_threads(), _lent.threads
    _lent.threads = num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _lent.threads = lent


def release_threads() -> None:
    """End the OpenMP threads that wait for the calling thread's next work; such work starts new ones.

    Every thread that calls torch has compute threads of its own. Where all of them together are more than there are
    cores, OpenMP no longer lets them wait awake, and work in many small pieces takes a third longer: so a thread that
    leaves the work to another one should let its own go.
    Does nothing where the extension or the OpenMP runtime cannot.
    """
    try:
        extension = importlib.import_module("pearl_kernels._C")
    except ImportError:
        return
    extension.release_threads()
