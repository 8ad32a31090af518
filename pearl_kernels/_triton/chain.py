"""The walk along each request's chain: which drafted tokens stand, and what is to be drawn after them.

A chain is `tokens[request, start : start + length]` of a DecodeState, or the row itself where `finished` is None; its
token i is decided at position start + i. A judge leaves a Choice for `race_corrections`: the row to draw at or -1, the
purpose, the target's weight in the residual, and the refused token.
"""

import triton
import triton.language as tl

from pearl_kernels._triton.noise import ACCEPT, RESIDUAL, SAMPLE, uniform
from pearl_kernels._triton.race import load_winner
from pearl_kernels._triton.rows import DRAFT_INVALID, NO_ID, inverse_temperature, length_of

# The rules by which a prefix stands.
EQUALS_ARGMAX = tl.constexpr(0)
EQUALS_DRAW = tl.constexpr(1)
RATIO = tl.constexpr(2)


@triton.jit
def chain_of(tokens, tokens_stride, starts, finished, request, mask):
    """Where each chain's tokens lie, and the position of its first. (REQUESTS,)"""
    start = tl.load(starts + request, mask=mask, other=0)
    chain = tokens + request * tokens_stride
    if finished is not None:
        chain += tl.where(mask, start, 0)
    return chain, start


@triton.jit
def probability(value, inv_t, threshold, lse):
    """Probability of a logit under the statistics of its row, in float64. (REQUESTS,) each"""
    log_prob = value.to(tl.float64) * inv_t.to(tl.float64) - lse.to(tl.float64)
    return tl.where(value >= threshold, tl.exp(log_prob), 0.0)


@triton.jit
def judged_by(
    token,
    request,
    row,
    column,
    mask,
    inv_t,
    logits,
    batch_stride,
    row_stride,
    vocab,
    thresholds,
    lses,
    draft,
    draft_batch_stride,
    draft_row_stride,
    draft_vocab,
    draft_ids,
    draft_thresholds,
    draft_lses,
    draft_statuses,
):
    """target_prob and draft_prob of each token, whether it is a placeholder, and whether the draft is invalid there."""
    placeholder = (token < 0) | (token >= vocab)
    known = mask & (placeholder == 0)
    column = tl.cast(column, tl.int64)  # a column may be a whole batch away: strides of time-major logits are long
    here = logits + request * batch_stride + column * row_stride
    value = tl.load(here + token, mask=known, other=float("-inf")).to(tl.float32)
    threshold = tl.load(thresholds + row, mask=known, other=0.0)
    target_prob = probability(value, inv_t, threshold, tl.load(lses + row, mask=known, other=0.0))
    draft_prob = tl.full(target_prob.shape, 1.0, tl.float64)
    invalid = mask & (mask == 0)
    if draft is not None:
        draft_id = token
        if draft_ids is not None:
            draft_id = tl.load(draft_ids + token, mask=known, other=-1).to(tl.int64)
        there = draft + request * draft_batch_stride + column * draft_row_stride
        has_id = known & (draft_id >= 0) & (draft_id < draft_vocab)
        draft_value = tl.load(there + draft_id, mask=has_id, other=float("-inf")).to(tl.float32)
        draft_threshold = tl.load(draft_thresholds + row, mask=known, other=0.0)
        draft_lse = tl.load(draft_lses + row, mask=known, other=0.0)
        usable = (tl.abs(draft_lse) < float("inf")) & (draft_value < float("inf"))  # NaN is neither
        if draft_statuses is not None:
            usable = usable & (tl.load(draft_statuses + row, mask=known, other=0) == 0)
        invalid = known & (usable == 0)
        draft_prob = probability(draft_value, inv_t, draft_threshold, draft_lse)
    return target_prob, draft_prob, placeholder, invalid


@triton.jit
def judge_prefix(
    logits, batch_stride, row_stride, vocab, batch, width, lengths, finished, temperature, seeds,
    tokens, tokens_stride, starts, thresholds, lses, best, statuses,
    draft, draft_batch_stride, draft_row_stride, draft_vocab, draft_ids, draft_thresholds, draft_lses, draft_statuses,
    own_scores, own_ids, slices, num_accepted_out, next_out, status_out, columns, purposes, weights, excluded,
    RULE: tl.constexpr, REQUESTS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """The chain stands up to the first token that is refused or cannot be judged. Greedy requests by EQUALS_ARGMAX.

    own_scores, own_ids: draws of every row, for EQUALS_DRAW; else None, as what the other rules do not need
    """
    request = tl.program_id(0).to(tl.int64) * REQUESTS + tl.arange(0, REQUESTS)
    inside = request < batch
    length = length_of(lengths, finished, request, inside)
    chain, start = chain_of(tokens, tokens_stride, starts, finished, request, length > 0)
    sampled = tl.load(temperature + request, mask=inside, other=0.0) > 0
    inv_t = inverse_temperature(temperature, request, inside)
    seed = tl.load(seeds + request, mask=inside, other=0)

    stands = length > 0
    num_accepted = tl.zeros((REQUESTS,), tl.int32)
    status = tl.zeros((REQUESTS,), tl.int32)
    next_token = tl.full((REQUESTS,), -1, tl.int64)
    column = tl.full((REQUESTS,), -1, tl.int32)
    purpose = tl.zeros((REQUESTS,), tl.int32)
    refused = tl.full((REQUESTS,), -1, tl.int64)
    for i in range(width):
        judged = stands & (i < length)
        row = request * width + i
        token = tl.load(chain + i, mask=judged, other=-1)
        row_status = tl.load(statuses + row, mask=judged, other=0)
        own = tl.load(best + row, mask=judged, other=0)
        cut = judged & (judged == 0)
        if RULE == EQUALS_DRAW:
            drawn = load_winner(own_scores, own_ids, row, slices, judged & sampled & (row_status == 0), SLICES)
            own = tl.where(sampled, drawn, own)
        accepted = token == own
        if RULE == RATIO:
            target_prob, draft_prob, placeholder, invalid = judged_by(
                token, request, row, i, judged, inv_t, logits, batch_stride, row_stride, vocab, thresholds, lses,
                draft, draft_batch_stride, draft_row_stride, draft_vocab, draft_ids, draft_thresholds, draft_lses,
                draft_statuses,
            )  # fmt: skip
            u = uniform(start + i, tl.full((REQUESTS,), ACCEPT, tl.int32), start, seed)
            cut = sampled & (placeholder | invalid)
            accepted = tl.where(sampled, u * draft_prob < target_prob, accepted)
            row_status = row_status | tl.where(judged & sampled & invalid, DRAFT_INVALID, 0)
        bad = (row_status & ~DRAFT_INVALID) != 0
        holds = judged & accepted & (cut == 0) & (bad == 0)
        stops = judged & (holds == 0)
        status = tl.where(stops, row_status, status)
        next_token = tl.where(stops, tl.where(bad, 0, own).to(tl.int64), next_token)
        if RULE == RATIO:
            draws = stops & sampled & (bad == 0)
            column = tl.where(draws, i, column)
            purpose = tl.where(draws & (cut == 0), RESIDUAL, purpose)
            refused = tl.where(draws, token, refused)
        num_accepted += holds.to(tl.int32)
        stands = holds
    tl.store(num_accepted_out + request, num_accepted, mask=inside)
    tl.store(next_out + request, next_token, mask=inside)
    tl.store(status_out + request, status, mask=inside)
    if columns is not None:
        tl.store(columns + request, column, mask=inside)
        tl.store(purposes + request, purpose, mask=inside)
        tl.store(weights + request, tl.full((REQUESTS,), 1.0, tl.float64), mask=inside)
        tl.store(excluded + request, refused, mask=inside)


@triton.jit
def corrected_token(
    request, next_token, columns, purposes, own_scores, own_ids, left_scores, left_ids, slices, mask,
    SLICES: tl.constexpr,
):  # fmt: skip
    """`next_token`, or where a race was run, who won it: what was left over, else the row's own. (REQUESTS,) int64"""
    raced = mask & (tl.load(columns + request, mask=mask, other=-1) >= 0)
    corrects = raced & (tl.load(purposes + request, mask=raced, other=SAMPLE) == RESIDUAL)
    own = load_winner(own_scores, own_ids, request, slices, raced, SLICES)
    left = load_winner(left_scores, left_ids, request, slices, corrects, SLICES)
    return tl.where(raced, tl.where(corrects & (left != NO_ID), left, own).to(tl.int64), next_token)


@triton.jit
def write_corrected(
    next_tokens, columns, purposes, own_scores, own_ids, left_scores, left_ids, slices, batch,
    REQUESTS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Put the tokens that were raced for in their place."""
    request = tl.program_id(0).to(tl.int64) * REQUESTS + tl.arange(0, REQUESTS)
    inside = request < batch
    token = tl.load(next_tokens + request, mask=inside, other=-1)
    token = corrected_token(
        request, token, columns, purposes, own_scores, own_ids, left_scores, left_ids, slices, inside, SLICES
    )
    tl.store(next_tokens + request, token, mask=inside)
