"""`window_layer` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from pearl_kernels.window_attention.reference import window_attention
from pearl_kernels.window_layer.weights import LayerWeights


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight.to(x.dtype)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """heads: (batch, width, heads, head_dim)"""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos[:, :, None] + torch.cat((-second, first), dim=-1) * sin[:, :, None]


@torch.no_grad()
def window_layer(
    x: Tensor,
    weights: LayerWeights,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`pearl_kernels.window_layer`, computed in dtype; the cache has its own."""
    q, k, v, output, gate, up, down = (
        (each.widened(dtype), None if each.bias is None else each.bias.to(dtype)) for each in weights.linears
    )
    attention_norm, mlp_norm, q_norm, k_norm = weights.norms
    given, x, cos, sin = x.dtype, x.to(dtype), cos.to(dtype), sin.to(dtype)

    def heads_of(rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:-1], rows.shape[-1] // weights.head_dim, weights.head_dim)

    rows = _norm(x, attention_norm, weights.eps)
    queries = _rotated(_norm(heads_of(linear(rows, *q)), q_norm, weights.eps), cos, sin)
    keys = _rotated(_norm(heads_of(linear(rows, *k)), k_norm, weights.eps), cos, sin)
    values = heads_of(linear(rows, *v))
    attended = window_attention(
        queries, k_cache, v_cache, keys, values, seq_lens.clamp(0, k_cache.shape[2] - x.shape[1]),
        scale, None, None, dtype=dtype,
    )  # fmt: skip
    x = x + linear(attended.flatten(2), *output)
    rows = _norm(x, mlp_norm, weights.eps)
    return (x + linear(silu(linear(rows, *gate)) * linear(rows, *up), *down)).to(given)
