"""`advance_` in C++."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import RULES, address, draft_side, logits_view, sampling_params
from pearl_kernels.threads import num_threads


def advance_(*given: Any) -> None:
    """Judge each running row's chain and commit what holds, in place, as `pearl_kernels.advance_` says."""
    _C.advance(*(*arguments(*given), num_threads()))


def arguments(
    tokens: Tensor,
    committed: Tensor,
    window: Tensor,
    max_len: Tensor,
    eos_ids: Tensor,
    finished: Tensor,
    status: Tensor,
    target_logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    draft_logits: Tensor | None,
    draft_threshold: Tensor | None,
    draft_lse: Tensor | None,
    d2t: Tensor | None,
    rule: str,
    next_window: int,
    num_emitted: Tensor,
    num_accepted: Tensor,
) -> tuple[Any, ...]:
    """The arguments of `advance_` as the extension takes them."""
    batch, width = target_logits.shape[:2]
    return (
        batch,
        width,
        described_state(tokens, committed, window, max_len, eos_ids, finished, status),
        logits_view(target_logits),
        draft_side(draft_logits, draft_threshold, draft_lse, d2t),
        sampling_params(temperature, top_k, top_p, min_p, seed),
        RULES[rule],
        next_window,
        address(num_emitted),
        address(num_accepted),
    )


def described_state(*state: Tensor) -> tuple[int, ...]:
    """The tensors of a DecodeState, in its order, as the extension takes them."""
    tokens, committed, window, max_len, eos_ids, finished, status = state
    assert tokens.stride(1) == 1, f"the extension walks tokens along contiguous rows, got strides {tokens.stride()}"
    return (
        tokens.data_ptr(),
        tokens.stride(0),
        address(committed),
        address(window),
        address(max_len),
        address(eos_ids),
        eos_ids.shape[1],
        address(finished),
        address(status),
    )
