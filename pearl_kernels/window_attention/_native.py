"""`window_attention` in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import DTYPES, address
from pearl_kernels.threads import num_threads

_NONE = (0, 0, 0, 0)


def window_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_new: Tensor | None,
    v_new: Tensor | None,
    seq_lens: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """`pearl_kernels.window_attention` of CPU tensors. A key head's entries are read once for up to 32 queries."""
    (batch, width, heads, dim), (kv_heads, capacity) = q.shape, k_cache.shape[1:3]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lengths = seq_lens.long()
    _C.window_attention(
        DTYPES[q.dtype], (batch, width, heads, kv_heads, dim, capacity), _by_rows(q), by_heads(k_cache),
        by_heads(v_cache), _by_rows(k_new), _by_rows(v_new),
        address(lengths), scale, window or 0, softcap or 0.0, address(out), num_threads(),
    )  # fmt: skip
    return out


def by_heads(tensor: Tensor) -> tuple[int, int, int, int]:
    """tensor: (batch, heads, positions, head_dim)"""
    batch_stride, head_stride, row_stride, _ = tensor.stride()
    return tensor.data_ptr(), batch_stride, head_stride, row_stride


def _by_rows(tensor: Tensor | None) -> tuple[int, int, int, int]:
    """tensor: (batch, width, heads, head_dim)"""
    if tensor is None:
        return _NONE
    batch_stride, row_stride, head_stride, _ = tensor.stride()
    return tensor.data_ptr(), batch_stride, head_stride, row_stride
