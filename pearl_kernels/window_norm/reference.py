"""`window_norm` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def window_norm_out(x: Tensor, weight: Tensor, eps: float, offset: float, out: Tensor) -> None:
    """Square, average, divide and weigh, as `pearl_kernels.window_norm` says."""
    wide = x.float()
    mean = wide.pow(2).mean(-1, keepdim=True)
    out.copy_(wide * (mean + eps).rsqrt() * (weight.float() + offset))
