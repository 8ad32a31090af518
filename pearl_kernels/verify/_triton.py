"""`verify` in Triton."""

from __future__ import annotations

from torch import Tensor

from pearl_kernels._triton.judge import Chains, Draft, Ends, Params, judge


def verify_out(
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
) -> None:
    """Judge each row's drafted chain, as `pearl_kernels.verify` says."""
    judge(
        target_logits,
        Chains(draft_tokens, positions, chain_len, None),
        Params(temperature, top_k, top_p, min_p, seed),
        Draft(draft_logits, draft_threshold, draft_lse, d2t),
        Ends(None, None, 0, 0, num_accepted, next_token, status, None),
        rule,
    )
