"""`window_layer` on a GPU: torch's matrix products, and kernels of Triton between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from torch.nn.functional import linear

from pearl_kernels._triton.launch import FUSED
from pearl_kernels._triton.layer import gate_rows, place_heads
from pearl_kernels.window_attention import window_attention
from pearl_kernels.window_layer.weights import LayerWeights, as_one
from pearl_kernels.window_linear import Linear
from pearl_kernels.window_norm._triton import window_norm_out

GATE_BLOCK = 1024


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
    caches_only: bool = False,
) -> Tensor:
    """`pearl_kernels.window_layer`: four launches beside four products and the attention, and no other.

    cos, sin:    or (positions, head_dim), of every position there may be, as `window_decoder` takes them
    caches_only: no more is computed than what is stored in the caches; x is returned
    """
    if any(each.scale is not None or each.weight.dtype is not x.dtype or each.is_packed for each in weights.linears):
        raise ValueError(f"triton backend: weights must be {x.dtype} like x, and not packed")
    (batch, width, size), (heads, kv_heads, head_dim) = x.shape, (weights.heads, weights.kv_heads, weights.head_dim)
    q, k, v, output, gate, up, down = weights.linears
    attention_norm, mlp_norm, q_norm, k_norm = weights.norms
    assert attention_norm is not None
    assert mlp_norm is not None
    hidden, queries = x.new_empty(batch * width, size), x.new_empty(batch, width, heads, head_dim)
    starts = torch.empty_like(seq_lens)
    with torch.cuda.device_of(x):
        joined = _products(_normed(x.view(-1, size), attention_norm, weights.eps, copy=hidden), (q, k, v))
        place_heads[(batch * width, heads + 2 * kv_heads)](
            joined, q_norm, k_norm, cos, sin, _angles_batch_stride(cos), len(cos), seq_lens, starts,
            queries, k_cache, v_cache, *k_cache.stride()[:3], *v_cache.stride()[:3],
            width, heads, kv_heads, head_dim, k_cache.shape[2], weights.eps,
            HALF=triton.next_power_of_2(head_dim // 2), num_warps=1, **FUSED,
        )  # fmt: skip
        if caches_only:
            return x
        attended = window_attention(queries, k_cache, v_cache, None, None, starts, scale=scale)
        _add_product(hidden, attended.view(batch * width, heads * head_dim), output)
        joined = _products(_normed(hidden, mlp_norm, weights.eps), (gate, up))
        gated = x.new_empty(batch * width, weights.inner)
        gate_rows[(batch * width, triton.cdiv(weights.inner, GATE_BLOCK))](
            joined, gated, weights.inner, BLOCK=GATE_BLOCK, num_warps=4, **FUSED
        )
        _add_product(hidden, gated, down)
    return hidden.view(batch, width, size)


def _angles_batch_stride(cos: Tensor) -> int | None:
    if cos.ndim == 2:
        return None
    return 0 if len(cos) == 1 else cos.stride(0)


def _normed(rows: Tensor, weight: Tensor, eps: float, copy: Tensor | None = None) -> Tensor:
    out = torch.empty_like(rows)
    window_norm_out(rows, weight, eps, 0.0, out, copy)
    return out


def _products(rows: Tensor, layers: Sequence[Linear]) -> Tensor:
    """Of the rows with all layers, one beside the other. One product, where the weights follow each other in memory."""
    weight, bias = as_one([each.weight for each in layers]), as_one([each.bias for each in layers])
    if weight is None or (bias is None and any(each.bias is not None for each in layers)):
        return torch.cat([linear(rows, each.weight, each.bias) for each in layers], dim=-1)
    return linear(rows, weight, bias)


def _add_product(rows: Tensor, factor: Tensor, layer: Linear) -> None:
    """rows += the product of the layer, in place."""
    rows.addmm_(factor, layer.weight.detach().t())
    if layer.bias is not None:
        rows += layer.bias
