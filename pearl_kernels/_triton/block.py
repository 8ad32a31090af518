"""Block verification (Sun et al. 2024, Algorithm 2): weights of prefixes, what the draft leaves over, a verdict."""

import triton
import triton.language as tl

from pearl_kernels._triton.chain import chain_of, judged_by
from pearl_kernels._triton.noise import ACCEPT, RESIDUAL, SAMPLE, uniform
from pearl_kernels._triton.race import load_draft_row, scaled
from pearl_kernels._triton.rows import DRAFT_INVALID, inverse_temperature, length_of, load_row, rows_that_count


@triton.jit
def weigh_prefixes(
    logits, batch_stride, row_stride, vocab, batch, width, lengths, finished, temperature,
    tokens, tokens_stride, starts, thresholds, lses,
    draft, draft_batch_stride, draft_row_stride, draft_vocab, draft_ids, draft_thresholds, draft_lses, draft_statuses,
    prefix_weights, target_probs, usable_lengths, cut_statuses,
    REQUESTS: tl.constexpr,
):  # fmt: skip
    """The weight of each prefix, and how many tokens can be judged.

    prefix_weights: (batch, width + 1) float64; [b, i] is of the first i tokens
    target_probs:   (batch, width) float64
    usable_lengths, cut_statuses: (batch,) int32; up to the first token that cannot be judged, and its status
    """
    request = tl.program_id(0).to(tl.int64) * REQUESTS + tl.arange(0, REQUESTS)
    inside = request < batch
    length = length_of(lengths, finished, request, inside)
    chain, _ = chain_of(tokens, tokens_stride, starts, finished, request, length > 0)
    inv_t = inverse_temperature(temperature, request, inside)
    weight = tl.full((REQUESTS,), 1.0, tl.float64)
    usable_length = tl.zeros((REQUESTS,), tl.int32)
    cut_status = tl.zeros((REQUESTS,), tl.int32)
    stands = length > 0
    tl.store(prefix_weights + request * (width + 1), weight, mask=inside)
    for i in range(width):
        judged = stands & (i < length)
        row = request * width + i
        token = tl.load(chain + i, mask=judged, other=-1)
        target_prob, draft_prob, placeholder, invalid = judged_by(
            token, request, row, i, judged, inv_t, logits, batch_stride, row_stride, vocab, thresholds, lses,
            draft, draft_batch_stride, draft_row_stride, draft_vocab, draft_ids, draft_thresholds, draft_lses,
            draft_statuses,
        )  # fmt: skip
        # A token that the target cannot emit is never mended by what follows: 0 stays 0.
        possible = (weight > 0) & (target_prob > 0)
        ratio = weight * target_prob / tl.where(draft_prob > 0, draft_prob, 1.0)
        weight = tl.where(possible, tl.where(draft_prob > 0, tl.minimum(ratio, 1.0), 1.0), 0.0)
        cut_status = tl.where(judged & invalid, DRAFT_INVALID, cut_status)
        stands = judged & (placeholder == 0) & (invalid == 0)
        usable_length += stands.to(tl.int32)
        tl.store(prefix_weights + request * (width + 1) + i + 1, weight, mask=inside)
        tl.store(target_probs + row, target_prob, mask=inside)
    tl.store(usable_lengths + request, usable_length, mask=inside)
    tl.store(cut_statuses + request, cut_status, mask=inside)


@triton.jit
def probabilities_float32(values, inv_t, threshold, lse):
    """Probabilities of logits to a few units of float32, for sums. (ROWS, BLOCK)"""
    log_probs = scaled(values, inv_t) - lse[:, None].to(tl.float64)
    return tl.where(values >= threshold[:, None], tl.exp(log_probs.to(tl.float32)), 0.0)


@triton.jit
def sum_leftovers(
    logits, batch_stride, row_stride, vocab, count, width, lengths, finished, temperature, thresholds, lses,
    draft, draft_batch_stride, draft_row_stride, draft_vocab, draft_ids, draft_thresholds, draft_lses,
    prefix_weights, usable_lengths, leftovers, slices,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of max(weight * target_probs - draft_probs, 0) over each slice of each row, by the weight before it.

    leftovers: (count, slices) float64; written where `judge_blocks` looks, at weights between 0 and 1
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slice_index = tl.program_id(1)
    request, column, inside = rows_that_count(row, count, width, lengths, finished)
    inside = inside & (tl.load(temperature + request, mask=inside, other=0.0) > 0)
    inside = inside & (column > 0) & (column < tl.load(usable_lengths + request, mask=inside, other=0))
    weight = tl.load(prefix_weights + request * (width + 1) + column, mask=inside, other=0.0)
    inside = inside & (weight > 0) & (weight < 1)
    inv_t = inverse_temperature(temperature, request, inside)
    ids = slice_index * BLOCK + tl.arange(0, BLOCK)
    values = load_row(logits + request * batch_stride + column * row_stride, ids, vocab, inside)
    threshold = tl.load(thresholds + row, mask=inside, other=0.0)
    target_probs = probabilities_float32(values, inv_t, threshold, tl.load(lses + row, mask=inside, other=0.0))
    draft_start = draft + request * draft_batch_stride + column * draft_row_stride
    draft_values = load_draft_row(draft_start, draft_ids, ids, draft_vocab, vocab, inside)
    threshold = tl.load(draft_thresholds + row, mask=inside, other=0.0)
    lse = tl.load(draft_lses + row, mask=inside, other=0.0)
    mass = weight.to(tl.float32)[:, None] * target_probs - probabilities_float32(draft_values, inv_t, threshold, lse)
    total = tl.sum(tl.maximum(mass, 0.0), axis=1)
    tl.store(leftovers + row * slices + slice_index, total.to(tl.float64), mask=inside)


@triton.jit
def judge_blocks(
    batch, width, lengths, finished, temperature, seeds, tokens, tokens_stride, starts, statuses,
    prefix_weights, target_probs, usable_lengths, cut_statuses, leftovers, slices,
    num_accepted_out, next_out, status_out, columns, purposes, weights, excluded,
    REQUESTS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """The chain of a sampled request stands up to the last token that passes; others are left as they are.

    leftovers: of `sum_leftovers`; None for a draft that was certain of its tokens
    """
    request = tl.program_id(0).to(tl.int64) * REQUESTS + tl.arange(0, REQUESTS)
    inside = request < batch
    length = length_of(lengths, finished, request, inside)
    inside = inside & (length > 0) & (tl.load(temperature + request, mask=inside, other=0.0) > 0)
    chain, start = chain_of(tokens, tokens_stride, starts, finished, request, inside)
    seed = tl.load(seeds + request, mask=inside, other=0)
    usable = tl.load(usable_lengths + request, mask=inside, other=0)
    part = tl.arange(0, SLICES)

    num_accepted = tl.zeros((REQUESTS,), tl.int32)
    accepted_weight = tl.full((REQUESTS,), 1.0, tl.float64)
    bad_status = tl.zeros((REQUESTS,), tl.int32)
    for i in range(width):
        judged = inside & (i < usable)
        row = request * width + i
        row_status = tl.load(statuses + row, mask=judged, other=0)
        bad_status = tl.where(bad_status == 0, row_status, bad_status)
        weight = tl.load(prefix_weights + request * (width + 1) + i + 1, mask=judged, other=0.0)
        doubted = judged & (i + 1 < usable) & (weight < 1)
        if leftovers is not None:
            at = (row + 1)[:, None] * slices + part[None, :]
            summed = doubted & (weight > 0)
            parts = tl.load(leftovers + at, mask=summed[:, None] & (part < slices)[None, :], other=0.0)
            excess = tl.sum(parts, axis=1)
        else:
            excess = weight * tl.maximum(1.0 - tl.load(target_probs + row + 1, mask=doubted, other=1.0), 0.0)
        pass_prob = tl.where(doubted, excess / (excess + 1.0 - tl.where(doubted, weight, 0.0)), 1.0)
        pass_prob = tl.where(i + 1 == usable, weight, pass_prob)
        u = uniform(start + i, tl.full((REQUESTS,), ACCEPT, tl.int32), start, seed)
        passes = judged & (u <= pass_prob)
        num_accepted = tl.where(passes, i + 1, num_accepted)
        accepted_weight = tl.where(passes, weight, accepted_weight)

    cut = (num_accepted == usable) & (usable < length)
    own_status = tl.load(statuses + request * width + num_accepted, mask=inside & cut, other=0)
    bad_status = tl.where(bad_status == 0, own_status, bad_status)
    good = bad_status == 0
    draws = inside & good & (num_accepted < length)
    refused = tl.load(chain + num_accepted, mask=draws & (cut == 0), other=-1)
    cut_status = tl.load(cut_statuses + request, mask=inside, other=0)
    tl.store(num_accepted_out + request, tl.where(good, num_accepted, 0), mask=inside)
    tl.store(next_out + request, tl.where(good, -1, 0).to(tl.int64), mask=inside)
    tl.store(status_out + request, cut_status | bad_status, mask=inside)
    tl.store(columns + request, tl.where(draws, num_accepted, -1), mask=inside)
    tl.store(purposes + request, tl.where(cut, SAMPLE, RESIDUAL), mask=inside)
    tl.store(weights + request, accepted_weight, mask=inside)
    tl.store(excluded + request, refused, mask=inside)
