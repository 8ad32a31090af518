"""`window_linear` in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import linear


def window_linear_out(x: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]], outs: Sequence[Tensor]) -> None:
    """Widen the weights and multiply, as `pearl_kernels.window_linears` says."""
    for (weight, bias), out in zip(layers, outs, strict=True):
        out.copy_(linear(x, weight.float(), bias))
