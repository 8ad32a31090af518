"""`window_linear` in C++."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import DTYPES, address
from pearl_kernels.threads import num_threads


def window_linear_out(x: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]], outs: Sequence[Tensor]) -> None:
    """Multiply the contiguous rows of CPU tensors, as `pearl_kernels.window_linears` says."""
    inputs = x.shape[-1]
    _C.window_linear(
        address(x),
        x.numel() // inputs if inputs else outs[0].numel() // max(1, outs[0].shape[-1]),
        inputs,
        inputs,
        [
            (
                w.data_ptr(),
                DTYPES[w.dtype],
                w.shape[0],
                w.stride(0),
                0 if bias is None else address(bias),
                out.data_ptr(),
            )
            for (w, bias), out in zip(layers, outs, strict=True)
        ],
        num_threads(),
    )
