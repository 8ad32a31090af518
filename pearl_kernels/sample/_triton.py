"""`sample` in Triton: describe each slice of each row, then each row, race the slices, and crown a winner."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pearl_kernels._triton.launch import Batch, Stats, describe, race_rows, requests_per_program
from pearl_kernels._triton.race import load_winner


@triton.jit
def crown(
    temperature, best, statuses, own_scores, own_ids, slices, tokens, batch, ROWS: tl.constexpr, SLICES: tl.constexpr
):
    """Write each row's token: the winner of its race, the argmax of a greedy row, 0 of a bad one."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < batch
    good = inside & (tl.load(statuses + row, mask=inside, other=1) == 0)
    greedy = tl.load(temperature + row, mask=inside, other=0.0) == 0
    drawn = load_winner(own_scores, own_ids, row, slices, good & (greedy == 0), SLICES)
    argmax = tl.load(best + row, mask=good, other=0)
    tl.store(tokens + row, tl.where(good, tl.where(greedy, argmax, drawn), 0).to(tl.int64), mask=inside)


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
    if logits.shape[0] == 0:
        return
    batch = Batch(logits, temperature, top_k, top_p, min_p, seed)
    with torch.cuda.device_of(logits):
        stats = describe(batch, Stats(threshold, lse, torch.empty_like(status), status))
        draws = race_rows(batch, stats, positions, epochs, purpose)
        per_program = requests_per_program(batch.size)
        crown[(triton.cdiv(batch.size, per_program),)](
            temperature, stats.best, status, *draws, batch.tiles.slices, tokens, batch.size,
            ROWS=per_program, SLICES=batch.tiles.slices_block, num_warps=1,
        )  # fmt: skip
