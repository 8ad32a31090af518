"""`verify` in Triton."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from pearl_kernels._triton.chain import write_corrected
from pearl_kernels._triton.judge import Chains, Verdict, judge
from pearl_kernels._triton.launch import Batch, requests_per_program


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
    if target_logits.shape[0] == 0:
        return
    if rule == "greedy":
        temperature = torch.zeros_like(temperature)
    batch = Batch(target_logits, temperature, top_k, top_p, min_p, seed, chain_len)
    draft = (draft_logits, draft_threshold, draft_lse, d2t)
    with torch.cuda.device_of(target_logits):
        verdict = Verdict(num_accepted, next_token, status)
        corrections = judge(batch, Chains(draft_tokens, positions), rule, draft, verdict)
        if corrections is not None:
            per_program = requests_per_program(batch.size)
            write_corrected[(triton.cdiv(batch.size, per_program),)](
                next_token, *corrections.arguments(), batch.size,
                REQUESTS=per_program, SLICES=batch.tiles.slices_block, num_warps=1,
            )  # fmt: skip
