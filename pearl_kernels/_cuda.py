"""Where CUDA kernels are queued."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pearl_kernels import captures

MOST_WIDTH = 64  # kMostCudaWidth of csrc/verify/chain_cuda.h

# (device, stream, multiprocessors of the device, the first number of its compute capability), as
# csrc/common/cuda/queue.h has it
Queue = tuple[int, int, int, int]


def unfit(width: int) -> tuple[str, ...]:
    """What `choose` is not to pick for chains of this length."""
    return ("cuda",) if width > MOST_WIDTH else ()


def queue(logits: Tensor, width: int) -> Queue:
    """The current stream of the logits' device. width: rows that each of the batch has, at most MOST_WIDTH

    The memory that the kernels' blocks talk through is the extension's own: one piece for each stream, and one for each
    captured graph. csrc/common/cuda/memory.h says how it is kept.
    """
    if width > MOST_WIDTH:
        raise ValueError(f"cuda backend: chains must be at most {MOST_WIDTH} long, got width={width}")
    device = logits.device
    return logits.get_device(), _stream(device), *_properties(device)


def launch(operation: Callable[..., None], *arguments: Any) -> None:
    """Queue an operation of the extension.

    The memory that its blocks talk through is not torch's: where there is none left, which is a MemoryError before
    anything is queued, torch gives back what it holds without using it, but not in a capture, and not beside those of
    other threads that hold `captures.turn`, and the operation is queued then. Raises torch.OutOfMemoryError, or
    RuntimeError where a kernel cannot be queued: those before it were, so that what they write is of no use.
    """
    for again in (True, False):
        try:
            operation(*arguments)
        except MemoryError as error:
            if not again or torch.cuda.is_current_stream_capturing():
                raise torch.OutOfMemoryError("cuda backend: out of memory") from error
        else:
            return
        with captures.turn:
            torch.cuda.empty_cache()


def _stream(device: torch.device) -> int:
    handle: int = torch.cuda.current_stream(device).cuda_stream
    return handle


@functools.cache
def _properties(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.major
