"""`window_decoder` on a GPU: its layers, and as little as can be before and after them."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from pearl_kernels._triton.decoder import enter_rows
from pearl_kernels._triton.launch import FUSED
from pearl_kernels.window_decoder.window import Window
from pearl_kernels.window_layer._triton import window_layer
from pearl_kernels.window_norm._triton import warps_of, window_norm_out


@torch.no_grad()
def window_decoder(window: Window, keep: int) -> Tensor:
    """`pearl_kernels.window_decoder`: two launches and a product beside the layers, and no other."""
    batch, outputs = len(window.tokens), window.weights.head.out_features
    logits = window.cos.new_empty(batch * keep, outputs)
    decode(enter(window), window, keep, logits)
    return logits.view(batch, keep, outputs)


def enter(
    window: Window,
    *,
    d2t: Tensor | None = None,
    lengths: Tensor | None = None,
    ends: Tensor | None = None,
    text: Tensor | None = None,
) -> Tensor:
    """The embedding's rows (batch * width, size) of a contiguous window's tokens; the rest is as in `enter_rows`."""
    tokens, weights, cos, *_, seq_lens, _ = window
    embedding, block = weights.embedding, triton.next_power_of_2(weights.layers[0].size)
    x = cos.new_empty(tokens.numel(), embedding.shape[1])
    text_stride, text_length = (0, 0) if text is None else (text.stride(0), text.shape[1])
    if tokens.numel():
        with torch.cuda.device_of(x):
            enter_rows[(tokens.numel(),)](
                tokens, d2t, embedding, len(embedding), x, x.shape[1], seq_lens, lengths, ends, text, text_stride,
                text_length, tokens.shape[1], BLOCK=block, num_warps=warps_of(block), **FUSED,
            )  # fmt: skip
    return x


def decode(x: Tensor, window: Window, keep: int, logits: Tensor, lengths: Tensor | None = None) -> None:
    """Take the embedding's rows x (batch * width, size) through the decoder, to logits (batch * keep, outputs).

    lengths: where keep is 1, (batch,) how many tokens of the window each row has; None: all
    """
    (batch, width), weights, size = window.tokens.shape, window.weights, x.shape[1]
    _, _, cos, sin, k_caches, v_caches, seq_lens, scale = window
    head = weights.head
    if head.scale is not None or head.weight.dtype is not weights.dtype or head.is_packed:
        raise ValueError(f"triton backend: head must be {weights.dtype} like the norms, and not packed")
    last = len(weights.layers) - 1
    rows = x.view(batch, width, size)
    for index, layer in enumerate(weights.layers):
        caches_only = keep == 0 and index == last
        rows = window_layer(
            rows, layer, cos, sin, k_caches[index], v_caches[index], seq_lens, scale, caches_only=caches_only
        )
    if keep == 0:
        return
    if lengths is None:
        kept = rows[:, width - keep :].contiguous().view(-1, size)
    else:
        kept = rows.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, size)).view(-1, size)
    normed = torch.empty_like(kept)
    window_norm_out(kept, weights.norm, weights.eps, 0.0, normed)
    weight = head.weight.detach().t()
    if head.bias is None:
        torch.mm(normed, weight, out=logits)
    else:
        torch.addmm(head.bias.detach(), normed, weight, out=logits)
