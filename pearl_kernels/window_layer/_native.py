"""`window_layer` in C++."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import address
from pearl_kernels.threads import num_threads
from pearl_kernels.window_attention._native import by_heads
from pearl_kernels.window_layer.weights import LayerWeights
from pearl_kernels.window_linear._native import packed

# Of weights, by where they are: a layer's stay where they are for thousands of calls.
_PACKED: WeakKeyDictionary[LayerWeights, tuple[list[int], tuple[int, ...], tuple[tuple[int, ...], ...]]] = (
    WeakKeyDictionary()
)


def window_layer(
    x: Tensor,
    weights: LayerWeights,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seq_lens: Tensor,
    scale: float,
) -> Tensor:
    """`pearl_kernels.window_layer` of CPU tensors, in one call."""
    out = torch.empty_like(x)
    norms, linears = _packed(weights)
    batch, width, size = x.shape
    _C.window_layer(
        (batch, width, size, weights.heads, weights.kv_heads, weights.head_dim, weights.inner, k_cache.shape[2]),
        x.data_ptr(), norms, weights.eps, linears,
        (cos.data_ptr(), sin.data_ptr(), 0 if cos.shape[0] == 1 else cos.stride(0)),
        by_heads(k_cache), by_heads(v_cache), seq_lens.data_ptr(), scale, out.data_ptr(), num_threads(),
    )  # fmt: skip
    return out


def _packed(weights: LayerWeights) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    places = [tensor.data_ptr() for tensor in weights.tensors]
    known = _PACKED.get(weights)
    if known is None or known[0] != places:
        norms = tuple(address(norm) for norm in weights.norms)
        linears = tuple(packed(linear) for linear in weights.linears)
        _PACKED[weights] = known = places, norms, linears
    return known[1:]
