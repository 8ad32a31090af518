"""`verify` in CUDA."""

from __future__ import annotations

from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._cuda import queue
from pearl_kernels._pointers import RULES, address, draft_side, logits_view, sampling_params


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
    """Queue what `pearl_kernels.verify` says on the current stream, without synchronising."""
    batch, width = draft_tokens.shape
    _C.verify_cuda(
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
        queue(_C, target_logits, target_logits.shape[1]),
    )
