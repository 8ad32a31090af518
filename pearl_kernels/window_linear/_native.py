"""`window_linear` in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import DTYPES, address


def window_linear_out(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Multiply the contiguous rows of CPU tensors, as `pearl_kernels.window_linear` says."""
    outputs, inputs = weight.shape
    _C.window_linear(
        address(x),
        out.numel() // outputs if outputs else 0,
        inputs,
        weight.data_ptr(),
        DTYPES[weight.dtype],
        outputs,
        inputs,
        weight.stride(0),
        address(bias),
        address(out),
        torch.get_num_threads(),
    )
