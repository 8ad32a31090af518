"""`window_attention` on CPU tensors: torch's scaled_dot_product_attention over views of the cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pearl_kernels.window_attention.reference import append, attended


@torch.no_grad()
def window_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_new: Tensor | None,
    v_new: Tensor | None,
    seq_lens: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """`pearl_kernels.window_attention`. Rows of equal length go in one call, others in one each.

    So nothing past a row's end is read, and no grouped key is copied: the queries that share a key are rows of one
    head, which has their positions in its mask.
    """
    lengths = seq_lens.tolist()
    append(k_cache, v_cache, k_new, v_new, lengths)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    alike = len(set(lengths)) == 1
    for row in range(1 if alike else len(lengths)):
        rows = slice(None) if alike else slice(row, row + 1)
        out[rows] = _attend(q[rows], k_cache[rows], v_cache[rows], lengths[row], scale, window, softcap)
    return out


def _attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, start: int, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Rows that have `start` entries before the new ones."""
    (batch, width, heads, dim), kv_heads = q.shape, k_cache.shape[1]
    group = heads // kv_heads
    first, mask = attended(width, start, window, q.device)
    queries = q.view(batch, width, kv_heads, group, dim).transpose(1, 2).reshape(batch, kv_heads, width * group, dim)
    keys, values = k_cache[:, :, first : start + width], v_cache[:, :, first : start + width]
    mask = mask.repeat_interleave(group, 0)  # (width * group, attended)
    if softcap is None:
        found = scaled_dot_product_attention(queries, keys, values, attn_mask=None if width == 1 else mask, scale=scale)
    else:
        scores = softcap * torch.tanh(queries.float() @ keys.float().transpose(-1, -2) * (scale / softcap))
        found = (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values.float()).to(q.dtype)
    return found.view(batch, kv_heads, width, group, dim).transpose(1, 2).reshape(q.shape)
