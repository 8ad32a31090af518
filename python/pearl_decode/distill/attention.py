"""Attention of one new token per row, without repeating the keys of grouped heads."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "pearl_grouped_sdpa"


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query (batch, heads, width, dim), key and value (batch, kv_heads, view, dim).

    With width 1 the heads of a group become the rows of one attention, so a masked batch of long contexts is read
    once instead of being copied `heads / kv_heads` times.
    """
    batch, heads, width, dim = query.shape
    kv_heads = key.shape[1]
    by_head = attention_mask is not None and attention_mask.shape[1] > 1
    if width > 1 or kv_heads == heads or by_head or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    group = query.reshape(batch, kv_heads, heads // kv_heads, dim)
    mask = None if attention_mask is None else attention_mask.expand(batch, 1, group.shape[2], key.shape[2])
    rows = scaled_dot_product_attention(group, key, value, attn_mask=mask, scale=scaling)
    return rows.reshape(batch, 1, heads, value.shape[-1]), None


def _mask(*args: Any, **options: Any) -> torch.Tensor | None:
    """transformers' mask, but padding sees all and not nothing: of nothing some kernels make NaN, which spreads."""
    mask: torch.Tensor | None = sdpa_mask(*args, **options)  # (batch, 1, width, view)
    if mask is None or mask.shape[2] == 1:  # a token by itself is no padding
        return mask
    return mask | ~mask.any(-1, keepdim=True)


AttentionInterface.register(GROUPED, _attention)
AttentionMaskInterface.register(GROUPED, _mask)
