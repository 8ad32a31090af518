"""What `window_decoder` and `draft_chain` read: a window, the decoder, and where its caches are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels.window_decoder.weights import DecoderWeights


class Window(NamedTuple):
    """The arguments of these names of `window_decoder`."""

    tokens: Tensor
    weights: DecoderWeights
    cos: Tensor
    sin: Tensor
    k_caches: Tensor
    v_caches: Tensor
    seq_lens: Tensor
    scale: float

    def check(self, op: str) -> int:
        """Refuse a window that does not fit the decoder or its caches. Returns the capacity of these."""
        tokens, weights, cos, sin, k_caches, v_caches, seq_lens, _ = self
        if tokens.ndim != 2 or tokens.dtype is not torch.int64 or tokens.device != weights.norm.device:
            raise ValueError(
                f"{op}: tokens must be (batch, width) int64 on {weights.norm.device}, "
                f"got {tokens.dtype} of {tuple(tokens.shape)} on {tokens.device}"
            )
        (batch, width), device = tokens.shape, tokens.device
        angles = (("positions", max(1, cos.shape[0] if cos.ndim else 0)), ("head_dim", weights.head_dim))
        checks.tensor(op, "cos", cos, angles, weights.dtype, device)
        checks.tensor(op, "sin", sin, angles, weights.dtype, device)
        capacity = k_caches.shape[3] if k_caches.ndim == 5 else width
        sizes = (
            ("layers", len(weights.layers)), ("batch", batch), ("kv_heads", weights.kv_heads), ("capacity", capacity),
            ("head_dim", weights.head_dim),
        )  # fmt: skip
        for name, caches in (("k_caches", k_caches), ("v_caches", v_caches)):
            checks.tensor(op, name, caches, sizes, weights.dtype, device)
            if caches.stride(-1) != 1:
                raise ValueError(f"{op}: {name} must have a contiguous last dimension, got {caches.stride()}")
        if width > capacity:
            raise ValueError(f"{op}: k_caches must have a capacity of at least width={width}, got {capacity}")
        checks.tensor(op, "seq_lens", seq_lens, (("batch", batch),), torch.int64, device)
        return capacity

    def contiguous(self) -> Window:
        """The same, but for the caches, which may have any strides."""
        return self._replace(
            tokens=self.tokens.contiguous(), cos=self.cos.contiguous(), sin=self.sin.contiguous(),
            seq_lens=self.seq_lens.contiguous(),
        )  # fmt: skip
