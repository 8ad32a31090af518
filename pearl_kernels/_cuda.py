"""Where CUDA kernels are queued."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

MOST_WIDTH = 64  # kMostCudaWidth of csrc/verify/chain_cuda.h

# (device, stream, multiprocessors of the device, the first number of its compute capability), as
# csrc/common/cuda/queue.h has it
Queue = tuple[int, int, int, int]


def queue(logits: Tensor, width: int) -> Queue:
    """The current stream of the logits' device. width: rows that each of the batch has, at most MOST_WIDTH

    The memory that the kernels' blocks talk through is the extension's own: one piece for each stream, and one for each
    captured graph. csrc/common/cuda/memory.h says how it is kept.
    """
    if width > MOST_WIDTH:
        raise ValueError(f"cuda backend: chains must be at most {MOST_WIDTH} long, got width={width}")
    device = logits.device
    return logits.get_device(), _stream(device), *_properties(device)


def _stream(device: torch.device) -> int:
    handle: int = torch.cuda.current_stream(device).cuda_stream
    return handle


@functools.cache
def _properties(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.major
