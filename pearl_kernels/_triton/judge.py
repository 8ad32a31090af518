"""The launches that judge a batch of chains; `verify` and `advance_` end them each in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pearl_kernels._triton import block, chain, race
from pearl_kernels._triton.launch import (
    RACE_WARPS,
    WARPS,
    Batch,
    Draws,
    Stats,
    describe,
    new_draws,
    race_rows,
    requests_per_program,
)
from pearl_kernels._triton.noise import SAMPLE


class Draft(NamedTuple):
    """What the drafted tokens were sampled from, as the kernels take it; logits None: the draft was certain."""

    logits: Tensor | None
    batch_stride: int
    row_stride: int
    vocab: int
    ids: Tensor | None  # (vocab of the target,) int32, the draft's id of each target id or -1
    threshold: Tensor | None
    lse: Tensor | None
    status: Tensor | None


class Chains(NamedTuple):
    """Where the drafted tokens are, and the position of each chain's first: (batch, any) and (batch,) int64."""

    tokens: Tensor
    starts: Tensor

    def view(self) -> tuple[Tensor, int, Tensor]:
        return self.tokens, self.tokens.stride(0), self.starts


class Verdict(NamedTuple):
    """(batch,) int32 num_accepted, int64 next_token where no race is run for it, int32 status."""

    num_accepted: Tensor
    next_token: Tensor
    status: Tensor


@dataclass(frozen=True, eq=False)
class Corrections:
    """Races for the tokens after the accepted ones."""

    columns: Tensor
    purposes: Tensor
    own: Draws
    left: Draws
    slices: int

    def arguments(self) -> tuple[Tensor | int, ...]:
        return (self.columns, self.purposes, *self.own, *self.left, self.slices)


def draft_of(
    batch: Batch, logits: Tensor | None, threshold: Tensor | None, lse: Tensor | None, d2t: Tensor | None
) -> Draft:
    """The draft's side of `batch`; its statistics are computed if they are not given."""
    if logits is None:
        return Draft(None, 0, 0, 0, None, None, None, None)
    status = None
    if threshold is None or lse is None:
        own = Batch(
            logits, batch.temperature, batch.top_k, batch.top_p, batch.min_p, batch.seed, batch.lengths, batch.finished
        )
        threshold, lse, _, status = describe(own)
    ids = None
    if d2t is not None:
        ids = torch.full((batch.vocab,), -1, dtype=torch.int32, device=d2t.device)
        ids.scatter_(0, d2t, torch.arange(d2t.shape[0], dtype=torch.int32, device=d2t.device))
    return Draft(logits, logits.stride(0), logits.stride(1), logits.shape[2], ids, threshold, lse, status)


def judge(batch: Batch, chains: Chains, rule: str, draft_parts: Any, verdict: Verdict) -> Corrections | None:
    """Judge every chain by `rule`, into `verdict`, and run the races for tokens it leaves open.

    draft_parts: logits, threshold, lse and d2t of the draft, as `verify` takes them
    """
    stats = describe(batch, greedy=rule == "greedy")
    draws = race_rows(batch, stats, chains.starts, None, SAMPLE.value) if rule == "coupled" else (None, None)
    draft = draft_of(batch, *(draft_parts if rule in ("token", "block") else (None,) * 4))
    choice = _new_choice(batch) if rule in ("token", "block") else (None,) * 4
    by = {"token": chain.RATIO, "coupled": chain.EQUALS_DRAW}.get(rule, chain.EQUALS_ARGMAX)
    per_program, slices = requests_per_program(batch.size), batch.tiles.slices
    grid = (triton.cdiv(batch.size, per_program),)
    chain.judge_prefix[grid](
        *batch.view(), batch.size, batch.width, batch.lengths, batch.finished, batch.temperature, batch.seed,
        *chains.view(), *stats, *draft, *draws, slices, *verdict, *choice,
        RULE=by, REQUESTS=per_program, SLICES=batch.tiles.slices_block, num_warps=1,
    )  # fmt: skip
    if rule == "block":
        _judge_blocks(batch, chains, stats, draft, verdict, choice)
    if rule in ("token", "block"):
        return _race_corrections(batch, chains, stats, draft, choice)
    return None


def _new_choice(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """columns, purposes, weights and excluded tokens."""
    dtypes = (torch.int32, torch.int32, torch.float64, torch.int64)
    columns, purposes, weights, excluded = (batch.new(batch.size, dtype=dtype) for dtype in dtypes)
    return columns, purposes, weights, excluded


def _judge_blocks(batch: Batch, chains: Chains, stats: Stats, draft: Draft, verdict: Verdict, choice: Any) -> None:
    tiles, per_program = batch.tiles, requests_per_program(batch.size)
    grid = (triton.cdiv(batch.size, per_program),)
    prefix_weights = batch.new(batch.size, batch.width + 1, dtype=torch.float64)
    target_probs = batch.new(batch.size, batch.width, dtype=torch.float64)
    usable, cut_status = (batch.new(batch.size, dtype=torch.int32) for _ in range(2))
    lengths = (batch.lengths, batch.finished, batch.temperature)
    block.weigh_prefixes[grid](
        *batch.view(), batch.size, batch.width, *lengths, *chains.view(), stats.threshold, stats.lse, *draft,
        prefix_weights, target_probs, usable, cut_status, REQUESTS=per_program, num_warps=1,
    )  # fmt: skip
    leftovers = None
    if draft.logits is not None:
        leftovers = batch.new(batch.count, tiles.slices, dtype=torch.float64)
        block.sum_leftovers[tiles.grid(batch.count)](
            *batch.view(), batch.count, batch.width, *lengths, stats.threshold, stats.lse, *draft[:-1],
            prefix_weights, usable, leftovers, tiles.slices, ROWS=tiles.rows, BLOCK=tiles.block, num_warps=WARPS,
        )  # fmt: skip
    block.judge_blocks[grid](
        batch.size, batch.width, *lengths, batch.seed, *chains.view(), stats.status,
        prefix_weights, target_probs, usable, cut_status, leftovers, tiles.slices, *verdict, *choice,
        REQUESTS=per_program, SLICES=tiles.slices_block, num_warps=1,
    )  # fmt: skip


def _race_corrections(batch: Batch, chains: Chains, stats: Stats, draft: Draft, choice: Any) -> Corrections:
    # As many rows to a program as for all rows, so that a row's tile is the same in every kernel.
    tiles = batch.tiles
    own, left = new_draws(batch, batch.size), new_draws(batch, batch.size)
    race.race_corrections[tiles.grid(batch.size)](
        *batch.view(), batch.size, batch.width, batch.temperature, batch.seed, chains.starts, *choice,
        stats.threshold, stats.lse, *draft[:-1], *own, *left, tiles.slices,
        ROWS=tiles.rows, BLOCK=tiles.block, num_warps=RACE_WARPS,
    )  # fmt: skip
    return Corrections(choice[0], choice[1], own, left, tiles.slices)
