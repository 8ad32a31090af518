"""Block verification (Sun et al. 2024, Algorithm 2): weights of prefixes, what the draft leaves over, a verdict."""

import triton
import triton.language as tl

from pearl_kernels._triton.chain import accept_draws, find, pick
from pearl_kernels._triton.race import scaled
from pearl_kernels._triton.rows import DRAFT_INVALID


@triton.jit
def usable_prefix(placeholder, invalid, length, column, WIDTH: tl.constexpr):
    """How many tokens come before the first that cannot be judged, and the status of that. (REQUESTS,)"""
    unusable = placeholder | invalid
    usable = tl.minimum(tl.min(tl.where(unusable, column, WIDTH), axis=1), length)
    cut = invalid & (column == usable[:, None])
    return usable, tl.max(tl.where(cut, DRAFT_INVALID, 0), axis=1)


@triton.jit
def weigh_prefixes(target_prob, draft_prob, width, column):
    """The weight of each prefix, by its last token, and for a draft that was certain what the next row leaves over.

    All (REQUESTS, WIDTH) float64.
    """
    weights = tl.full(target_prob.shape, 1.0, tl.float64)
    leftovers = tl.zeros(target_prob.shape, tl.float64)
    weight = tl.max(weights, axis=1)
    for i in range(width):
        at = column == i
        target, drafted = pick(target_prob, at), pick(draft_prob, at)
        left = weight * tl.maximum(1.0 - target, 0.0)  # all of the draft is on its token
        leftovers = tl.where(column == i - 1, left[:, None], leftovers)
        # A token that the target cannot emit is never mended by what follows: 0 stays 0.
        possible = (weight > 0) & (target > 0)
        ratio = weight * target / tl.where(drafted > 0, drafted, 1.0)
        weight = tl.where(possible, tl.where(drafted > 0, tl.minimum(ratio, 1.0), 1.0), 0.0)
        weights = tl.where(at, weight[:, None], weights)
    return weights, leftovers


@triton.jit
def probabilities_float32(values, inv_t, threshold, lse):
    """Probabilities of logits to a few units of float32, for sums. (ROWS, BLOCK)"""
    log_probs = scaled(values, inv_t) - lse[:, None].to(tl.float64)
    return tl.where(values >= threshold[:, None], tl.exp(log_probs.to(tl.float32)), 0.0)


@triton.jit
def load_draft_row(row_start, d2t, ids, draft_vocab, mask, STEPS: tl.constexpr):
    """Draft logits by target ids, -inf where the draft has no such token. (ROWS, BLOCK) float32"""
    own = ids
    if d2t is not None:
        own = find(d2t, draft_vocab, ids, ids >= 0, STEPS)
    inside = mask[:, None] & ((own >= 0) & (own < draft_vocab))[None, :]
    return tl.load(row_start[:, None] + own[None, :], mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def judge_block(
    weights, leftovers, usable, cut_status, row_status, length, start, column, seed, WIDTH: tl.constexpr
):  # fmt: skip
    """The chain stands up to the last token that passes. (REQUESTS,)

    weights:    (REQUESTS, WIDTH), of each prefix by its last token
    leftovers:  the sum of max(weight * target_probs - draft_probs, 0) at the row after each, where weight < 1
    row_status: of the rows that count
    Returns num_accepted, the status, the weight of what was accepted, and whether the row after that is to be drawn
    from as it is, without regard to the draft.
    """
    judged = column < usable[:, None]
    doubted = (column + 1 < usable[:, None]) & (weights < 1)
    excess = tl.where(doubted, leftovers, 0.0)
    pass_prob = tl.where(doubted, excess / (excess + 1.0 - tl.where(doubted, weights, 0.0)), 1.0)
    pass_prob = tl.where(column + 1 == usable[:, None], weights, pass_prob)
    passes = judged & (accept_draws(start, column, seed) <= pass_prob)
    num_accepted = tl.max(tl.where(passes, column + 1, 0), axis=1)
    last = column + 1 == num_accepted[:, None]
    accepted_weight = tl.where(num_accepted > 0, pick(weights, last), 1.0)
    cut = (num_accepted == usable) & (usable < length)
    # The first bad row of those that the weights came from, and of the one that is drawn from.
    matters = (judged | (cut[:, None] & (column == usable[:, None]))) & (row_status != 0)
    first = tl.min(tl.where(matters, column, WIDTH), axis=1)
    bad_status = pick(row_status, matters & (column == first[:, None]))
    num_accepted = tl.where(bad_status == 0, num_accepted, 0)
    return num_accepted, cut_status | bad_status, accepted_weight, cut
