"""`advance_` in Triton: the launches of `verify`, which commit instead of handing out."""

from __future__ import annotations

from torch import Tensor

from pearl_kernels._triton.judge import Chains, Draft, Ends, Params, judge


def advance_(
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
) -> None:
    """Judge each running row's chain and commit what holds, in place, as `pearl_kernels.advance_` says."""
    judge(
        target_logits,
        Chains(tokens, committed, window, finished),
        Params(temperature, top_k, top_p, min_p, seed),
        Draft(draft_logits, draft_threshold, draft_lse, d2t),
        Ends(max_len, eos_ids, eos_ids.shape[1], next_window, num_accepted, None, status, num_emitted),
        rule,
    )
