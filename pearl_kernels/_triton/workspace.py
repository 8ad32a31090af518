"""Memory for what the programs of a call tell each other.

It is taken once and kept: a call as large as one before on its stream allocates nothing and queues kernels alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

# Counters set aside, zeros already, for calls that are captured: theirs have to be zeros whenever a graph runs. Each
# such call keeps its own for good, as nobody says when the last graph that has it is gone.
RESERVED_COUNTERS = 1 << 18


class Size(NamedTuple):
    """What a call needs memory for. groups: of requests that programs take together"""

    groups: int
    batch: int
    width: int
    sides: int  # of which rows are swept: 2 with the draft's
    slices: int


class Scratch(NamedTuple):
    """One call's memory: anything but for the counters, which are zeros between calls.

    rows: of (batch, width), then those of the draft
    """

    row_counters: Tensor  # (groups, sides, width) int32
    request_counters: Tensor  # (groups,) int32
    prefix_weights: Tensor  # (batch, width) float64
    weights: Tensor  # (batch,) float64
    scores: Tensor  # (rows or batch, slices) float64
    left_scores: Tensor  # (batch, slices) float64
    maxima: Tensor  # (rows, slices) float32
    sums: Tensor  # (rows, slices) float32
    thresholds: Tensor  # (rows,) float32
    lses: Tensor  # (rows,) float32
    best_ids: Tensor  # (rows, slices) int32
    winners: Tensor  # (rows, slices) int32
    left_ids: Tensor  # (batch, slices) int32
    statuses: Tensor  # (rows,) int32
    own: Tensor  # (rows,) int32
    columns: Tensor  # (batch,) int32
    purposes: Tensor  # (batch,) int32
    bits: Tensor  # (batch,) int32
    usable_lengths: Tensor  # (batch,) int32
    draft_thresholds: Tensor  # of the draft's rows alone, if they are swept
    draft_lses: Tensor
    draft_statuses: Tensor


def aligned(length: int, itemsize: int) -> int:
    """Triton compiles another kernel for memory that does not begin at a multiple of 16 bytes."""
    per_line = 16 // itemsize
    return -(-length // per_line) * per_line


def row_counters_of(size: Size) -> int:
    return aligned(size.groups * size.sides * size.width, 4)


def counters_of(size: Size) -> int:
    return row_counters_of(size) + aligned(size.groups, 4)


def parts_of(size: Size) -> list[tuple[torch.dtype, int]]:
    """Type and length of what follows the counters in Scratch, widest types first."""
    rows = size.sides * aligned(size.batch * size.width, 4)  # where the draft's begin, kernels know
    of_rows, of_requests = rows * size.slices, size.batch * size.slices
    doubles = (size.batch * size.width, size.batch, of_rows, of_requests)
    floats = (of_rows, of_rows, rows, rows)
    ints = (of_rows, of_rows, of_requests, rows, rows, *(size.batch,) * 4)
    types = (*(torch.float64,) * len(doubles), *(torch.float32,) * len(floats), *(torch.int32,) * len(ints))
    lengths = (*doubles, *floats, *ints)
    return [(dtype, aligned(length, dtype.itemsize)) for dtype, length in zip(types, lengths, strict=True)]


def carve(size: Size, counters: Tensor, memory: Tensor) -> Scratch:
    """Share out memory of `bytes_of(size)` bytes."""
    of_rows = row_counters_of(size)
    views, begin = [], 0
    for dtype, length in parts_of(size):
        end = begin + length * dtype.itemsize
        views.append(memory[begin:end].view(dtype))
        begin = end
    thresholds, lses, statuses = views[6], views[7], views[11]
    rows = aligned(size.batch * size.width, 4)
    of_drafts = (each[rows:] for each in (thresholds, lses, statuses))
    return Scratch(counters[:of_rows], counters[of_rows : counters_of(size)], *views, *of_drafts)


def bytes_of(size: Size) -> int:
    return sum(dtype.itemsize * length for dtype, length in parts_of(size))


def lasting(make: Callable[..., Tensor], length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that is kept, for the current stream.

    By another thread on a GPU: what this one allocates may go to a pool that will be used for other things, as while
    torch.compile warms up graphs of its own.
    """
    if device.type != "cuda":
        return make(length, dtype=dtype, device=device)
    stream = torch.cuda.current_stream(device)

    def work() -> Tensor:
        with torch.cuda.stream(stream):
            return make(length, dtype=dtype, device=device)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


@dataclass(eq=False)
class Slot:
    """The memory of a stream. turn: held while a call is queued, as threads that share a stream would mix theirs"""

    turn: threading.Lock = field(default_factory=threading.Lock)
    counters: Tensor | None = None
    memory: Tensor | None = None
    carved: dict[Size, Scratch] = field(default_factory=dict)

    def scratch(self, size: Size, device: torch.device) -> Scratch:
        """What was outgrown goes back to torch, which gives it to work queued later on the same stream alone."""
        found = self.carved.get(size)
        if found is not None:
            return found
        counters, memory = counters_of(size), bytes_of(size)
        if self.counters is None or len(self.counters) < counters:
            self.counters, self.carved = lasting(torch.zeros, counters, torch.int32, device), {}
        if self.memory is None or len(self.memory) < memory:
            self.memory, self.carved = lasting(torch.empty, memory, torch.uint8, device), {}
        scratch = self.carved[size] = carve(size, self.counters, self.memory)
        return scratch


@dataclass(eq=False)
class Reserve:
    """Zeros of a device, handed out once."""

    chunks: list[Tensor] = field(default_factory=list)  # all of them: graphs count there
    used: int = RESERVED_COUNTERS

    def refill(self, device: torch.device) -> None:
        """Outside a capture, and ready when it returns."""
        if self.used <= RESERVED_COUNTERS // 2:
            return
        self.chunks.append(lasting(torch.zeros, RESERVED_COUNTERS, torch.int32, device))
        torch.cuda.current_stream(device).synchronize()
        self.used = 0

    def take(self, count: int, device: torch.device) -> Tensor:
        if self.used + count > RESERVED_COUNTERS:  # the graph then has to write them before each run
            return torch.zeros(count, dtype=torch.int32, device=device)
        self.used += count
        return self.chunks[-1][self.used - count : self.used]


_mutex = threading.Lock()
_slots: dict[tuple[torch.device, int], Slot] = {}
_reserves: dict[torch.device, Reserve] = {}


@contextmanager
def workspace(size: Size, device: torch.device) -> Iterator[Scratch]:
    """Memory for one call, to be queued on the current stream before this ends.

    A captured call has memory of its own, which the graph's pool keeps for it: the graph may run beside other work.
    """
    stream = 0
    if device.type == "cuda":
        with _mutex:
            reserve = _reserves.setdefault(device, Reserve())
            if torch.cuda.is_current_stream_capturing():
                counters = reserve.take(counters_of(size), device)
                memory = torch.empty(bytes_of(size), dtype=torch.uint8, device=device)
                captured = carve(size, counters, memory)
            else:
                reserve.refill(device)
                captured = None
        if captured is not None:
            yield captured
            return
        stream = torch.cuda.current_stream(device).cuda_stream
    with _mutex:
        slot = _slots.setdefault((device, stream), Slot())
    with slot.turn:
        yield slot.scratch(size, device)
