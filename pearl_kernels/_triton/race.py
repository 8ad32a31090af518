"""Gumbel-argmax races: the greatest log weight + noise of each slice of a row, in float64, then of the row.

`race` is for a row's own distribution, and finds who may win in float32 first; only those are scored in float64.
"""

import triton
import triton.language as tl

from pearl_kernels._triton.noise import gumbel, noise_words, rough_gumbel, word_of

NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def scaled(values, inv_t):
    """values / temperature in float64. (ROWS, BLOCK), (ROWS,)"""
    return values.to(tl.float64) * inv_t[:, None].to(tl.float64)


@triton.jit
def probabilities(values, inv_t, threshold, lse):
    """Probabilities of logits under the statistics of their row, in float64. (ROWS, BLOCK), (ROWS,) each"""
    return tl.where(values >= threshold[:, None], tl.exp(scaled(values, inv_t) - lse[:, None].to(tl.float64)), 0.0)


@triton.jit
def winner_of(scores, ids):
    """The greatest score of each row and the lowest id that has it; NO_ID where every score is -inf."""
    best = tl.max(scores, axis=1)
    runs = (scores == best[:, None]) & (scores > float("-inf"))
    return best, tl.min(tl.where(runs, ids[None, :], NO_ID), axis=1)


@triton.jit
def load_winner(score_in, id_in, row, slices, mask, SLICES: tl.constexpr):
    """The winner among the slices' winners. (ROWS,) -> (ROWS,) int32, NO_ID where there is none"""
    part = tl.arange(0, SLICES)
    at = row[:, None] * slices + part[None, :]
    has_part = mask[:, None] & (part < slices)[None, :]
    scores = tl.load(score_in + at, mask=has_part, other=float("-inf"), cache_modifier=".cg")
    ids = tl.load(id_in + at, mask=has_part, other=NO_ID, cache_modifier=".cg")
    best = tl.max(scores, axis=1)
    return tl.min(tl.where(scores == best[:, None], ids, NO_ID), axis=1)


@triton.jit
def race(
    start, values, begin, threshold, inv_t, excluded, position, purpose, epoch, seed, mask,
    best, best_id,
    BLOCK: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """The better of `best`, of `best_id`, and the winner of the logits from `begin` on. (ROWS,) float64 and int32

    values:   (ROWS, BLOCK), of `start + begin`
    excluded: id that does not take part, or -1
    """
    ids = begin + tl.arange(0, BLOCK)
    kept = mask[:, None] & (values >= threshold[:, None]) & (ids[None, :] != excluded[:, None])
    rough = values * inv_t[:, None] + rough_gumbel(noise_words(begin, position, purpose, epoch, seed, BLOCK, UNROLLED))
    rough = tl.where(kept, rough, float("-inf"))
    most = tl.max(rough, axis=1)
    # The rounding of two scores, several times over.
    within = (rough >= (most - 1e-3 - 1e-6 * tl.abs(most))[:, None]) & (rough > float("-inf"))
    chosen = tl.min(tl.where(within, ids[None, :], NO_ID), axis=1)
    while tl.min(chosen, axis=0) != NO_ID:
        runs = chosen != NO_ID
        value = tl.load(start + chosen, mask=runs, other=float("-inf")).to(tl.float32)
        noise = gumbel(word_of(tl.where(runs, chosen, 0), position, purpose, epoch, seed))
        score = tl.where(runs, value.to(tl.float64) * inv_t.to(tl.float64) + noise, float("-inf"))
        better = score > best
        best = tl.where(better, score, best)
        best_id = tl.where(better, chosen, best_id)
        chosen = tl.min(tl.where(within & (ids[None, :] > chosen[:, None]), ids[None, :], NO_ID), axis=1)
    return best, best_id
