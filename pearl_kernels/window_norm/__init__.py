"""The door of `window_norm`: the root-mean-square norm of a window's few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pearl_kernels.dispatch import choose, define, operation

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def window_norm(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0, backend: str | None = None) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps) * (weight + offset), the mean over each row.

    x:       (..., size), float32 on a CPU; on a GPU float32, bfloat16 or float16
    weight:  (size,) of the type of x, contiguous
    eps:     at least 0
    offset:  0, or what a model adds to its weights, as Gemma adds 1
    backend: None picks the best for the device

    Returns (..., size) like x, computed in float32. On the cpu backend each row's result is the same to the bit
    whatever rows are beside it. There is no derivative.
    Raises ValueError naming the argument, what was expected and what came.
    Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization.
    """
    if weight.dtype not in DTYPES or weight.device != x.device or weight.ndim != 1 or not weight.is_contiguous():
        raise ValueError(
            f"window_norm: weight must be (size,) float32, bfloat16 or float16 and contiguous on {x.device}, "
            f"got {weight.dtype} of shape {tuple(weight.shape)} on {weight.device}"
        )
    if x.dtype is not weight.dtype or x.shape[-1:] != weight.shape:
        raise ValueError(
            f"window_norm: x must be (..., {weight.shape[0]}) {str(weight.dtype)[6:]}, "
            f"got {x.dtype} of shape {tuple(x.shape)}"
        )
    if not eps >= 0:
        raise ValueError(f"window_norm: eps must be at least 0, got {eps!r}")
    out: Tensor = operation("window_norm", _window_norm)(x, weight, eps, offset, backend)
    return out


def _window_norm(x: Tensor, weight: Tensor, eps: float, offset: float, backend: str | None) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    choose("window_norm", x.device, backend)(x, weight, eps, offset, out)
    return out


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


define("window_norm(Tensor x, Tensor weight, float eps, float offset, str? backend) -> Tensor", _window_norm, _fake)
