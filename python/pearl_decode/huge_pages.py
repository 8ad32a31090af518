"""Memory in pages of megabytes, for what is read from end to end, time and again.

Pages of 4 KiB are more than a processor remembers the places of, and none fetches ahead from one to the next: a forward
that reads hundreds of megabytes out of them takes longer (bench/bench_forward.py), as does attention over a long cache.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

CHUNK = 64 << 20  # bytes that are taken at once; those that nobody touches cost nothing
LINE = 64  # bytes of a cache line


class HugePages:
    """Tensors on a CPU that lie one after the other, in huge pages where the system has some to give.

    Memory goes back to the system when nothing near it is in use any more, and this object is gone.
    """

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As torch.zeros."""
        count = prod(shape)
        size = count * dtype.itemsize
        if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.zeros(shape, dtype=dtype)
        if self._chunk is None or self._used + size > len(self._chunk):
            self._chunk, self._used = _chunk(max(CHUNK, size)), 0
        found = torch.frombuffer(self._chunk, dtype=dtype, count=count, offset=self._used)
        self._used += -(-size // LINE) * LINE
        return found.view(tuple(shape))


def _chunk(size: int) -> mmap.mmap:
    chunk = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # of a system that has none
        chunk.madvise(mmap.MADV_HUGEPAGE)
    return chunk
