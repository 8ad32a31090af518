"""The compute threads of the kernels on a CPU, and of torch beside them."""

from __future__ import annotations

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

    Torch's other threads wait awake for milliseconds after each operation they had a part in, on the cores that the
    kernels' helpers need. So this is for a sequence of kernels and small operations, as a forward over few rows is.
    """
    before, lent = torch.get_num_threads(), _lent.threads
    _lent.threads = num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _lent.threads = lent
