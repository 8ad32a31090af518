"""`window_decoder` in C++."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import DTYPES
from pearl_kernels.threads import num_threads
from pearl_kernels.window_attention._native import by_heads
from pearl_kernels.window_decoder.weights import DecoderWeights
from pearl_kernels.window_decoder.window import Window
from pearl_kernels.window_layer._native import described_layer, layer_sizes
from pearl_kernels.window_linear._native import described

# Of weights that are held. After a forward, which has read more than any cache keeps, to walk through all of them takes
# several times as long as otherwise.
_KNOWN: WeakKeyDictionary[DecoderWeights, _C.DecoderWeights] = WeakKeyDictionary()


def window_decoder(window: Window, keep: int) -> Tensor:
    """`pearl_kernels.window_decoder` of CPU tensors, in one call."""
    logits = window.cos.new_empty(len(window.tokens), keep, window.weights.head.out_features)
    _C.window_decoder(described_weights(window.weights), described_window(window), keep, logits.data_ptr())
    return logits


def described_weights(weights: DecoderWeights) -> _C.DecoderWeights:
    """A decoder's weights as the extension takes them."""
    known = _KNOWN.get(weights)
    if known is None:
        if weights.dtype is not torch.float32:
            raise ValueError(f"cpu backend: norms and biases must be float32, got {weights.dtype}")
        known = _C.DecoderWeights(
            (weights.embedding.data_ptr(), DTYPES[weights.embedding.dtype], weights.embedding.shape[0]),
            [described_layer(layer) for layer in weights.layers],
            (weights.norm.data_ptr(), weights.eps),
            described(weights.head),
        )
        if weights.memory:
            weights.hold()  # they may have moved since
            _KNOWN[weights] = known
    return known


def described_window(window: Window) -> tuple[Any, ...]:
    """A contiguous window, but for its weights, as the extension takes it."""
    tokens, weights, cos, sin, k_caches, v_caches, seq_lens, scale = window
    batch, width = tokens.shape
    return (
        layer_sizes(batch, width, weights.layers[0], k_caches[0]),
        tokens.data_ptr(),
        _by_layers(k_caches),
        _by_layers(v_caches),
        (cos.data_ptr(), sin.data_ptr(), len(cos)),
        seq_lens.data_ptr(),
        scale,
        num_threads(),
    )


def _by_layers(caches: Tensor) -> tuple[tuple[int, int, int, int], int]:
    """The first layer's cache, and the stride from layer to layer."""
    return by_heads(caches[0]), caches.stride(0)
