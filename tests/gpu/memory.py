"""The memory that the cuda backend's blocks talk through, as tensors."""

from __future__ import annotations

import ctypes
import importlib
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """counters: (n,) bytes, zeros between operations; scratch: (n,) bytes of anything"""

    counters: Tensor
    scratch: Tensor


class _Bytes:
    """Memory of a GPU, as torch takes it."""

    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False), "shape": (count,), "typestr": "|u1", "version": 3,
        }  # fmt: skip


def memories() -> list[Memory]:
    """All that is in use or kept for a capture; device -1 is the CPU, where CUDA is emulated."""
    extension = importlib.import_module("pearl_kernels.sample._cuda")._C
    return [
        Memory(_bytes(device, counters, counters_bytes), _bytes(device, scratch, scratch_bytes))
        for device, counters, counters_bytes, scratch, scratch_bytes in extension.cuda_memory()
    ]


def poison_scratch() -> None:
    """Fills it with NaN, once all work is done. The counters must be zeros by then."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    for memory in memories():
        assert not memory.counters.any()
        memory.scratch.fill_(0xFF)


def _bytes(device: int, address: int, count: int) -> Tensor:
    if device < 0:
        return torch.frombuffer((ctypes.c_uint8 * count).from_address(address), dtype=torch.uint8)
    return torch.as_tensor(_Bytes(address, count), device=torch.device("cuda", device))
