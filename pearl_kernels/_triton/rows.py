"""From rows of logits to RowStats and draws: partial results of slices of rows, then the rest by who comes last.

A request has `width` rows, of which those before its length are looked at. `lengths` is (batch,) int32: the length
itself, or where `finished` is given the window of a DecodeState, a token shorter.
"""

import triton
import triton.language as tl

from pearl_kernels._triton.race import NO_ID, load_winner, race
from pearl_kernels._triton.thresholds import load_values, mass_from, min_p_threshold, select_count, select_mass

# The bits of pearl_kernels.Status.
TARGET_INVALID = tl.constexpr(1)
DRAFT_INVALID = tl.constexpr(2)
EMPTY_DISTRIBUTION = tl.constexpr(4)

SMALLEST = tl.constexpr(2.0**-126)  # temperature whose inverse is a number


@triton.jit
def arrive(counter, count):
    """Whether this program is the last of `count` to come here; it then sees what all of them stored before.

    The barrier puts the stores of all its threads before the atomic, which one thread does for all, and which releases
    them to the device and acquires those of the others; the second one keeps later loads behind it. What others stored
    is then loaded past the first-level cache. The counter is left at zero for the next time.
    """
    tl.debug_barrier()
    is_last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == count - 1
    tl.debug_barrier()
    if is_last:
        tl.store(counter, 0)
    return is_last


@triton.jit
def length_of(lengths, finished, request, width, mask):
    """Rows of each request that count; 0 where the mask is false."""
    length = tl.load(lengths + request, mask=mask, other=0)
    if finished is not None:
        running = tl.load(finished + request, mask=mask, other=1) == 0
        length = tl.where(running, length + 1, 0)
    return tl.minimum(length, width)


@triton.jit
def inverse_temperature(temperature, request, mask):
    """1 / temperature, rounded as a division, of at least the smallest normal number; and 1 for greedy rows."""
    value = tl.load(temperature + request, mask=mask, other=1.0)
    return tl.div_rn(tl.full(value.shape, 1.0, tl.float32), tl.where(value > 0, tl.maximum(value, SMALLEST), 1.0))


@triton.jit
def load_row(row_start, ids, size, mask):
    """Logits as float32, -inf where there are none, +inf in place of NaN. (ROWS,), (BLOCK,) -> (ROWS, BLOCK)"""
    inside = mask[:, None] & (ids < size)[None, :]
    values = tl.load(row_start[:, None] + ids[None, :], mask=inside, other=float("-inf")).to(tl.float32)
    return tl.where(values < float("inf"), values, float("inf"))


@triton.jit
def filters_of(temperature, top_k, top_p, min_p, vocab, request, mask):
    """Which rows are sampled, and by which filters they are: top_k, top_p, min_p. (ROWS,) bool each"""
    sampled = mask & (tl.load(temperature + request, mask=mask, other=0.0) > 0)
    k = tl.load(top_k + request, mask=sampled, other=0)
    by_mass = tl.load(top_p + request, mask=sampled, other=1.0) < 1
    by_ratio = tl.load(min_p + request, mask=sampled, other=0.0) > 0
    return sampled, (k > 0) & (k < vocab), by_mass, by_ratio


@triton.jit
def look_at_slice(
    start, vocab, slice_index, row, slices, request, mask, temperature, top_k, top_p, min_p,
    excluded, position, purpose, epoch, seed,
    maxima, best_ids, sums, scores, winners,
    GREEDY: tl.constexpr, DRAWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of a slice of each row: its maximum, the lowest id that has it, the mass relative to it, and a race's winner.

    GREEDY: the first two are all that is wanted. DRAWS: races are wanted, of sampled rows; a filtered one's waits
    maxima, sums:    (rows, slices) float32; the maximum of a slice with NaN is +inf
    scores, winners: (rows, slices) float64 and int32
    """
    begin = slice_index * BLOCK
    ids = begin + tl.arange(0, BLOCK)
    values = load_row(start, ids, vocab, mask)
    maximum = tl.max(values, axis=1)
    at = row * slices + slice_index
    tl.store(maxima + at, maximum, mask=mask)
    tl.store(best_ids + at, tl.min(tl.where(values == maximum[:, None], ids[None, :], NO_ID), axis=1), mask=mask)
    if not GREEDY:
        sampled, by_count, by_mass, by_ratio = filters_of(temperature, top_k, top_p, min_p, vocab, request, mask)
        inv_t = inverse_temperature(temperature, request, mask)
        reference = tl.where(tl.abs(maximum) < float("inf"), maximum, 0.0)
        masses = tl.exp(tl.minimum(values - reference[:, None], 0.0) * inv_t[:, None])
        # In float64, as a row's address decides which of them a thread adds up.
        tl.store(sums + at, tl.sum(masses.to(tl.float64), axis=1).to(tl.float32), mask=mask)
        if DRAWS:
            races = sampled & ((by_count | by_mass | by_ratio) == 0) & (maximum < float("inf"))
            if tl.max(races.to(tl.int32), axis=0) > 0:
                score, winner = race(
                    start, values, begin, tl.full(maximum.shape, float("-inf"), tl.float32), inv_t, excluded,
                    position, purpose, epoch, seed, races,
                    tl.full(maximum.shape, float("-inf"), tl.float64), tl.full(maximum.shape, NO_ID, tl.int32),
                    BLOCK, True,
                )  # fmt: skip
                tl.store(scores + at, score, mask=races)
                tl.store(winners + at, winner, mask=races)


@triton.jit
def peak_of_slices(maxima, best_ids, row, slices, mask, SLICES: tl.constexpr):
    """The maximum of each row and the lowest id that has it. (ROWS,) float32 and int32"""
    part = tl.arange(0, SLICES)
    at = row[:, None] * slices + part[None, :]
    has_part = mask[:, None] & (part < slices)[None, :]
    tops = tl.load(maxima + at, mask=has_part, other=float("-inf"), cache_modifier=".cg")
    top = tl.max(tops, axis=1)
    ids = tl.load(best_ids + at, mask=has_part, other=NO_ID, cache_modifier=".cg")
    return top, tl.min(tl.where(tops == top[:, None], ids, NO_ID), axis=1)


@triton.jit
def mass_of_slices(maxima, sums, row, slices, top, inv_t, mask, SLICES: tl.constexpr):
    """The mass of each row relative to its maximum. (ROWS,) float64"""
    part = tl.arange(0, SLICES)
    at = row[:, None] * slices + part[None, :]
    has_part = mask[:, None] & (part < slices)[None, :]
    tops = tl.load(maxima + at, mask=has_part, other=float("-inf"), cache_modifier=".cg")
    drop = tl.minimum(tops - top[:, None], 0.0).to(tl.float64) * inv_t[:, None].to(tl.float64)
    parts = tl.load(sums + at, mask=has_part, other=0.0, cache_modifier=".cg").to(tl.float64)
    return tl.sum(parts * tl.exp(drop), axis=1)


@triton.jit
def race_through(
    start, vocab, threshold, inv_t, excluded, position, purpose, epoch, seed, mask,
    ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The winner among what a filter left of whole rows. (ROWS,) int32"""
    best = tl.full((ROWS,), float("-inf"), tl.float64)
    best_id = tl.full((ROWS,), NO_ID, tl.int32)
    for begin in range(0, vocab, STEP):
        values = load_values(start, begin, vocab, mask, STEP)
        best, best_id = race(
            start, values, begin, threshold, inv_t, excluded, position, purpose, epoch, seed, mask, best, best_id,
            STEP, False,
        )  # fmt: skip
    return best_id


@triton.jit
def finish_rows(
    start, vocab, row, slices, request, mask, temperature, top_k, top_p, min_p,
    excluded, position, purpose, epoch, seed,
    maxima, best_ids, sums, scores, winners, thresholds, lses, statuses,
    ROWS: tl.constexpr, STEP: tl.constexpr, SLICES: tl.constexpr, LOW_BIT: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    """Store threshold, lse and status of each row, from what `look_at_slice` found. Its status and its draw.

    The draw of a sampled row whose race nobody won is the excluded id: nothing else is kept. Others' is the argmax.
    """
    top, best = peak_of_slices(maxima, best_ids, row, slices, mask, SLICES)
    sampled, by_count, by_mass, by_ratio = filters_of(temperature, top_k, top_p, min_p, vocab, request, mask)
    temp = tl.load(temperature + request, mask=mask, other=0.0)
    inv_t = inverse_temperature(temperature, request, mask)
    overflows = sampled & (tl.abs(top * inv_t) == float("inf")) & (top > float("-inf"))
    status = tl.where(
        (top == float("inf")) | overflows, TARGET_INVALID, tl.where(top == float("-inf"), EMPTY_DISTRIBUTION, 0)
    )
    usable = mask & (status == 0)
    sampled = sampled & usable
    top = tl.where(usable, top, 0.0)
    mass = mass_of_slices(maxima, sums, row, slices, top, inv_t, usable, SLICES)
    by_count, by_mass, by_ratio = by_count & usable, by_mass & usable, by_ratio & usable
    filtered = by_count | by_mass | by_ratio
    own = best
    if DRAWS:
        own = tl.where(sampled, load_winner(scores, winners, row, slices, sampled & (filtered == 0), SLICES), best)
    threshold = tl.full((ROWS,), float("-inf"), tl.float32)
    if tl.max(filtered.to(tl.int32), axis=0) > 0:
        k = tl.load(top_k + request, mask=by_count, other=0)
        fraction = tl.load(top_p + request, mask=by_mass, other=1.0)
        least = tl.load(min_p + request, mask=by_ratio, other=1.0)
        if tl.max(by_count.to(tl.int32), axis=0) > 0:
            kth = select_count(start, vocab, by_count, k, ROWS, STEP, LOW_BIT)
            threshold = tl.where(by_count, kth, threshold)
        if tl.max(by_mass.to(tl.int32), axis=0) > 0:
            nucleus = select_mass(start, vocab, by_mass, fraction, threshold, top, inv_t, ROWS, STEP, LOW_BIT)
            threshold = tl.where(by_mass, tl.maximum(threshold, nucleus), threshold)
        threshold = tl.where(by_ratio, tl.maximum(threshold, min_p_threshold(top, temp, least)), threshold)
        mass = tl.where(filtered, mass_from(start, vocab, filtered, threshold, top, inv_t, ROWS, STEP), mass)
        if DRAWS:
            drawn = race_through(
                start, vocab, threshold, inv_t, excluded, position, purpose, epoch, seed, filtered, ROWS, STEP
            )
            own = tl.where(filtered, drawn, own)
    lse = top.to(tl.float64) * inv_t.to(tl.float64) + tl.log(tl.where(sampled, mass, 1.0))
    threshold = tl.where(usable & (sampled == 0), top, threshold)
    if DRAWS:
        own = tl.where(sampled & (own == NO_ID), excluded.to(tl.int32), own)
    tl.store(thresholds + row, threshold, mask=mask)
    tl.store(lses + row, tl.where(sampled, lse, 0.0).to(tl.float32), mask=mask)
    tl.store(statuses + row, status, mask=mask)
    return status, own
