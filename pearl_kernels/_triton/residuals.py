"""What drafts with probabilities need besides: `block` the masses of all residuals, each request a draw from one.

Each kernel is queued after all that judged rows. Who comes last with a group of requests goes on with it.
"""

import triton
import triton.language as tl

from pearl_kernels._triton import block
from pearl_kernels._triton.chain import chain_of
from pearl_kernels._triton.chains import COUNTS
from pearl_kernels._triton.close import close
from pearl_kernels._triton.noise import RESIDUAL, SAMPLE, gumbel, noise_words
from pearl_kernels._triton.race import NO_ID, load_winner, probabilities, scaled, winner_of
from pearl_kernels._triton.rows import (
    EMPTY_DISTRIBUTION,
    TARGET_INVALID,
    arrive,
    inverse_temperature,
    length_of,
    load_row,
)


@triton.jit(do_not_specialize=COUNTS)
def sum_masses(
    logits, batch_stride, row_stride, vocab, batch, width, lengths, finished,
    temperature, seeds, tokens, tokens_stride, starts,
    draft, draft_batch_stride, draft_row_stride, draft_vocab, d2t, draft_thresholds, draft_lses,
    request_counters, thresholds, lses, statuses, masses, columns, purposes, weights, bits, usable_lengths,
    prefix_weights, slices,
    max_len, eos_ids, eos_count, next_window, num_accepted_out, next_out, status_out, num_emitted_out,
    REQUESTS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SLICES: tl.constexpr,
    EOS_BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Sum max(weight * target_probs - draft_probs, 0) over slices of each row but the first, and judge by block.

    masses: (batch, width, slices) float64; written where they count, at weights between 0 and 1
    """
    program = tl.program_id(0)
    rows = tl.maximum(width - 1, 1)
    slice_index = program % slices
    column = (program // slices % rows).to(tl.int64) + 1
    group = program // slices // rows
    request = group.to(tl.int64) * REQUESTS + tl.arange(0, REQUESTS)
    exists = request < batch
    usable = tl.load(usable_lengths + request, mask=exists, other=-1)
    if tl.max(usable, axis=0) >= 0:
        row = request * width + column
        inside = column < usable
        weight = tl.load(prefix_weights + row - 1, mask=inside, other=0.0)
        inside = inside & (weight > 0) & (weight < 1)
        if tl.max(inside.to(tl.int32), axis=0) > 0:
            inv_t = inverse_temperature(temperature, request, inside)
            ids = slice_index * BLOCK + tl.arange(0, BLOCK)
            values = load_row(logits + request * batch_stride + column * row_stride, ids, vocab, inside)
            threshold = tl.load(thresholds + row, mask=inside, other=0.0)
            target_probs = block.probabilities_float32(
                values, inv_t, threshold, tl.load(lses + row, mask=inside, other=0.0)
            )
            draft_start = draft + request * draft_batch_stride + column * draft_row_stride
            draft_values = block.load_draft_row(draft_start, d2t, ids, draft_vocab, inside, STEPS)
            threshold = tl.load(draft_thresholds + row, mask=inside, other=0.0)
            lse = tl.load(draft_lses + row, mask=inside, other=0.0)
            draft_probs = block.probabilities_float32(draft_values, inv_t, threshold, lse)
            mass = tl.maximum(weight.to(tl.float32)[:, None] * target_probs - draft_probs, 0.0)
            tl.store(masses + row * slices + slice_index, tl.sum(mass.to(tl.float64), axis=1), mask=inside)
        if arrive(request_counters + group, rows * slices):
            across = tl.arange(0, WIDTH)[None, :]
            length = length_of(lengths, finished, request, width, exists)
            pending = usable >= 0
            _, start = chain_of(tokens, tokens_stride, starts, finished, request, pending)
            rows_of = request[:, None] * width + across
            judged = pending[:, None] & (across < length[:, None])
            prefix = tl.load(prefix_weights + rows_of, mask=judged, other=1.0)
            row_status = tl.load(statuses + rows_of, mask=judged, other=0)
            counts = (across + 1 < usable[:, None]) & (prefix > 0) & (prefix < 1)
            part = tl.arange(0, SLICES)[None, None, :]
            at = (rows_of + 1)[:, :, None] * slices + part
            summed = tl.load(masses + at, mask=counts[:, :, None] & (part < slices), other=0.0, cache_modifier=".cg")
            seed = tl.load(seeds + request, mask=pending, other=0)
            cut_status = tl.load(bits + request, mask=pending, other=0)
            num_accepted, status, weight, cut = block.judge_block(
                prefix, tl.sum(summed, axis=2), usable, cut_status, row_status, length, start, across, seed, WIDTH
            )
            bad = (status & (TARGET_INVALID | EMPTY_DISTRIBUTION)) != 0
            draws = pending & (bad == 0) & (num_accepted < length)
            tl.debug_barrier()  # all threads have read the bits
            tl.store(columns + request, tl.where(draws, num_accepted, -1), mask=pending)
            tl.store(purposes + request, tl.where(cut, SAMPLE, RESIDUAL), mask=pending)
            tl.store(weights + request, weight, mask=pending)
            tl.store(bits + request, status, mask=pending)
            close(
                request, pending & (draws == 0), num_accepted, tl.where(bad, 0, -1).to(tl.int64), status,
                tokens, tokens_stride, starts, lengths, finished, width, max_len, eos_ids, eos_count, next_window,
                num_accepted_out, next_out, status_out, num_emitted_out, WIDTH, EOS_BLOCK,
            )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def draw_residuals(
    logits, batch_stride, row_stride, vocab, batch, width, lengths, finished,
    temperature, seeds, tokens, tokens_stride, starts,
    draft, draft_batch_stride, draft_row_stride, draft_vocab, d2t, draft_thresholds, draft_lses,
    request_counters, thresholds, lses, columns, purposes, weights, bits,
    own_scores, own_ids, left_scores, left_ids, slices,
    max_len, eos_ids, eos_count, next_window, num_accepted_out, next_out, status_out, num_emitted_out,
    REQUESTS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SLICES: tl.constexpr,
    EOS_BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Draw the token that each request's judge left open, and close the request.

    Two races are run at once, with the same noise: for what the refused token leaves over,
    max(weight * target_probs - draft_probs, 0), and, as that may be nowhere positive, for the row's own distribution.
    own_scores, left_scores: (batch, slices) float64; own_ids, left_ids: int32
    """
    program = tl.program_id(0)
    slice_index, group = program % slices, program // slices
    request = group.to(tl.int64) * REQUESTS + tl.arange(0, REQUESTS)
    exists = request < batch
    column = tl.load(columns + request, mask=exists, other=-1)
    pending = column >= 0
    if tl.max(column, axis=0) >= 0:
        here = tl.maximum(column, 0).to(tl.int64)
        row = request * width + here
        purpose = tl.load(purposes + request, mask=pending, other=SAMPLE)
        corrects = pending & (purpose == RESIDUAL)
        inv_t = inverse_temperature(temperature, request, pending)
        threshold = tl.load(thresholds + row, mask=pending, other=0.0)
        seed = tl.load(seeds + request, mask=pending, other=0)
        position = tl.load(starts + request, mask=pending, other=0) + here
        begin = slice_index * BLOCK
        ids = begin + tl.arange(0, BLOCK)
        values = load_row(logits + request * batch_stride + here * row_stride, ids, vocab, pending)
        noise = gumbel(noise_words(begin, position, purpose, tl.zeros_like(position), seed, BLOCK, True))
        own = tl.where(values >= threshold[:, None], scaled(values, inv_t) + noise, float("-inf"))
        weight = tl.load(weights + request, mask=corrects, other=0.0)
        lse = tl.load(lses + row, mask=corrects, other=0.0)
        draft_threshold = tl.load(draft_thresholds + row, mask=corrects, other=0.0)
        draft_lse = tl.load(draft_lses + row, mask=corrects, other=0.0)
        draft_start = draft + request * draft_batch_stride + here * draft_row_stride
        draft_values = block.load_draft_row(draft_start, d2t, ids, draft_vocab, corrects, STEPS)
        mass = weight[:, None] * probabilities(values, inv_t, threshold, lse)
        mass -= probabilities(draft_values, inv_t, draft_threshold, draft_lse)
        left = tl.where(mass > 0, tl.log(tl.where(mass > 0, mass, 1.0)) + noise, float("-inf"))
        left = tl.where(corrects[:, None], left, float("-inf"))
        at = request * slices + slice_index
        own_score, own_id = winner_of(own, ids)
        left_score, left_id = winner_of(left, ids)
        tl.store(own_scores + at, own_score, mask=pending)
        tl.store(own_ids + at, own_id, mask=pending)
        tl.store(left_scores + at, left_score, mask=pending)
        tl.store(left_ids + at, left_id, mask=pending)
        if arrive(request_counters + group, slices):
            own_token = load_winner(own_scores, own_ids, request, slices, pending, SLICES)
            left_token = load_winner(left_scores, left_ids, request, slices, corrects, SLICES)
            token = tl.where(corrects & (left_token != NO_ID), left_token, own_token).to(tl.int64)
            status = tl.load(bits + request, mask=pending, other=0)
            close(
                request, pending, column, token, status, tokens, tokens_stride, starts, lengths, finished, width,
                max_len, eos_ids, eos_count, next_window, num_accepted_out, next_out, status_out, num_emitted_out,
                WIDTH, EOS_BLOCK,
            )  # fmt: skip
