"""`advance_` in Triton: the launches of `verify`, the last of which commits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pearl_kernels._triton.chain import corrected_token
from pearl_kernels._triton.judge import Chains, Verdict, judge
from pearl_kernels._triton.launch import Batch, requests_per_program

# The numbers of pearl_kernels.Finished, and the bit of Status that does not end a sequence.
RUNNING = tl.constexpr(0)
STOP = tl.constexpr(1)
LENGTH = tl.constexpr(2)
ERROR = tl.constexpr(3)
DRAFT_INVALID = tl.constexpr(2)


@triton.jit
def is_eos(token, eos_ids, eos_count, request, mask, EOS_BLOCK: tl.constexpr):
    """Whether each token is among its request's end-of-sequence ids, which are padded with -1. (REQUESTS,)"""
    index = tl.arange(0, EOS_BLOCK)
    at = request[:, None] * eos_count + index[None, :]
    ids = tl.load(eos_ids + at, mask=mask[:, None] & (index < eos_count)[None, :], other=-1)
    return tl.max(((ids == token[:, None]) & (ids >= 0)).to(tl.int32), axis=1) > 0


@triton.jit
def commit(
    tokens, tokens_stride, committed, window, max_len, eos_ids, eos_count, finished, status, batch,
    verdict_accepted, verdict_next, verdict_status,
    columns, purposes, own_scores, own_ids, left_scores, left_ids, slices,
    next_window, num_emitted_out, num_accepted_out,
    REQUESTS: tl.constexpr, SLICES: tl.constexpr, EOS_BLOCK: tl.constexpr,
):  # fmt: skip
    """Commit each running request's verdict, and cut it at the end. columns None: no races were run."""
    request = tl.program_id(0).to(tl.int64) * REQUESTS + tl.arange(0, REQUESTS)
    inside = request < batch
    running = inside & (tl.load(finished + request, mask=inside, other=ERROR) == RUNNING)
    length = tl.load(window + request, mask=running, other=0) + 1
    begin = tl.load(committed + request, mask=running, other=0)
    limit = tl.load(max_len + request, mask=running, other=0)
    accepted = tl.load(verdict_accepted + request, mask=running, other=0)
    token = tl.load(verdict_next + request, mask=running, other=-1)
    if columns is not None:
        token = corrected_token(
            request, token, columns, purposes, own_scores, own_ids, left_scores, left_ids, slices, running, SLICES
        )
    bits = tl.load(verdict_status + request, mask=running, other=0)
    failed = running & ((bits & ~DRAFT_INVALID) != 0)
    advancing = running & (failed == 0)
    whole = advancing & (accepted == length)
    chain = tokens + request * tokens_stride + begin
    tl.store(chain + accepted, token, mask=advancing & (whole == 0))

    end = begin + accepted + tl.where(whole, 0, 1)
    reaches_limit = end >= limit
    end = tl.where(reaches_limit, tl.maximum(limit, begin), end)
    reason = tl.where(reaches_limit, LENGTH, RUNNING)
    last = tl.max(tl.where(advancing, accepted + 1, 0), axis=0)
    for i in range(last):
        new = advancing & (reason != STOP) & (begin + i < end)
        drafted = tl.load(chain + i, mask=new & (i < accepted), other=-1)
        stops = new & is_eos(tl.where(i < accepted, drafted, token), eos_ids, eos_count, request, new, EOS_BLOCK)
        end = tl.where(stops, begin + i + 1, end)
        reason = tl.where(stops, STOP, reason)

    emitted = tl.where(advancing, end - begin, 0).to(tl.int32)
    tl.store(num_emitted_out + request, emitted, mask=inside)
    tl.store(num_accepted_out + request, tl.minimum(accepted, emitted), mask=inside)
    tl.store(committed + request, end, mask=advancing)
    tl.store(window + request, tl.where(whole & (reason == RUNNING), next_window, 0), mask=running)
    tl.store(finished + request, tl.where(failed, ERROR, reason), mask=running)
    tl.store(status + request, tl.load(status + request, mask=running, other=0) | bits, mask=running)


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
    if target_logits.shape[0] == 0:
        return
    if rule == "greedy":
        temperature = torch.zeros_like(temperature)
    batch = Batch(target_logits, temperature, top_k, top_p, min_p, seed, window, finished)
    draft = (draft_logits, draft_threshold, draft_lse, d2t)
    with torch.cuda.device_of(target_logits):
        verdict = Verdict(torch.empty_like(window), torch.empty_like(committed), torch.empty_like(status))
        corrections = judge(batch, Chains(tokens, committed), rule, draft, verdict)
        races = (None,) * 6 + (1,) if corrections is None else corrections.arguments()
        per_program = requests_per_program(batch.size)
        commit[(triton.cdiv(batch.size, per_program),)](
            tokens, tokens.stride(0), committed, window, max_len, eos_ids, eos_ids.shape[1], finished, status,
            batch.size, *verdict, *races, next_window, num_emitted, num_accepted,
            REQUESTS=per_program, SLICES=batch.tiles.slices_block,
            EOS_BLOCK=triton.next_power_of_2(eos_ids.shape[1]), num_warps=1,
        )  # fmt: skip
