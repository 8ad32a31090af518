"""Gumbel-argmax races: the greatest log weight + noise of each slice of a row, in float64, then of the row.

Two races are run at once. `own` is for the row's own distribution; `left` for what a refused token leaves over,
max(weight * target_probs - draft_probs, 0), which may be nowhere positive: then the same noise decides the other.
"""

import triton
import triton.language as tl

from pearl_kernels._triton.noise import RESIDUAL, gumbel
from pearl_kernels._triton.rows import NO_ID, inverse_temperature, load_row, rows_that_count


@triton.jit
def scaled(values, inv_t):
    """values / temperature in float64. (ROWS, BLOCK), (ROWS,)"""
    return values.to(tl.float64) * inv_t[:, None].to(tl.float64)


@triton.jit
def probabilities(values, inv_t, threshold, lse):
    """Probabilities of logits under the statistics of their row, in float64. (ROWS, BLOCK), (ROWS,) each"""
    return tl.where(values >= threshold[:, None], tl.exp(scaled(values, inv_t) - lse[:, None].to(tl.float64)), 0.0)


@triton.jit
def load_draft_row(row_start, draft_ids, ids, draft_vocab, vocab, mask):
    """Draft logits by target ids, -inf where the draft has no such token. (ROWS, BLOCK) float32

    draft_ids: (vocab,) int32, the draft's id of each target id or -1; None where they are the same
    """
    if draft_ids is not None:
        own = tl.load(draft_ids + ids, mask=ids < vocab, other=-1)
        inside = mask[:, None] & (own >= 0)[None, :]
        values = tl.load(row_start[:, None] + own[None, :], mask=inside, other=float("-inf")).to(tl.float32)
    else:
        inside = mask[:, None] & (ids < draft_vocab)[None, :]
        values = tl.load(row_start[:, None] + ids[None, :], mask=inside, other=float("-inf")).to(tl.float32)
    return values


@triton.jit
def store_winner(scores, ids, score_out, id_out, at, mask):
    """The greatest score of each row and the lowest id that has it; NO_ID where every score is -inf."""
    best = tl.max(scores, axis=1)
    runs = (scores == best[:, None]) & (scores > float("-inf"))
    tl.store(score_out + at, best, mask=mask)
    tl.store(id_out + at, tl.min(tl.where(runs, ids[None, :], NO_ID), axis=1), mask=mask)


@triton.jit
def load_winner(score_in, id_in, row, slices, mask, SLICES: tl.constexpr):
    """The winner among the slices' winners. (ROWS,) -> (ROWS,) int32, NO_ID where there is none"""
    part = tl.arange(0, SLICES)
    at = row[:, None] * slices + part[None, :]
    has_part = mask[:, None] & (part < slices)[None, :]
    scores = tl.load(score_in + at, mask=has_part, other=float("-inf"))
    ids = tl.load(id_in + at, mask=has_part, other=NO_ID)
    best = tl.max(scores, axis=1)
    return tl.min(tl.where(scores == best[:, None], ids, NO_ID), axis=1)


@triton.jit
def race_rows(
    logits,
    batch_stride,
    row_stride,
    vocab,
    count,
    width,
    lengths,
    finished,
    temperature,
    seeds,
    positions,
    epochs,
    purpose,
    thresholds,
    statuses,
    own_scores,
    own_ids,
    slices,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Let every row that is sampled draw from its own distribution; row i of a request is at its position + i.

    own_scores, own_ids: (count, slices) float64 and int32
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slice_index = tl.program_id(1)
    request, column, inside = rows_that_count(row, count, width, lengths, finished)
    inside = inside & (tl.load(statuses + row, mask=inside, other=1) == 0)
    inside = inside & (tl.load(temperature + request, mask=inside, other=0.0) > 0)
    inv_t = inverse_temperature(temperature, request, inside)
    threshold = tl.load(thresholds + row, mask=inside, other=0.0)
    seed = tl.load(seeds + request, mask=inside, other=0)
    position = tl.load(positions + request, mask=inside, other=0) + column
    epoch = tl.zeros_like(position)
    if epochs is not None:
        epoch = tl.load(epochs + request, mask=inside, other=0)

    begin = slice_index * BLOCK
    ids = begin + tl.arange(0, BLOCK)
    values = load_row(logits + request * batch_stride + column * row_stride, ids, vocab, inside)
    noise = gumbel(begin, position, tl.zeros_like(position) + purpose, epoch, seed, BLOCK)
    scores = tl.where(values >= threshold[:, None], scaled(values, inv_t) + noise, float("-inf"))
    store_winner(scores, ids, own_scores, own_ids, row * slices + slice_index, inside)


@triton.jit
def race_corrections(
    logits,
    batch_stride,
    row_stride,
    vocab,
    batch,
    width,
    temperature,
    seeds,
    positions,
    columns,
    purposes,
    weights,
    excluded,
    thresholds,
    lses,
    draft,
    draft_batch_stride,
    draft_row_stride,
    draft_vocab,
    draft_ids,
    draft_thresholds,
    draft_lses,
    own_scores,
    own_ids,
    left_scores,
    left_ids,
    slices,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw each request's token at the row its judge chose, if any, and for the purpose it said.

    columns, purposes, weights, excluded: (batch,), the judge's Choice; a column of -1 draws nothing
    draft: None for a draft that was certain of the excluded token
    own_scores, left_scores: (batch, slices) float64; own_ids, left_ids: int32
    """
    request = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slice_index = tl.program_id(1)
    inside = request < batch
    column = tl.load(columns + request, mask=inside, other=-1).to(tl.int64)
    inside = inside & (column >= 0)
    row = request * width + column
    purpose = tl.load(purposes + request, mask=inside, other=0)
    inv_t = inverse_temperature(temperature, request, inside)
    threshold = tl.load(thresholds + row, mask=inside, other=0.0)
    seed = tl.load(seeds + request, mask=inside, other=0)
    position = tl.load(positions + request, mask=inside, other=0) + column

    begin = slice_index * BLOCK
    ids = begin + tl.arange(0, BLOCK)
    values = load_row(logits + request * batch_stride + column * row_stride, ids, vocab, inside)
    noise = gumbel(begin, position, purpose, tl.zeros_like(position), seed, BLOCK)
    own = tl.where(values >= threshold[:, None], scaled(values, inv_t) + noise, float("-inf"))
    at = request * slices + slice_index
    store_winner(own, ids, own_scores, own_ids, at, inside)

    corrects = inside & (purpose == RESIDUAL)
    if draft is not None:
        weight = tl.load(weights + request, mask=corrects, other=0.0)
        lse = tl.load(lses + row, mask=corrects, other=0.0)
        draft_threshold = tl.load(draft_thresholds + row, mask=corrects, other=0.0)
        draft_lse = tl.load(draft_lses + row, mask=corrects, other=0.0)
        draft_start = draft + request * draft_batch_stride + column * draft_row_stride
        draft_values = load_draft_row(draft_start, draft_ids, ids, draft_vocab, vocab, corrects)
        mass = weight[:, None] * probabilities(values, inv_t, threshold, lse)
        mass -= probabilities(draft_values, inv_t, draft_threshold, draft_lse)
        left = tl.where(mass > 0, tl.log(tl.where(mass > 0, mass, 1.0)) + noise, float("-inf"))
    else:
        token = tl.load(excluded + request, mask=corrects, other=-1)
        left = tl.where(ids[None, :] == token[:, None], float("-inf"), own)
    left = tl.where(corrects[:, None], left, float("-inf"))
    store_winner(left, ids, left_scores, left_ids, at, inside)
