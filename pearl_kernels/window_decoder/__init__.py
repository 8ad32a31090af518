"""The door of `window_decoder`: a whole decoder, from tokens to logits, over a window's few rows."""

from __future__ import annotations

from torch import Tensor

from pearl_kernels import checks
from pearl_kernels.dispatch import choose
from pearl_kernels.window_decoder.reference import one_by_one
from pearl_kernels.window_decoder.weights import DecoderWeights
from pearl_kernels.window_decoder.window import Window

__all__ = ["DecoderWeights", "Window", "window_decoder"]


def window_decoder(
    tokens: Tensor,
    weights: DecoderWeights,
    cos: Tensor,
    sin: Tensor,
    k_caches: Tensor,
    v_caches: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    keep: int,
    backend: str | None = None,
) -> Tensor:
    """The logits of a window's last tokens, by a Llama-like decoder.

    Equivalent to, with the operations of these names:
        x, cos, sin = embedding[tokens].to(dtype), cos[positions], sin[positions]
        for layer, k_cache, v_cache in zip(layers, k_caches, v_caches):
            x = window_layer(x, layer, cos, sin, k_cache, v_cache, seq_lens, scale=scale)
        return window_linear(window_norm(x[:, width - keep:], norm, eps=eps), *head)
    where positions[b, i] = seq_lens[b] + i, dtype is that of the norms, and, with keep 0, no more of the last layer is
    computed than it caches.

    tokens:   (batch, width) int64, in [0, vocab): others are taken to the nearer end
    weights:  DecoderWeights; of float32 norms on a CPU, on a GPU all matrices are of the type of the norms
    cos, sin: (positions, head_dim) of dtype, of every position there may be: those past the last have its angles
    k_caches, v_caches: (layers, batch, kv_heads, capacity, head_dim) of dtype, last dimension contiguous; the window's
              keys and values are stored at seq_lens[b] ... seq_lens[b] + width - 1
    seq_lens: (batch,) int64, in [0, capacity - width]: others are taken to the nearer end
    scale:    of the attention's scores
    keep:     of each sequence's tokens, the last ones, whose logits are wanted: 0 ... width
    backend:  None picks the best for the device

    Returns (batch, keep, outputs of the head) of dtype. On the cpu backend it is one call, and each row's result is the
    same to the bit whatever rows are beside it and however many threads work. On a GPU it is a launch for the
    embedding, those of each layer, one for the norm, and a product. There is no derivative.
    Raises ValueError naming the argument, what was expected and what came.
    Source: Touvron et al. 2023, LLaMA: Open and Efficient Foundation Language Models.
    """
    window = Window(tokens, weights, cos, sin, k_caches, v_caches, seq_lens, scale)
    window.check("window_decoder")
    width = tokens.shape[1]
    if not 0 <= keep <= width:
        raise ValueError(f"window_decoder: keep must be from 0 to width={width}, got {keep}")
    if checks.traced(tokens):
        return one_by_one(window, keep, backend)
    logits: Tensor = choose("window_decoder", tokens.device, backend)(window.contiguous(), keep)
    return logits
