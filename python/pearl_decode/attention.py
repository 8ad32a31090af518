"""`pearl_kernels.window_attention` as an attention implementation of transformers.

A forward over a `WindowCache` gives the model, instead of a mask, where each row's new tokens start: an integer
attention_mask of (batch, 1, 1, 1). transformers hands masks of four dimensions to every layer as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pearl_decode.cache import new_entries
from pearl_kernels import window_attention

ATTENTION_NAME = "pearl_window"
# What some models bring that changes the scores or the sum, and would be left out here.
_FOREIGN = ("s_aux", "position_bias")


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for each layer.

    query:          (batch, heads, width, head_dim)
    key, value:     (batch, kv_heads, capacity, head_dim), the whole cache where attention_mask is integer, with the
                    new entries in it or left for this attention to append
    attention_mask: (batch, 1, 1, 1) int64 or int32, each row's first new position: `window_attention`. Any other,
                    and None: transformers' own "sdpa", or the same with the scores capped.
    Returns (batch, width, heads, head_dim), and None for the weights.
    Raises ValueError for arguments of a model that this attention knows nothing of.
    """
    if attention_mask is None or attention_mask.is_floating_point() or attention_mask.dtype is torch.bool:
        if kwargs.get("softcap") is not None:
            return _capped(module, query, key, value, attention_mask, scaling, **kwargs), None
        forward: Any = sdpa_attention_forward
        found: tuple[Tensor, None] = forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found
    foreign = [name for name in _FOREIGN if kwargs.get(name) is not None]
    if foreign:
        raise ValueError(f"{ATTENTION_NAME}: attention must not need {foreign[0]}, got it from {type(module).__name__}")
    new = new_entries(key)
    k_new, v_new = (None, None) if new is None else (by_rows(states) for states in new)
    out = window_attention(
        by_rows(query), key, value, k_new, v_new, attention_mask.reshape(-1),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=_sliding_window(module, kwargs), softcap=kwargs.get("softcap"),
    )  # fmt: skip
    return out, None


def by_rows(states: Tensor) -> Tensor:
    """(batch, heads, width, head_dim) as (batch, width, heads, head_dim), the last dimension contiguous."""
    rows = states.transpose(1, 2)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _sliding_window(module: Any, kwargs: dict[str, Any]) -> int | None:
    """The layer's window. A few models leave it to the mask and do not pass it on."""
    if "sliding_window" in kwargs:
        passed: int | None = kwargs["sliding_window"]
        return passed
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[module.layer_idx] != "sliding_attention":
        return None
    configured: int | None = getattr(config, "sliding_window", None)
    return configured


def _capped(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    *,
    softcap: float,
    is_causal: bool | None = None,
    **_: Any,
) -> Tensor:
    """Attention with capped scores, which sdpa does not have. None of a mask is as in sdpa: causal, from the start."""
    width = query.shape[2]
    if mask is None and width > 1 and (module.is_causal if is_causal is None else is_causal):
        key, value = key[:, :, :width], value[:, :, :width]
        mask = torch.ones(width, width, dtype=torch.bool, device=query.device).tril()
    group = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, group), repeat_kv(value, group)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query.float() @ key.float().transpose(2, 3) * (scale / softcap))
    if mask is not None:
        # Not -inf: of a padded row that sees nothing it would make NaN.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype is torch.bool else scores + mask
    out = scores.softmax(-1).to(value.dtype) @ value
    return out.transpose(1, 2).contiguous()


def use_window_attention(model: PreTrainedModel) -> None:
    """Switch a loaded model to this attention.

    Raises ValueError for a model whose attention cannot be replaced, or has what `window_attention` has not.
    """
    name = type(model).__name__
    if not model._supports_attention_backend:
        raise ValueError(f"{name}: must support attention backends of transformers to run {ATTENTION_NAME!r}")
    config: Any = model.config.get_text_config()
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError(f"{name}: layers must be full or sliding attention to run {ATTENTION_NAME!r}, got chunked")
    if any(parameter.rpartition(".")[2] == "sinks" for parameter, _ in model.named_parameters()):
        raise ValueError(f"{name}: attention must have no sinks to run {ATTENTION_NAME!r}")
    model.set_attn_implementation(ATTENTION_NAME)
    if config._attn_implementation != ATTENTION_NAME:
        raise ValueError(f"{name}: its attention cannot be set after loading, so it cannot run {ATTENTION_NAME!r}")


@contextmanager
def sdpa_replaced(model: PreTrainedModel, name: str = "sdpa") -> Iterator[None]:
    """Within: a model that runs sdpa, or ours, attends by implementation `name`. Results differ by rounding only."""
    before = model.config._attn_implementation
    if before not in ("sdpa", ATTENTION_NAME):
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def planless_sdpa() -> Iterator[None]:
    """Within: torch attends without cuDNN, which plans for every new shape anew, for tens of milliseconds.

    In all threads: it is for what has the process to itself, as a benchmark has.
    """
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


AttentionInterface.register(ATTENTION_NAME, attention_forward)
# Without it transformers would pass no mask at all: wrong, silently, for several rows over a cache.
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
