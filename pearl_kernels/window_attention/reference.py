"""`window_attention` in plain torch: every score of every row, one row after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def append(k_cache: Tensor, v_cache: Tensor, k_new: Tensor | None, v_new: Tensor | None, lengths: list[int]) -> None:
    """Store the new keys and values, (batch, width, kv_heads, head_dim), behind the `lengths` entries of each row."""
    if k_new is None or v_new is None:
        return
    width = k_new.shape[1]
    for row, start in enumerate(lengths):
        k_cache[row, :, start : start + width] = k_new[row].transpose(0, 1)
        v_cache[row, :, start : start + width] = v_new[row].transpose(0, 1)


def attended(width: int, start: int, window: int | None, device: torch.device) -> tuple[int, Tensor]:
    """The first position any of a row's queries looks at, and which of those from there on each query does.

    Returns first, and mask (width, start + width - first) bool.
    """
    first = 0 if window is None else max(0, start - window + 1)
    query = torch.arange(start, start + width, device=device)[:, None]
    key = torch.arange(first, start + width, device=device)
    mask = key <= query
    return first, mask if window is None else mask & (key > query - window)


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
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`pearl_kernels.window_attention`, computed in dtype and returned in q's."""
    lengths = seq_lens.tolist()
    append(k_cache, v_cache, k_new, v_new, lengths)
    (batch, width, heads, dim), kv_heads = q.shape, k_cache.shape[1]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for row in range(batch):
        first, mask = attended(width, lengths[row], window, q.device)
        keys, values = (x[row, :, first : lengths[row] + width].to(dtype) for x in (k_cache, v_cache))
        queries = q[row].to(dtype).view(width, kv_heads, heads // kv_heads, dim)
        scores = torch.einsum("wkgd,ktd->kgwt", queries, keys) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        out[row] = torch.einsum("kgwt,ktd->wkgd", weights, values).reshape(width, heads, dim).to(q.dtype)
    return out
