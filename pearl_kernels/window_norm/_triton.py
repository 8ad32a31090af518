"""`window_norm` in Triton: one program for each row."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from pearl_kernels._triton.launch import FUSED
from pearl_kernels._triton.layer import norm_rows


def window_norm_out(
    x: Tensor, weight: Tensor, eps: float, offset: float, out: Tensor, copy: Tensor | None = None
) -> None:
    """As `pearl_kernels.window_norm` says. copy: like x, which is then written there too

    x, out: contiguous
    """
    size = x.shape[-1]
    block = triton.next_power_of_2(size)
    if x.numel():
        with torch.cuda.device_of(x):
            norm_rows[(x.numel() // size,)](
                x, weight, copy, out, size, eps, offset, BLOCK=block, num_warps=warps_of(block), **FUSED
            )


def warps_of(block: int) -> int:
    """Of a program for a row of so many numbers: 16 for each thread."""
    return min(16, max(1, block // 512))
