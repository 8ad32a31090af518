"""`sample` in Triton: a program takes a slice of each of some rows, and who comes last with these finishes them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pearl_kernels._triton.launch import FUSED, LOW_BIT, REGISTERS, WARPS, tiles_of, view_of
from pearl_kernels._triton.rows import arrive, finish_rows, look_at_slice
from pearl_kernels._triton.workspace import Size, workspace


@triton.jit(do_not_specialize=("batch", "purpose", "slices"))
def sample_rows(
    logits, batch_stride, row_stride, vocab, batch, temperature, top_k, top_p, min_p, seeds,
    positions, epochs, purpose, counters, maxima, best_ids, sums, scores, winners, slices,
    tokens, threshold_out, lse_out, status_out,
    REQUESTS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, SLICES: tl.constexpr, LOW_BIT: tl.constexpr,
):  # fmt: skip
    """Draw each row's token, the argmax of a greedy row, 0 of a bad one, and keep the row's statistics."""
    program = tl.program_id(0)
    slice_index, group = program % slices, program // slices
    request = group.to(tl.int64) * REQUESTS + tl.arange(0, REQUESTS)
    inside = request < batch
    position = tl.load(positions + request, mask=inside, other=0)
    seed = tl.load(seeds + request, mask=inside, other=0)
    epoch = tl.zeros_like(position)
    if epochs is not None:
        epoch = tl.load(epochs + request, mask=inside, other=0)
    purposes = tl.zeros_like(position) + purpose
    excluded = tl.full(position.shape, -1, tl.int64)
    start = logits + request * batch_stride
    look_at_slice(
        start, vocab, slice_index, request, slices, request, inside, temperature, top_k, top_p, min_p,
        excluded, position, purposes, epoch, seed, maxima, best_ids, sums, scores, winners, False, True, BLOCK,
    )  # fmt: skip
    if arrive(counters + group, slices):
        status, own = finish_rows(
            start, vocab, request, slices, request, inside, temperature, top_k, top_p, min_p,
            excluded, position, purposes, epoch, seed, maxima, best_ids, sums, scores, winners,
            threshold_out, lse_out, status_out, REQUESTS, STEP, SLICES, LOW_BIT, True,
        )  # fmt: skip
        tl.store(tokens + request, tl.where(status == 0, own, 0).to(tl.int64), mask=inside)


def sample_out(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    positions: Tensor,
    epochs: Tensor | None,
    purpose: int,
    tokens: Tensor,
    threshold: Tensor,
    lse: Tensor,
    status: Tensor,
) -> None:
    """Draw a token for each row and keep the row's statistics, as `pearl_kernels.sample` says."""
    batch, vocab = logits.shape
    if batch == 0:
        return
    tiles = tiles_of(vocab, batch)
    groups = triton.cdiv(batch, tiles.rows)
    size = Size(groups, batch, 1, 1, tiles.slices)
    with torch.cuda.device_of(logits), workspace(size, logits.device) as scratch:
        sample_rows[(groups * tiles.slices,)](
            *view_of(logits), batch, temperature, top_k, top_p, min_p, seed, positions, epochs, purpose,
            scratch.row_counters, scratch.maxima, scratch.best_ids, scratch.sums, scratch.scores, scratch.winners,
            tiles.slices, tokens, threshold, lse, status,
            REQUESTS=tiles.rows, BLOCK=tiles.block, STEP=tiles.step, SLICES=tiles.slices_block,
            LOW_BIT=LOW_BIT[logits.dtype], num_warps=WARPS, maxnreg=REGISTERS, **FUSED,
        )  # fmt: skip
