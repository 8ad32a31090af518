"""Memory in pages of megabytes, for what is read from end to end, time and again.

Pages of 4 KiB are more than a processor remembers the places of, and none fetches ahead from one to the next: a forward
that reads hundreds of megabytes out of them takes longer (bench/bench_forward.py), as does attention over a long cache.
To get a page from the system takes long too, on virtual machines above all, so what nobody uses any more is kept for
the next who asks; the system may have it back as soon as it runs short.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 64 << 20  # bytes that are taken at once; those that nobody touches cost nothing
LINE = 64  # bytes of a cache line
MOST_SPARE = 8

_spare: list[mmap.mmap] = []  # chunks that nobody uses, the last one last


class HugePages:
    """Tensors on a CPU that lie one after the other, in huge pages where the system has some to give.

    When nothing near it is in use any more, and this object is gone, memory is spare, or goes back to the system.

    spare: which of the two
    """

    def __init__(self, *, spare: bool = True) -> None:
        self._spare = spare
        self._chunk: NDArray[np.uint8] | None = None
        self._is_new = True
        self._used = 0

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As torch.zeros."""
        found = self.empty(shape, dtype)
        return found if self._is_new else found.zero_()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As torch.empty: it may hold anything."""
        count = prod(shape)
        size = count * dtype.itemsize
        if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.zeros(shape, dtype=dtype)
        if self._chunk is None or self._used + size > len(self._chunk):
            (self._chunk, self._is_new), self._used = _chunk(max(CHUNK, size), self._spare), 0
        found = torch.frombuffer(self._chunk, dtype=dtype, count=count, offset=self._used)
        self._used += -(-size // LINE) * LINE
        return found.view(tuple(shape))


def _chunk(size: int, spare: bool) -> tuple[NDArray[np.uint8], bool]:
    """A chunk of at least so many bytes, to be spare again or not; and whether it is new: all zeros."""
    chunk, is_new = _taken(size) if spare else None, False
    if chunk is None:
        chunk, is_new = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), True
        with suppress(OSError):  # of a system that has none
            chunk.madvise(mmap.MADV_HUGEPAGE)
    lent = np.frombuffer(chunk, dtype=np.uint8)
    if spare:
        weakref.finalize(lent, _keep, chunk).atexit = False
    return lent, is_new


def _taken(size: int) -> mmap.mmap | None:
    """The smallest spare chunk that is large enough."""
    for chunk in sorted(_spare, key=len):
        if len(chunk) >= size:
            with suppress(ValueError):  # another thread was faster
                _spare.remove(chunk)
                return chunk
    return None


def _keep(chunk: mmap.mmap) -> None:
    """This may run at any time, in any thread."""
    with suppress(AttributeError, OSError):  # of a system that cannot take it as it needs it
        chunk.madvise(mmap.MADV_FREE)
        _spare.append(chunk)
        del _spare[:-MOST_SPARE]
