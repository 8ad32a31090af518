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
from pearl_kernels.window_linear._native import Described, described

DescribedLayer = tuple[tuple[int, ...], float, tuple[Described, ...]]
LayerSizes = tuple[int, int, int, int, int, int, int, int]

# Of weights, by where they are: a layer's stay where they are for thousands of calls.
_KNOWN: WeakKeyDictionary[LayerWeights, tuple[list[int], DescribedLayer]] = WeakKeyDictionary()


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
    """`pearl_kernels.window_layer` of CPU tensors."""
    if weights.dtype is not torch.float32:
        raise ValueError(f"cpu backend: x must be float32, got {weights.dtype}")
    out = torch.empty_like(x)
    _C.window_layer(
        layer_sizes(x.shape[0], x.shape[1], weights, k_cache),
        x.data_ptr(),
        described_layer(weights),
        by_heads(k_cache),
        by_heads(v_cache),
        (cos.data_ptr(), sin.data_ptr(), 0 if cos.shape[0] == 1 else cos.stride(0)),
        seq_lens.data_ptr(),
        scale,
        out.data_ptr(),
        num_threads(),
    )
    return out


def layer_sizes(batch: int, width: int, weights: LayerWeights, cache: Tensor) -> LayerSizes:
    """The sizes of a layer, and of all that are like it, as the extension takes them."""
    size, heads, kv_heads, head_dim, inner = weights.sizes
    return batch, width, size, heads, kv_heads, head_dim, inner, cache.shape[2]


def described_layer(weights: LayerWeights) -> DescribedLayer:
    """A layer's weights as the extension takes them."""
    places = [tensor.data_ptr() for tensor in weights.tensors]
    known = _KNOWN.get(weights)
    if known is None or known[0] != places:
        norms = tuple(address(norm) for norm in weights.norms)
        linears = tuple(described(linear) for linear in weights.linears)
        _KNOWN[weights] = known = places, (norms, weights.eps, linears)
    return known[1]
