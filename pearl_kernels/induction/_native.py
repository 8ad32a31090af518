"""`induce_` in C++."""

from __future__ import annotations

from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import address, logits_view


def induce_(logits: Tensor, tokens: Tensor, lengths: Tensor, strengths: Tensor, d2t: Tensor | None) -> None:
    """`pearl_kernels.induce_` of CPU tensors. It looks from the end of a text towards its beginning."""
    batch, capacity = tokens.shape
    _C.induce(
        logits_view(logits), address(d2t), (tokens.data_ptr(), tokens.stride(0), batch, capacity), address(lengths),
        address(strengths), len(strengths),
    )  # fmt: skip
