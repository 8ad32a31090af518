"""How the kernels are launched: tile sizes, views of logits, scratch, and the statistics of a batch of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pearl_kernels._triton import race, rows

INTERPRETED = bool(triton.knobs.runtime.interpret)
if INTERPRETED and isinstance(tl.sum, triton.JITFunction):
    raise ImportError("TRITON_INTERPRET was set after triton had been imported")
# Elements of a tile, and of a row that one program takes. The interpreter is quickest with few large ones.
TILE = 1 << 16 if INTERPRETED else 1 << 11
SLICE = 1 << 16 if INTERPRETED else 1 << 11
MAX_REQUESTS = 1 << 13 if INTERPRETED else 1  # that one program judges
WARPS = 4
RACE_WARPS = 8  # logarithms in float64 take many registers

# Bits of a float32 below this one are always zero where it was one of these.
_LOW_BIT = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 12}


class Tiles(NamedTuple):
    """How many rows a program takes, and in how many slices of which length a row is cut."""

    rows: int
    block: int
    slices: int
    slices_block: int  # the next power of two

    def grid(self, count: int) -> tuple[int, int]:
        return (triton.cdiv(count, self.rows), self.slices)


def tiles_of(vocab: int, count: int) -> Tiles:
    """The tiles for `count` rows. What comes out for a row must not depend on count."""
    block = max(4, min(SLICE, triton.next_power_of_2(vocab)))
    per_program = max(1, TILE // block)
    if INTERPRETED:  # which reduces every row by itself
        per_program = min(per_program, triton.next_power_of_2(count))
    slices = triton.cdiv(vocab, block)
    return Tiles(per_program, block, slices, triton.next_power_of_2(slices))


def requests_per_program(batch: int) -> int:
    return int(min(MAX_REQUESTS, triton.next_power_of_2(batch)))


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of logits and how they are sampled.

    logits:   (batch, vocab) or (batch, width, vocab)
    lengths:  (batch,) int32, rows of each request that count, or with `finished` a DecodeState's window; None: all
    """

    logits: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    lengths: Tensor | None = None
    finished: Tensor | None = None

    @property
    def size(self) -> int:
        return self.logits.shape[0]

    @property
    def width(self) -> int:
        return 1 if self.logits.ndim == 2 else self.logits.shape[1]

    @property
    def vocab(self) -> int:
        return self.logits.shape[-1]

    @property
    def count(self) -> int:
        return self.size * self.width

    @property
    def tiles(self) -> Tiles:
        return tiles_of(self.vocab, self.count)

    def view(self) -> tuple[Tensor, int, int, int]:
        """The logits as kernels take them: strides of a request and of a row, and the vocabulary."""
        row_stride = 0 if self.logits.ndim == 2 else self.logits.stride(1)
        return self.logits, self.logits.stride(0), row_stride, self.vocab

    def new(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.logits.device)


class Stats(NamedTuple):
    """What is known of each row, (count,): float32 threshold and lse, int32 argmax and status."""

    threshold: Tensor
    lse: Tensor
    best: Tensor
    status: Tensor


def describe(batch: Batch, out: Stats | None = None, *, greedy: bool = False) -> Stats:
    """Statistics of every row that counts. greedy: of the argmax and status alone."""
    count, tiles = batch.count, batch.tiles
    if out is None:
        floats = (batch.new(count, dtype=torch.float32) for _ in range(2))
        ints = (batch.new(count, dtype=torch.int32) for _ in range(2))
        out = Stats(*floats, *ints)
    maxima = batch.new(count, tiles.slices, dtype=torch.float32)
    best_ids = batch.new(count, tiles.slices, dtype=torch.int32)
    sums = None if greedy else torch.empty_like(maxima)
    common = (*batch.view(), count, batch.width, batch.lengths, batch.finished, batch.temperature)
    rows.describe_slices[tiles.grid(count)](
        *common, maxima, best_ids, sums, tiles.slices, ROWS=tiles.rows, BLOCK=tiles.block, num_warps=WARPS
    )
    rows.describe_rows[(triton.cdiv(count, tiles.rows),)](
        *common, batch.top_k, batch.top_p, batch.min_p, maxima, best_ids, sums, tiles.slices, *out,
        ROWS=tiles.rows, BLOCK=tiles.block, SLICES=tiles.slices_block, LOW_BIT=_LOW_BIT[batch.logits.dtype],
        num_warps=2 * WARPS,
    )  # fmt: skip
    return out


class Draws(NamedTuple):
    """The winner of each slice of each race: (races, slices) float64 scores and int32 ids."""

    scores: Tensor
    ids: Tensor


def new_draws(batch: Batch, races: int) -> Draws:
    slices = batch.tiles.slices
    return Draws(batch.new(races, slices, dtype=torch.float64), batch.new(races, slices, dtype=torch.int32))


def race_rows(batch: Batch, stats: Stats, positions: Tensor, epochs: Tensor | None, purpose: int) -> Draws:
    """Let every sampled row draw; positions and epochs are (batch,)."""
    tiles, draws = batch.tiles, new_draws(batch, batch.count)
    race.race_rows[tiles.grid(batch.count)](
        *batch.view(), batch.count, batch.width, batch.lengths, batch.finished, batch.temperature, batch.seed,
        positions, epochs, purpose, stats.threshold, stats.status, *draws, tiles.slices,
        ROWS=tiles.rows, BLOCK=tiles.block, num_warps=RACE_WARPS,
    )  # fmt: skip
    return draws
