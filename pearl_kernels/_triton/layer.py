"""What is between the matrix products and the attention of a decoder layer, in three kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_rows(x, weight, copy, out, size, eps, offset, BLOCK: tl.constexpr):
    """out (rows, size) = x normed, times weight + offset; copy = x, unless it is None. One program for each row."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < size
    values = tl.load(x + row * size + column, mask=inside, other=0.0)
    if copy is not None:
        tl.store(copy + row * size + column, values, mask=inside)
    wide = values.to(tl.float32)
    scaled = wide / tl.sqrt(tl.sum(wide * wide, 0) / size + eps)
    scaled *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + offset
    tl.store(out + row * size + column, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _normed_head(low, high, weight, column, inside, half, eps):
    """Both halves of a head, normed unless weight is None."""
    if weight is not None:
        squares = tl.sum(low * low, 0) + tl.sum(high * high, 0)
        factor = 1.0 / tl.sqrt(squares / (2 * half) + eps)
        low *= factor * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        high *= factor * tl.load(weight + half + column, mask=inside, other=0.0).to(tl.float32)
    return low, high


@triton.jit
def place_heads(
    joined, q_norm, k_norm, cos, sin, angles_batch_stride, positions, seq_lens, starts, q_out, k_cache, v_cache,
    k_batch_stride, k_head_stride, k_entry_stride, v_batch_stride, v_head_stride, v_entry_stride,
    width, heads, kv_heads, head_dim, capacity, eps, HALF: tl.constexpr,
):  # fmt: skip
    """Split joined (batch, width, (heads + 2 * kv_heads) * head_dim) into heads, one for each program: queries and keys
    are normed, where their norms are not None, and rotated; keys and values are stored in the cache, from `starts` on:
    seq_lens (batch,), taken to what the cache has room for.

    cos, sin: of the window's tokens; where angles_batch_stride is None, of so many positions, the last for all past it
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    batch, query = row // width, row % width
    half = head_dim // 2
    column = tl.arange(0, HALF)
    inside = column < half
    source = joined + (row * (heads + 2 * kv_heads) + head) * head_dim + column
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    is_query, is_key = head < heads, (head >= heads) & (head < heads + kv_heads)
    if is_query:
        low, high = _normed_head(low, high, q_norm, column, inside, half, eps)
    if is_key:
        low, high = _normed_head(low, high, k_norm, column, inside, half, eps)
    start = tl.minimum(tl.maximum(tl.load(seq_lens + batch), 0), capacity - width)
    if is_query | is_key:
        if angles_batch_stride is None:
            angle = tl.minimum(start + query, positions - 1) * head_dim + column
        else:
            angle = batch * angles_batch_stride + query * head_dim + column
        cos_low = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
        cos_high = tl.load(cos + angle + half, mask=inside, other=0.0).to(tl.float32)
        sin_low = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
        sin_high = tl.load(sin + angle + half, mask=inside, other=0.0).to(tl.float32)
        turned_low = low * cos_low - high * sin_low
        high = high * cos_high + low * sin_high
        low = turned_low
    if is_query:
        target = q_out + (row * heads + head) * head_dim
        if (head == 0) & (query == 0):
            tl.store(starts + batch, start)
    else:
        if is_key:
            entry = batch * k_batch_stride + (start + query) * k_entry_stride
            target = k_cache + entry + (head - heads) * k_head_stride
        else:
            entry = batch * v_batch_stride + (start + query) * v_entry_stride
            target = v_cache + entry + (head - heads - kv_heads) * v_head_stride
    tl.store(target + column, low.to(q_out.dtype.element_ty), mask=inside)
    tl.store(target + half + column, high.to(q_out.dtype.element_ty), mask=inside)


@triton.jit
def gate_rows(joined, out, inner, BLOCK: tl.constexpr):
    """out (rows, inner) = silu(gate) * up, of joined (rows, 2 * inner), which is gate and up."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    gate = tl.load(joined + row * 2 * inner + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(joined + row * 2 * inner + inner + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * inner + column, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)
