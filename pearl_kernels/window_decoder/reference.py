"""`window_decoder` as the operations it is equivalent to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from pearl_kernels.window_decoder.window import Window
from pearl_kernels.window_layer import window_layer
from pearl_kernels.window_linear import Linear, window_linear
from pearl_kernels.window_norm import window_norm


def one_by_one(window: Window, keep: int, backend: str | None) -> Tensor:
    """`pearl_kernels.window_decoder`, one operation after the other."""
    tokens, weights, cos, sin, k_caches, v_caches, seq_lens, scale = window
    starts = seq_lens.clamp(0, k_caches.shape[3] - tokens.shape[1])
    positions = (starts[:, None] + torch.arange(tokens.shape[1], device=tokens.device)).clamp(max=len(cos) - 1)
    cos, sin = cos[positions], sin[positions]
    x = weights.embedding[tokens.clamp(0, len(weights.embedding) - 1)].to(weights.dtype)
    for layer, k_cache, v_cache in zip(weights.layers, k_caches, v_caches, strict=True):
        x = window_layer(x, layer, cos, sin, k_cache, v_cache, seq_lens, scale=scale, backend=backend)
    last = x[:, x.shape[1] - keep :]
    return _product(window_norm(last, weights.norm, eps=weights.eps, backend=backend), weights.head, backend)


def _product(rows: Tensor, head: Linear, backend: str | None) -> Tensor:
    if rows.dtype is torch.float32:
        return window_linear(rows, *head, backend=backend)
    return linear(rows, head.widened(rows.dtype), head.bias)


def window_decoder(window: Window, keep: int) -> Tensor:
    """`pearl_kernels.window_decoder` in plain torch."""
    return one_by_one(window, keep, "reference")
