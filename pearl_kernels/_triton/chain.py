"""The walk along each request's chain: which drafted tokens stand, and what comes after them.

A chain is `tokens[request, start : start + length]` of a DecodeState, or the row itself where `finished` is None; its
token i is decided at position start + i. All tokens of a chain are looked at together: tiles are (REQUESTS, WIDTH).
"""

import triton
import triton.language as tl

from pearl_kernels._triton.noise import ACCEPT, uniform
from pearl_kernels._triton.rows import DRAFT_INVALID

# The rules by which a chain stands.
GREEDY = tl.constexpr(0)
TOKEN = tl.constexpr(1)
BLOCK_RULE = tl.constexpr(2)
COUPLED = tl.constexpr(3)


@triton.jit
def chain_of(tokens, tokens_stride, starts, finished, request, mask):
    """Where each chain's tokens lie, and the position of its first. (REQUESTS,)"""
    start = tl.load(starts + request, mask=mask, other=0)
    chain = tokens + request * tokens_stride
    if finished is not None:
        chain += tl.where(mask, start, 0)
    return chain, start


@triton.jit
def pick(values, at):
    """The value of each row where `at`, or 0 where that is nowhere. (REQUESTS, WIDTH) -> (REQUESTS,)"""
    return tl.sum(tl.where(at, values, 0), axis=1)


@triton.jit
def find(d2t, size, ids, mask, STEPS: tl.constexpr):
    """The draft's id of each target id, or -1: where it is in d2t, which rises. STEPS: bits of `size`"""
    low = tl.zeros(ids.shape, tl.int32)
    high = low + size
    for _ in range(STEPS):
        middle = (low + high) // 2
        searching = mask & (low < high)
        above = tl.load(d2t + middle, mask=searching, other=0) < ids
        low, high = tl.where(searching & above, middle + 1, low), tl.where(searching & (above == 0), middle, high)
    found = tl.load(d2t + low, mask=mask & (low < size), other=-1) == ids
    return tl.where(found, low, -1)


@triton.jit
def probability(value, inv_t, threshold, lse):
    """Probability of a logit under the statistics of its row, in float64."""
    log_prob = value.to(tl.float64) * inv_t.to(tl.float64) - lse.to(tl.float64)
    return tl.where(value >= threshold, tl.exp(log_prob), 0.0)


@triton.jit
def judged_by(
    token, request, column, row, mask, inv_t, logits, batch_stride, row_stride, vocab, thresholds, lses,
    draft, draft_batch_stride, draft_row_stride, draft_vocab, d2t, draft_thresholds, draft_lses, draft_statuses,
    STEPS: tl.constexpr,
):  # fmt: skip
    """target_prob and draft_prob of each token, whether it is a placeholder, and whether the draft is invalid there."""
    placeholder = mask & ((token < 0) | (token >= vocab))
    known = mask & (placeholder == 0)
    column = tl.cast(column, tl.int64)  # a column may be a whole batch away: strides of time-major logits are long
    here = logits + request * batch_stride + column * row_stride
    value = tl.load(here + token, mask=known, other=float("-inf")).to(tl.float32)
    threshold = tl.load(thresholds + row, mask=known, other=0.0, cache_modifier=".cg")
    lse = tl.load(lses + row, mask=known, other=0.0, cache_modifier=".cg")
    target_prob = probability(value, inv_t, threshold, lse)
    draft_prob = tl.full(target_prob.shape, 1.0, tl.float64)
    invalid = mask & (mask == 0)
    if draft is not None:
        draft_id = token
        if d2t is not None:
            draft_id = find(d2t, draft_vocab, token, known, STEPS).to(tl.int64)
        there = draft + request * draft_batch_stride + column * draft_row_stride
        has_id = known & (draft_id >= 0) & (draft_id < draft_vocab)
        draft_value = tl.load(there + draft_id, mask=has_id, other=float("-inf")).to(tl.float32)
        draft_threshold = tl.load(draft_thresholds + row, mask=known, other=0.0, cache_modifier=".cg")
        draft_lse = tl.load(draft_lses + row, mask=known, other=0.0, cache_modifier=".cg")
        usable = (tl.abs(draft_lse) < float("inf")) & (draft_value < float("inf"))  # NaN is neither
        if draft_statuses is not None:
            usable = usable & (tl.load(draft_statuses + row, mask=known, other=0, cache_modifier=".cg") == 0)
        invalid = known & (usable == 0)
        draft_prob = probability(draft_value, inv_t, draft_threshold, draft_lse)
    return target_prob, draft_prob, placeholder, invalid


@triton.jit
def accept_draws(start, column, seed):
    """The draw that decides each token. (REQUESTS, WIDTH) float64

    The chain's first position goes into it: `block` looks at draws of tokens that are judged again next round.
    """
    position = start[:, None] + column
    return uniform(position, tl.full(position.shape, ACCEPT, tl.int32), start[:, None], seed[:, None])


@triton.jit
def judge_prefix(token, own, row_status, judged, length, column, WIDTH: tl.constexpr, accepted, cut, invalid):
    """A chain stands up to the first token that is not `accepted` or cannot be judged. (REQUESTS, WIDTH) -> (REQUESTS,)

    own: the target's token in place of each
    cut: tokens of which the draft says nothing that counts
    Returns num_accepted, the target's token after them or -1 (0 in place of a bad row), and the status.
    """
    bad = row_status != 0
    holds = judged & accepted & (cut == 0) & (bad == 0)
    num_accepted = tl.minimum(tl.min(tl.where(holds, WIDTH, column), axis=1), length)
    stop = judged & (column == num_accepted[:, None])
    status = pick(row_status | tl.where(invalid, DRAFT_INVALID, 0), stop)
    next_token = pick(tl.where(bad, 0, own).to(tl.int64), stop)
    return num_accepted, tl.where(num_accepted < length, next_token, -1), status
