"""`window_attention` by flash-attn's kernel for attention over a cache."""

from __future__ import annotations

import torch
from flash_attn import flash_attn_with_kvcache
from torch import Tensor

from pearl_kernels.window_attention import flash_takes


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
    """`pearl_kernels.window_attention`, of bfloat16 and float16, head sizes that are multiples of 8, up to 256.

    flash-attn counts from the end: its last query looks at the last entry, be that appended by this call or before.
    """
    if not flash_takes(q):
        got = f"{str(q.dtype).removeprefix('torch.')} with head_dim {q.shape[-1]}"
        raise ValueError(
            "window_attention: for the flash backend q must be bfloat16 or float16 with a head_dim that is a multiple "
            f"of 8 and at most 256, got {got}; use backend='triton'"
        )
    held = seq_lens if k_new is not None else seq_lens + q.shape[1]
    found: Tensor = flash_attn_with_kvcache(
        q, k_cache.transpose(1, 2), v_cache.transpose(1, 2), k_new, v_new,
        cache_seqlens=held.to(torch.int32), softmax_scale=scale, causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0), softcap=softcap or 0.0,
    )  # fmt: skip
    return found
