"""The kernel that judges chains, and all that most rules need.

A program takes a slice of one row of each of REQUESTS requests; who comes last with a row finishes it, and who comes
last with these requests judges them. Where a draft has probabilities, residuals.py goes on.
"""

import triton
import triton.language as tl

from pearl_kernels._triton import block
from pearl_kernels._triton.chain import (
    BLOCK_RULE,
    COUPLED,
    GREEDY,
    TOKEN,
    accept_draws,
    chain_of,
    judge_prefix,
    judged_by,
)
from pearl_kernels._triton.close import close
from pearl_kernels._triton.noise import RESIDUAL, SAMPLE
from pearl_kernels._triton.rows import (
    EMPTY_DISTRIBUTION,
    TARGET_INVALID,
    arrive,
    finish_rows,
    inverse_temperature,
    length_of,
    look_at_slice,
    peak_of_slices,
)

COUNTS = ("batch", "width", "slices", "tokens_stride", "eos_count", "next_window")  # no reason to compile anew


@triton.jit
def sweep_target(
    logits, batch_stride, row_stride, vocab, request, column, row, inside, slice_index, slices, counter,
    temperature, top_k, top_p, min_p, seeds, tokens, tokens_stride, starts, finished,
    maxima, best_ids, sums, scores, winners, thresholds, lses, statuses, own,
    RULE: tl.constexpr, DRAWS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    SLICES: tl.constexpr, LOW_BIT: tl.constexpr,
):  # fmt: skip
    """A slice of a target row of each request; true in who comes last, and all there is to know is then stored.

    own: the token that the target has in place of the drafted one: its argmax, or where DRAWS its draw, which
    without draft probabilities is from what the refused token leaves over, and so need not wait
    """
    start = logits + request * batch_stride + column * row_stride
    position, seed = tl.zeros(request.shape, tl.int64), tl.zeros(request.shape, tl.int64)
    purpose, excluded = tl.full(request.shape, SAMPLE, tl.int32), tl.full(request.shape, -1, tl.int64)
    if DRAWS:
        seed = tl.load(seeds + request, mask=inside, other=0)
        chain, first = chain_of(tokens, tokens_stride, starts, finished, request, inside)
        position = first + column
        if RULE != COUPLED:
            token = tl.load(chain + column, mask=inside, other=-1)
            known = (token >= 0) & (token < vocab)
            purpose = tl.where(known, RESIDUAL, SAMPLE)
            excluded = tl.where(known, token, -1)
    epoch = tl.zeros(request.shape, tl.int64)
    look_at_slice(
        start, vocab, slice_index, row, slices, request, inside, temperature, top_k, top_p, min_p,
        excluded, position, purpose, epoch, seed, maxima, best_ids, sums, scores, winners,
        RULE == GREEDY, DRAWS, BLOCK,
    )  # fmt: skip
    is_last = arrive(counter, slices)
    if is_last:
        if RULE == GREEDY:
            top, best = peak_of_slices(maxima, best_ids, row, slices, inside, SLICES)
            status = tl.where(
                top == float("inf"), TARGET_INVALID, tl.where(top == float("-inf"), EMPTY_DISTRIBUTION, 0)
            )
            tl.store(statuses + row, status, mask=inside)
            tl.store(own + row, best, mask=inside)
        else:
            _, drawn = finish_rows(
                start, vocab, row, slices, request, inside, temperature, top_k, top_p, min_p,
                excluded, position, purpose, epoch, seed, maxima, best_ids, sums, scores, winners,
                thresholds, lses, statuses, ROWS, STEP, SLICES, LOW_BIT, DRAWS,
            )  # fmt: skip
            tl.store(own + row, drawn, mask=inside)
    return is_last


@triton.jit
def sweep_draft(
    draft, batch_stride, row_stride, vocab, request, column, row, inside, slice_index, slices, counter,
    temperature, top_k, top_p, min_p, maxima, best_ids, sums, thresholds, lses, statuses,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, SLICES: tl.constexpr, LOW_BIT: tl.constexpr,
):  # fmt: skip
    """As `sweep_target`, for the statistics of a draft's row."""
    start = draft + request * batch_stride + column * row_stride
    none = tl.zeros(request.shape, tl.int64)
    look_at_slice(
        start, vocab, slice_index, row, slices, request, inside, temperature, top_k, top_p, min_p,
        none, none, none, none, none, maxima, best_ids, sums, None, None, False, False, BLOCK,
    )  # fmt: skip
    is_last = arrive(counter, slices)
    if is_last:
        finish_rows(
            start, vocab, row, slices, request, inside, temperature, top_k, top_p, min_p,
            none, none, none, none, none, maxima, best_ids, sums, None, None, thresholds, lses, statuses,
            ROWS, STEP, SLICES, LOW_BIT, False,
        )  # fmt: skip
    return is_last


@triton.jit(do_not_specialize=COUNTS)
def judge_rows(
    logits, batch_stride, row_stride, vocab, batch, width, lengths, finished,
    temperature, top_k, top_p, min_p, seeds, tokens, tokens_stride, starts,
    draft, draft_batch_stride, draft_row_stride, draft_vocab, d2t, draft_thresholds, draft_lses, draft_statuses,
    row_counters, request_counters, maxima, best_ids, sums, scores, winners, thresholds, lses, statuses, own,
    columns, purposes, weights, bits, usable_lengths, prefix_weights, slices,
    max_len, eos_ids, eos_count, next_window, num_accepted_out, next_out, status_out, num_emitted_out,
    RULE: tl.constexpr, DRAWS: tl.constexpr, SIDES: tl.constexpr, REQUESTS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, SLICES: tl.constexpr, LOW_BIT: tl.constexpr,
    DRAFT_LOW_BIT: tl.constexpr, EOS_BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Look at the rows of all chains, judge these, and close those that nothing is left to do about.

    SIDES: 2 where the draft's statistics are wanted too; its rows come after the target's, from a multiple of 4 on
    columns, purposes, weights, bits: (batch,); what `draw_residuals` has to draw at, -1 nothing, and the status
    usable_lengths: (batch,), of what `sum_masses` has to judge, -1 nothing; prefix_weights: (batch, width)
    """
    program = tl.program_id(0)
    slice_index = program % slices
    side_column = program // slices % (width * SIDES)
    group = program // slices // (width * SIDES)
    request = group.to(tl.int64) * REQUESTS + tl.arange(0, REQUESTS)
    column = (side_column % width).to(tl.int64)
    exists = request < batch
    length = length_of(lengths, finished, request, width, exists)
    inside = exists & (column < length)
    row = request * width + column
    counter = row_counters + group * (width * SIDES) + side_column
    if SIDES == 2:
        if side_column < width:
            row_done = sweep_target(
                logits, batch_stride, row_stride, vocab, request, column, row, inside, slice_index, slices, counter,
                temperature, top_k, top_p, min_p, seeds, tokens, tokens_stride, starts, finished,
                maxima, best_ids, sums, scores, winners, thresholds, lses, statuses, own,
                RULE, DRAWS, REQUESTS, BLOCK, STEP, SLICES, LOW_BIT,
            )  # fmt: skip
        else:
            sampled = tl.load(temperature + request, mask=inside, other=0.0) > 0
            row_done = sweep_draft(
                draft, draft_batch_stride, draft_row_stride, draft_vocab, request, column,
                row + (tl.cast(batch, tl.int64) * width + 3) // 4 * 4, sampled, slice_index, slices, counter,
                temperature, top_k, top_p, min_p, maxima, best_ids, sums, thresholds, lses, statuses,
                REQUESTS, BLOCK, STEP, SLICES, DRAFT_LOW_BIT,
            )  # fmt: skip
    else:
        row_done = sweep_target(
            logits, batch_stride, row_stride, vocab, request, column, row, inside, slice_index, slices, counter,
            temperature, top_k, top_p, min_p, seeds, tokens, tokens_stride, starts, finished,
            maxima, best_ids, sums, scores, winners, thresholds, lses, statuses, own,
            RULE, DRAWS, REQUESTS, BLOCK, STEP, SLICES, LOW_BIT,
        )  # fmt: skip
    if row_done:  # noqa: SIM102 - `and` is not short of its second half here
        # Rows past a chain's end are counted as well: who comes last changes the lengths that all must have read.
        if arrive(request_counters + group, width * SIDES):
            judge_requests(
                logits, batch_stride, row_stride, vocab, request, exists, length, width, lengths, finished,
                temperature, seeds, tokens, tokens_stride, starts,
                draft, draft_batch_stride, draft_row_stride, draft_vocab, d2t, draft_thresholds, draft_lses,
                draft_statuses, thresholds, lses, statuses, own,
                columns, purposes, weights, bits, usable_lengths, prefix_weights,
                max_len, eos_ids, eos_count, next_window, num_accepted_out, next_out, status_out, num_emitted_out,
                RULE, WIDTH, EOS_BLOCK, STEPS,
            )  # fmt: skip


@triton.jit
def judge_requests(
    logits, batch_stride, row_stride, vocab, request, exists, length, width, lengths, finished,
    temperature, seeds, tokens, tokens_stride, starts,
    draft, draft_batch_stride, draft_row_stride, draft_vocab, d2t, draft_thresholds, draft_lses, draft_statuses,
    thresholds, lses, statuses, own, columns, purposes, weights, bits, usable_lengths, prefix_weights,
    max_len, eos_ids, eos_count, next_window, num_accepted_out, next_out, status_out, num_emitted_out,
    RULE: tl.constexpr, WIDTH: tl.constexpr, EOS_BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Judge requests whose rows are all known."""
    column = tl.arange(0, WIDTH)[None, :]
    judged = exists[:, None] & (column < length[:, None])
    chain, start = chain_of(tokens, tokens_stride, starts, finished, request, length > 0)
    token = tl.load(chain[:, None] + column, mask=judged, other=-1)
    row = request[:, None] * width + column
    row_status = tl.load(statuses + row, mask=judged, other=0, cache_modifier=".cg")
    own_token = tl.load(own + row, mask=judged, other=0, cache_modifier=".cg")
    accepted = token == own_token
    cut, invalid = judged & (judged == 0), judged & (judged == 0)
    pending = exists & (exists == 0)
    if RULE == TOKEN or RULE == BLOCK_RULE:  # noqa: SIM109 - of constants of Triton
        sampled = exists & (tl.load(temperature + request, mask=exists, other=0.0) > 0)
        seed = tl.load(seeds + request, mask=exists, other=0)
        inv_t = inverse_temperature(temperature, request, exists)
        target_prob, draft_prob, placeholder, invalid = judged_by(
            token, request[:, None], column, row, judged & sampled[:, None], inv_t[:, None],
            logits, batch_stride, row_stride, vocab, thresholds, lses,
            draft, draft_batch_stride, draft_row_stride, draft_vocab, d2t, draft_thresholds, draft_lses,
            draft_statuses, STEPS,
        )  # fmt: skip
        cut = placeholder | invalid
        accepts = accept_draws(start, column, seed) * draft_prob < target_prob
        accepted = tl.where(sampled[:, None], accepts, accepted)
    num_accepted, next_token, status = judge_prefix(
        token, own_token, row_status, judged, length, column, WIDTH, accepted, cut, invalid
    )
    if RULE == BLOCK_RULE:
        usable, cut_status = block.usable_prefix(placeholder, invalid, length, column, WIDTH)
        prefix, leftovers = block.weigh_prefixes(target_prob, draft_prob, width, column)
        if draft is None:
            by_block, block_status, _, _ = block.judge_block(
                prefix, leftovers, usable, cut_status, row_status, length, start, column, seed, WIDTH
            )
            last = column == by_block[:, None]
            drawn = tl.sum(tl.where(last & judged, own_token, 0), axis=1).to(tl.int64)
            drawn = tl.where(by_block < length, tl.where(block_status != 0, 0, drawn), -1)
            num_accepted = tl.where(sampled, by_block, num_accepted)
            status = tl.where(sampled, block_status, status)
            next_token = tl.where(sampled, drawn, next_token)
        else:
            pending = sampled & (length > 0)
            tl.store(prefix_weights + row, prefix, mask=judged)
            tl.store(usable_lengths + request, tl.where(pending, usable, -1), mask=exists)
            tl.store(bits + request, cut_status, mask=exists)
            tl.store(columns + request, tl.full(usable.shape, -1, tl.int32), mask=exists & (pending == 0))
    if RULE == TOKEN and draft is not None:
        bad = (status & (TARGET_INVALID | EMPTY_DISTRIBUTION)) != 0
        pending = sampled & (num_accepted < length) & (bad == 0)
        at_cut = tl.max((cut & (column == num_accepted[:, None])).to(tl.int32), axis=1) > 0
        tl.store(columns + request, tl.where(pending, num_accepted, -1), mask=exists)
        tl.store(purposes + request, tl.where(at_cut, SAMPLE, RESIDUAL), mask=exists)
        tl.store(weights + request, tl.full(num_accepted.shape, 1.0, tl.float64), mask=exists)
        tl.store(bits + request, status, mask=exists)
    close(
        request, exists & (pending == 0), num_accepted, next_token, status, tokens, tokens_stride, starts, lengths,
        finished, width, max_len, eos_ids, eos_count, next_window, num_accepted_out, next_out, status_out,
        num_emitted_out, WIDTH, EOS_BLOCK,
    )  # fmt: skip
