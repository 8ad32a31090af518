"""From rows of logits to RowStats, in two kernels: partial results of slices of rows, then one program per row.

A request has `width` rows, of which those before its length are looked at. `lengths` is (batch,) int32: the length
itself, or where `finished` is given the window of a DecodeState, a token shorter. Both None: all rows count.
"""

import triton
import triton.language as tl

from pearl_kernels._triton.thresholds import mass_from, min_p_threshold, select_count, select_mass

# The bits of pearl_kernels.Status.
TARGET_INVALID = tl.constexpr(1)
DRAFT_INVALID = tl.constexpr(2)
EMPTY_DISTRIBUTION = tl.constexpr(4)

NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def length_of(lengths, finished, request, mask):
    """Rows of each request that count; 0 where the mask is false."""
    length = mask.to(tl.int32)
    if lengths is not None:
        length = tl.load(lengths + request, mask=mask, other=0)
        if finished is not None:
            running = tl.load(finished + request, mask=mask, other=1) == 0
            length = tl.where(running, length + 1, 0)
    return length


@triton.jit
def rows_that_count(row, count, width, lengths, finished):
    """The request and column of each row index, and whether it counts. All (ROWS,)."""
    request, column = row // width, row % width
    inside = row < count
    if lengths is not None:
        inside = inside & (column < length_of(lengths, finished, request, inside))
    return request, column, inside


@triton.jit
def inverse_temperature(temperature, request, mask):
    """1 / temperature, rounded as a division, and 1 for greedy rows."""
    value = tl.load(temperature + request, mask=mask, other=1.0)
    return tl.div_rn(tl.full(value.shape, 1.0, tl.float32), tl.where(value > 0, value, 1.0))


@triton.jit
def load_row(row_start, ids, size, mask):
    """Logits as float32, -inf where there are none, +inf in place of NaN. (ROWS,), (BLOCK,) -> (ROWS, BLOCK)"""
    inside = mask[:, None] & (ids < size)[None, :]
    values = tl.load(row_start[:, None] + ids[None, :], mask=inside, other=float("-inf")).to(tl.float32)
    return tl.where(values < float("inf"), values, float("inf"))


@triton.jit
def describe_slices(
    logits,
    batch_stride,
    row_stride,
    vocab,
    count,
    width,
    lengths,
    finished,
    temperature,
    maxima,
    best_ids,
    sums,
    slices,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of each slice of each row: its maximum, the lowest id that has it, and the mass relative to it.

    maxima, sums: (count, slices) float32; the maximum of a slice with NaN is +inf. sums None: not wanted
    best_ids:     (count, slices) int32
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slice_index = tl.program_id(1)
    request, column, inside = rows_that_count(row, count, width, lengths, finished)
    ids = slice_index * BLOCK + tl.arange(0, BLOCK)
    values = load_row(logits + request * batch_stride + column * row_stride, ids, vocab, inside)
    maximum = tl.max(values, axis=1)
    at = row * slices + slice_index
    tl.store(maxima + at, maximum, mask=inside)
    tl.store(best_ids + at, tl.min(tl.where(values == maximum[:, None], ids[None, :], NO_ID), axis=1), mask=inside)
    if sums is not None:
        reference = tl.where(tl.abs(maximum) < float("inf"), maximum, 0.0)
        inv_t = inverse_temperature(temperature, request, inside)
        masses = tl.exp(tl.minimum(values - reference[:, None], 0.0) * inv_t[:, None])
        tl.store(sums + at, tl.sum(masses, axis=1), mask=inside)


@triton.jit
def describe_rows(
    logits,
    batch_stride,
    row_stride,
    vocab,
    count,
    width,
    lengths,
    finished,
    temperature,
    top_k,
    top_p,
    min_p,
    maxima,
    best_ids,
    sums,
    slices,
    threshold_out,
    lse_out,
    best_out,
    status_out,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SLICES: tl.constexpr,
    LOW_BIT: tl.constexpr,
):
    """RowStats, argmax and status of each row, from what `describe_slices` found; with sums None, the last two only.

    threshold_out, lse_out: (count,) float32
    best_out, status_out:   (count,) int32
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    request, column, inside = rows_that_count(row, count, width, lengths, finished)
    part = tl.arange(0, SLICES)
    at = row[:, None] * slices + part[None, :]
    has_part = inside[:, None] & (part < slices)[None, :]
    slice_top = tl.load(maxima + at, mask=has_part, other=float("-inf"))
    top = tl.max(slice_top, axis=1)
    slice_best = tl.load(best_ids + at, mask=has_part, other=NO_ID)
    tl.store(best_out + row, tl.min(tl.where(slice_top == top[:, None], slice_best, NO_ID), axis=1), mask=inside)
    invalid = top == float("inf")
    if sums is not None:
        temp = tl.load(temperature + request, mask=inside, other=0.0)
        inv_t = inverse_temperature(temperature, request, inside)
        invalid = invalid | ((temp > 0) & (tl.abs(top * inv_t) == float("inf")) & (top > float("-inf")))
    status = tl.where(invalid, TARGET_INVALID, tl.where(top == float("-inf"), EMPTY_DISTRIBUTION, 0))
    tl.store(status_out + row, status, mask=inside)
    if sums is not None:
        usable = inside & (status == 0)
        sampled = usable & (temp > 0)
        top = tl.where(usable, top, 0.0)
        drop = tl.minimum(slice_top - top[:, None], 0.0).to(tl.float64) * inv_t[:, None].to(tl.float64)
        parts = tl.load(sums + at, mask=has_part & usable[:, None], other=0.0).to(tl.float64)
        mass = tl.sum(parts * tl.exp(drop), axis=1)

        start = logits + request * batch_stride + column * row_stride
        k = tl.load(top_k + request, mask=inside, other=0)
        p = tl.load(top_p + request, mask=inside, other=1.0)
        least = tl.load(min_p + request, mask=inside, other=0.0)
        by_count = sampled & (k > 0) & (k < vocab)
        by_mass = sampled & (p < 1)
        by_ratio = sampled & (least > 0)
        threshold = tl.full((ROWS,), float("-inf"), tl.float32)
        if tl.max(by_count.to(tl.int32), axis=0) > 0:
            kth = select_count(start, vocab, by_count, k, ROWS, BLOCK, LOW_BIT)
            threshold = tl.where(by_count, kth, threshold)
        if tl.max(by_mass.to(tl.int32), axis=0) > 0:
            nucleus = select_mass(start, vocab, by_mass, p, threshold, top, inv_t, ROWS, BLOCK, LOW_BIT)
            threshold = tl.where(by_mass, tl.maximum(threshold, nucleus), threshold)
        ratio_bound = min_p_threshold(top, temp, tl.where(by_ratio, least, 1.0))
        threshold = tl.where(by_ratio, tl.maximum(threshold, ratio_bound), threshold)
        filtered = by_count | by_mass | by_ratio
        if tl.max(filtered.to(tl.int32), axis=0) > 0:
            kept = mass_from(start, vocab, filtered, threshold, top, inv_t, ROWS, BLOCK)
            mass = tl.where(filtered, kept, mass)
        lse = top.to(tl.float64) * inv_t.to(tl.float64) + tl.log(tl.where(sampled, mass, 1.0))
        greedy = usable & (temp == 0)
        threshold = tl.where(greedy, top, threshold)
        tl.store(threshold_out + row, threshold, mask=inside)
        tl.store(lse_out + row, tl.where(sampled, lse, 0.0).to(tl.float32), mask=inside)
