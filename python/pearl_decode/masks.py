"""Attention masks for rows of different length.

Rows that start at the same position need none of this: transformers builds the mask from the cache's offset.
"""

from __future__ import annotations

from typing import Any

import torch


def ragged_masks(config: Any, positions: torch.Tensor, view: int, dtype: torch.dtype) -> Any:
    """Causal masks of a ragged window, per kind of attention layer.

    positions: (batch, width) int64, the absolute position of each new token
    view:      cached positions looked at
    Returns a (batch, 1, width, view) mask, or a dict of them by layer type for a model that mixes types:
    boolean, or additive in dtype where the model runs eager attention.
    """
    text_config = config.get_text_config()
    window: Any = getattr(text_config, "sliding_window", None)
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if not kinds:
        kinds = {"sliding_attention" if window else "full_attention"}
    columns = torch.arange(view, device=positions.device)
    query = positions[:, None, :, None]  # (batch, 1, width, 1)
    causal = columns <= query
    masks = {}
    for kind in kinds:
        mask = causal
        if kind == "sliding_attention":
            mask = causal & (columns > query - window)
        elif kind == "chunked_attention":
            size = text_config.attention_chunk_size
            mask = causal & (columns // size == query // size)
        if config._attn_implementation == "eager":
            lowest = torch.finfo(dtype).min
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, lowest)
        masks[kind] = mask
    return masks if len(masks) > 1 else next(iter(masks.values()))
