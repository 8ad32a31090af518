"""`window_layer` in C++."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import address
from pearl_kernels.threads import num_threads
from pearl_kernels.window_attention._native import by_heads
from pearl_kernels.window_layer.weights import LayerWeights
from pearl_kernels.window_linear._native import Described, described

_Described = tuple[tuple[int, ...], float, tuple[Described, ...]]

# Of weights, by where they are: a layer's stay where they are for thousands of calls.
_KNOWN: WeakKeyDictionary[LayerWeights, tuple[list[int], _Described]] = WeakKeyDictionary()


def window_layers(
    x: Tensor,
    layers: Sequence[LayerWeights],
    cos: Tensor,
    sin: Tensor,
    caches: Sequence[tuple[Tensor, Tensor]],
    seq_lens: Tensor,
    scale: float,
) -> Tensor:
    """`pearl_kernels.window_layers` of CPU tensors, in one call."""
    out = torch.empty_like(x)
    batch, width, size = x.shape
    one = layers[0]
    _C.window_layers(
        (batch, width, size, one.heads, one.kv_heads, one.head_dim, one.inner, caches[0][0].shape[2]),
        x.data_ptr(),
        [(*_described(weights), by_heads(k), by_heads(v)) for weights, (k, v) in zip(layers, caches, strict=True)],
        (cos.data_ptr(), sin.data_ptr(), 0 if cos.shape[0] == 1 else cos.stride(0)),
        seq_lens.data_ptr(), scale, out.data_ptr(), num_threads(),
    )  # fmt: skip
    return out


def _described(weights: LayerWeights) -> _Described:
    places = [tensor.data_ptr() for tensor in weights.tensors]
    known = _KNOWN.get(weights)
    if known is None or known[0] != places:
        norms = tuple(address(norm) for norm in weights.norms)
        linears = tuple(described(linear) for linear in weights.linears)
        _KNOWN[weights] = known = places, (norms, weights.eps, linears)
    return known[1]
