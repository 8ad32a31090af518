"""`window_norm` in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import address


def window_norm_out(x: Tensor, weight: Tensor, eps: float, offset: float, out: Tensor) -> None:
    """Normalise the contiguous rows of CPU tensors, as `pearl_kernels.window_norm` says."""
    if x.dtype is not torch.float32:
        raise ValueError(f"cpu backend: x must be float32, got {x.dtype}")
    size = weight.shape[0]
    _C.window_norm(address(x), x.numel() // size if size else 0, size, address(weight), offset, eps, out.data_ptr())
