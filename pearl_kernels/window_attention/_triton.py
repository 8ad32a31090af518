"""`window_attention` in Triton: how the kernels of `pearl_kernels._triton.attention` are launched."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pearl_kernels._triton.attention import attend_parts, join_parts
from pearl_kernels._triton.launch import FUSED
from pearl_kernels.window_attention import MOST_TRITON_WIDTH, triton_takes

SHORTEST_PART = 128  # entries: the longest tile
MOST_PARTS = 64  # what each leaves to be joined is written and read, however much of the cache it looked at
JOINED = 4096  # numbers of parts that a program joins at once


class Launch(NamedTuple):
    """Sizes of a tile and how it is run. Fixed, never tuned at run time: equal inputs give equal bits."""

    block_m: int
    block_n: int
    block_d: int
    warps: int
    stages: int


def launch_of(queries: int, head_dim: int, dtype: torch.dtype) -> Launch:
    """queries: width * group. What a tile keeps fits into registers, its stages into 100 KiB of shared memory."""
    block_d = max(16, triton.next_power_of_2(head_dim))
    most_m = {256: 32, 512: 16}.get(block_d, 64)
    block_m = min(most_m, max(16, triton.next_power_of_2(queries)))
    block_n = {16: 128, 32: 128, 64: 128, 128: 64, 256: 32, 512: 16}[block_d]
    if dtype is torch.float32:
        block_n = max(16, block_n // 4)
    warps = 8 if block_d * block_m >= 64 * 128 else 4
    return Launch(block_m, block_n, block_d, warps, stages=1 if dtype is torch.float32 else 2)


def part_length_of(capacity: int) -> int:
    """Entries of a part. Whole tiles: a power of two, at least the longest tile."""
    return max(SHORTEST_PART, int(triton.next_power_of_2(triton.cdiv(capacity, MOST_PARTS))))


def joined_at_once(parts: int, block_d: int) -> int:
    """How many parts are loaded together, as many as fit into registers: loads that wait for others take the longer."""
    return min(int(triton.next_power_of_2(parts)), JOINED // block_d)


@torch.no_grad()
def window_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_new: Tensor | None,
    v_new: Tensor | None,
    seq_lens: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """`pearl_kernels.window_attention`. The grid is of the capacity: no length is read on the host."""
    (batch, width, heads, dim), (kv_heads, capacity) = q.shape, k_cache.shape[1:3]
    if not triton_takes(q, k_new):
        raise ValueError(
            f"triton backend: k_new must be at most {MOST_TRITON_WIDTH} rows wide, or in the cache, got width={width}"
        )
    group = heads // kv_heads
    tile = launch_of(width * group, dim, q.dtype)
    part_length = part_length_of(capacity)
    parts = triton.cdiv(capacity, part_length)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    best = torch.empty(batch, kv_heads, width * group, parts, dtype=torch.float32, device=q.device)
    total = torch.empty_like(best)
    sums = torch.empty(*best.shape, dim, dtype=torch.float32, device=q.device)
    new_strides = [0 if x is None else x.stride(axis) for x in (k_new, v_new) for axis in (0, 1, 2)]
    with torch.cuda.device_of(q):
        attend_parts[(parts, kv_heads, batch * triton.cdiv(width * group, tile.block_m))](
            q, k_cache, v_cache, k_new, v_new, seq_lens, best, total, sums, width, group, dim, capacity,
            *q.stride()[:3], *k_cache.stride()[:3], *v_cache.stride()[:3], *new_strides,
            scale, window, softcap, parts, part_length,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=tile.block_d,
            BLOCK_NEW=1 if k_new is None else triton.next_power_of_2(width),
            PRECISION="ieee" if q.dtype is torch.float32 else "tf32",
            num_warps=tile.warps, num_stages=tile.stages, **FUSED,
        )  # fmt: skip
        join_parts[(width * group, kv_heads, batch)](
            best, total, sums, seq_lens, out, width, group, dim, capacity, window, parts, part_length,
            BLOCK_N=tile.block_n, BLOCK_D=tile.block_d,
            PARTS=joined_at_once(parts, tile.block_d), num_warps=4, **FUSED,
        )  # fmt: skip
    return out
