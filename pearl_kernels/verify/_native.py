"""`verify` in C++."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import RULES, address, draft_side, logits_view, sampling_params
from pearl_kernels.threads import num_threads


def verify_out(*given: Any) -> None:
    """Judge each row's drafted chain on CPU logits, as `pearl_kernels.verify` says."""
    _C.verify(*(*arguments(*given), num_threads()))


def arguments(
    target_logits: Tensor,
    draft_tokens: Tensor,
    chain_len: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    positions: Tensor,
    draft_logits: Tensor | None,
    draft_threshold: Tensor | None,
    draft_lse: Tensor | None,
    d2t: Tensor | None,
    rule: str,
    num_accepted: Tensor,
    next_token: Tensor,
    status: Tensor,
) -> tuple[Any, ...]:
    """The arguments of `verify_out` as the extension takes them."""
    batch, width = draft_tokens.shape
    return (
        batch,
        width,
        logits_view(target_logits),
        draft_side(draft_logits, draft_threshold, draft_lse, d2t),
        sampling_params(temperature, top_k, top_p, min_p, seed),
        RULES[rule],
        address(draft_tokens),
        address(chain_len),
        address(positions),
        address(num_accepted),
        address(next_token),
        address(status),
    )
