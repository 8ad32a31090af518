"""Attention of a few queries to a long cache, in parts: one program per part of a row's cache, then one that joins.

The queries of all `width` rows that share a key head are one tile, so that a cache is read once. Parts are cut at
fixed positions and the tiles in them too: what a query's tiles are depends on its position alone. Lengths are read on
the device, and a program whose part is past its row's end, or before its window, ends at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# The interpreter keeps bfloat16 as integers, and multiplies those.
_WIDEN = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _bounds(seq_lens, row, width, capacity, window):
    """Of a row: entries before the new ones, end of the new ones, and the first position any query looks at."""
    length = tl.load(seq_lens + row).to(tl.int32)
    end = tl.minimum(length + width, capacity)
    first = 0
    if window is not None:
        first = tl.maximum(length - window + 1, 0)
    return length, end, first


@triton.jit
def _attend_tile(
    q, k_base, v_base, k_stride, v_stride, k_new, v_new, k_new_stride, v_new_stride, start, length, end, first,
    position, columns, head_dim, scale, window, softcap, best, total, sums,
    BLOCK_N: tl.constexpr, APPENDED: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Add the BLOCK_N positions from `start` on to the running maximum, total weight and weighted sum.

    APPENDED: some of them are new ones. Those are taken from where they come from: another program may be writing
    them to the cache.
    """
    at = start + tl.arange(0, BLOCK_N)
    held = (at >= first) & (at < (length if APPENDED else end))
    inside = held[:, None] & (columns < head_dim)[None, :]
    offsets = at.to(tl.int64)[:, None]
    keys = tl.load(k_base + offsets * k_stride + columns[None, :], mask=inside, other=0.0)
    values = tl.load(v_base + offsets * v_stride + columns[None, :], mask=inside, other=0.0)
    if APPENDED:
        fresh = ((at >= length) & (at < end))[:, None] & (columns < head_dim)[None, :]
        offsets = (at - length).to(tl.int64)[:, None]
        keys = tl.where(fresh, tl.load(k_new + offsets * k_new_stride + columns[None, :], mask=fresh, other=0.0), keys)
        values = tl.where(
            fresh, tl.load(v_new + offsets * v_new_stride + columns[None, :], mask=fresh, other=0.0), values
        )
    if _WIDEN:
        q, keys, values = q.to(tl.float32), keys.to(tl.float32), values.to(tl.float32)

    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale
    if softcap is not None:
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))
    seen = (at[None, :] <= position[:, None]) & (at < end)[None, :]
    if window is not None:
        seen = seen & (at[None, :] > position[:, None] - window)
    scores = tl.where(seen, scores * LOG2_E, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, 1))
    level = tl.where(higher == float("-inf"), 0.0, higher)  # a query that has seen nothing yet
    weights = tl.exp2(scores - level[:, None])
    shrunk = tl.exp2(best - level)
    total = total * shrunk + tl.sum(weights, 1)
    sums = sums * shrunk[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    return higher, total, sums


@triton.jit(do_not_specialize=("capacity", "parts"))
def attend_parts(
    q, k_cache, v_cache, k_new, v_new, seq_lens, part_best, part_total, part_sums, width, group, head_dim, capacity,
    q_row_stride, q_width_stride, q_head_stride, k_row_stride, k_head_stride, k_stride, v_row_stride, v_head_stride,
    v_stride, k_new_row_stride, k_new_stride, k_new_head_stride, v_new_row_stride, v_new_stride, v_new_head_stride,
    scale, window, softcap, parts, part_length,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_NEW: tl.constexpr,
    PRECISION: tl.constexpr
):  # fmt: skip
    """One part of a row's cache for one key head and up to BLOCK_M of its queries; also writes the new entries.

    part_best, part_total: (batch, kv_heads, width * group, parts) float32, base-2 logarithm and sum of the weights
    part_sums:             (batch, kv_heads, width * group, parts, head_dim) float32
    Parts that no query of the row sees are not written.
    """
    part = tl.program_id(0)
    kv_heads = tl.num_programs(1)
    tiles = tl.cdiv(width * group, BLOCK_M)
    row, tile = (tl.program_id(2) // tiles).to(tl.int64), tl.program_id(2) % tiles
    head = tl.program_id(1).to(tl.int64)
    length, end, first = _bounds(seq_lens, row, width, capacity, window)
    low = tl.maximum(part * part_length, first // BLOCK_N * BLOCK_N)
    high = tl.minimum((part + 1) * part_length, end)
    if (low >= high) | (length < 0):
        return

    columns = tl.arange(0, BLOCK_D)
    query = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    step, member = query // group, query % group
    position = length + step
    used = query < width * group
    q += row * q_row_stride + head * group * q_head_stride
    offsets = step.to(tl.int64) * q_width_stride + member.to(tl.int64) * q_head_stride
    inside = used[:, None] & (columns < head_dim)[None, :]
    queries = tl.load(q + offsets[:, None] + columns[None, :], mask=inside, other=0.0)
    k_cache += row * k_row_stride + head * k_head_stride
    v_cache += row * v_row_stride + head * v_head_stride
    if k_new is not None:
        k_new += row * k_new_row_stride + head * k_new_head_stride
        v_new += row * v_new_row_stride + head * v_new_head_stride

    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    held_high = high
    if k_new is not None:
        held_high = tl.maximum(tl.minimum(high, length // BLOCK_N * BLOCK_N), low)
    for start in range(low, held_high, BLOCK_N):
        best, total, sums = _attend_tile(
            queries, k_cache, v_cache, k_stride, v_stride, k_new, v_new, k_new_stride, v_new_stride, start, length,
            end, first, position, columns, head_dim, scale, window, softcap, best, total, sums,
            BLOCK_N, False, PRECISION,
        )  # fmt: skip
    if k_new is not None:
        for start in tl.range(held_high, high, BLOCK_N, num_stages=1):  # a tile or two: no memory to load them ahead
            best, total, sums = _attend_tile(
                queries, k_cache, v_cache, k_stride, v_stride, k_new, v_new, k_new_stride, v_new_stride, start, length,
                end, first, position, columns, head_dim, scale, window, softcap, best, total, sums,
                BLOCK_N, True, PRECISION,
            )  # fmt: skip
        fresh = length + tl.arange(0, BLOCK_NEW)
        mine = (fresh >= part * part_length) & (fresh < tl.where(tile == 0, high, 0))
        inside = mine[:, None] & (columns < head_dim)[None, :]
        source, target = tl.arange(0, BLOCK_NEW).to(tl.int64)[:, None], fresh.to(tl.int64)[:, None]
        keys = tl.load(k_new + source * k_new_stride + columns[None, :], mask=inside)
        values = tl.load(v_new + source * v_new_stride + columns[None, :], mask=inside)
        tl.store(k_cache + target * k_stride + columns[None, :], keys, mask=inside)
        tl.store(v_cache + target * v_stride + columns[None, :], values, mask=inside)

    slot = ((row * kv_heads + head) * width * group + query) * parts + part
    tl.store(part_best + slot, best, mask=used)
    tl.store(part_total + slot, total, mask=used)
    tl.store(
        part_sums + slot[:, None] * head_dim + columns[None, :],
        sums,
        mask=used[:, None] & (columns < head_dim)[None, :],
    )


@triton.jit(do_not_specialize=("capacity", "parts"))
def join_parts(
    part_best, part_total, part_sums, seq_lens, out, width, group, head_dim, capacity, window, parts, part_length,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """Join one query's parts, PARTS at a time, and write out (batch, width, heads, head_dim), contiguous."""
    query, head, row = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    kv_heads = tl.num_programs(1)
    length, end, first = _bounds(seq_lens, row, width, capacity, window)
    columns = tl.arange(0, BLOCK_D)
    slot = ((row * kv_heads + head) * width * group + query) * parts
    best = float("-inf")
    total = 0.0
    sums = tl.zeros((BLOCK_D,), tl.float32)
    if length >= 0:
        end = tl.cdiv(end, part_length)
        for begin in range(first // BLOCK_N * BLOCK_N // part_length, end, PARTS):
            part = begin + tl.arange(0, PARTS)
            written = part < end
            own = tl.load(part_best + slot + part, mask=written, other=float("-inf"))
            higher = tl.maximum(best, tl.max(own, 0))
            level = tl.where(higher == float("-inf"), 0.0, higher)
            shrunk, factors = tl.exp2(best - level), tl.exp2(own - level)
            totals = tl.load(part_total + slot + part, mask=written, other=0.0)
            total = total * shrunk + tl.sum(totals * factors, 0)
            inside = written[:, None] & (columns < head_dim)[None, :]
            rows = tl.load(part_sums + (slot + part)[:, None] * head_dim + columns[None, :], mask=inside, other=0.0)
            sums = sums * shrunk + tl.sum(rows * factors[:, None], 0)
            best = higher
    at = ((row * width + query // group) * kv_heads * group + head * group + query % group) * head_dim
    tl.store(out + at + columns, (sums / total).to(out.dtype.element_ty), mask=columns < head_dim)
