"""`window_linear` in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from pearl_kernels.window_linear import Linear


@torch.no_grad()
def window_linear_out(x: Tensor, layers: Sequence[Linear], outs: Sequence[Tensor]) -> None:
    """Widen the weights and multiply, as `pearl_kernels.window_linears` says."""
    for layer, out in zip(layers, outs, strict=True):
        out.copy_(linear(x, layer.widened(), layer.bias))
