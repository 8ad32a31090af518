"""`window_linear` in C++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import address
from pearl_kernels.threads import num_threads
from pearl_kernels.window_linear import Linear

# The numbers of csrc/window_linear/window_linear.h.
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
Described = tuple[int, int, int, int, bool, int, int, int]


def described(linear: Linear, out: Tensor | None = None) -> Described:
    """A layer as the extension takes it."""
    weight, bias, scale, _ = linear
    return (
        weight.data_ptr(), _TYPES[weight.dtype], linear.out_features, weight.stride(0), linear.is_packed, address(bias),
        address(scale), address(out),
    )  # fmt: skip


def window_linear_out(x: Tensor, layers: Sequence[Linear], outs: Sequence[Tensor]) -> None:
    """Multiply the contiguous rows of CPU tensors, as `pearl_kernels.window_linears` says."""
    inputs = x.shape[-1]
    _C.window_linear(
        address(x),
        x.numel() // inputs if inputs else outs[0].numel() // max(1, outs[0].shape[-1]),
        inputs,
        inputs,
        [described(layer, out) for layer, out in zip(layers, outs, strict=True)],
        num_threads(),
    )
