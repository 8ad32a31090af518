"""The launches that judge a batch of chains, for `verify` and `advance_`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pearl_kernels._triton import chain
from pearl_kernels._triton.chains import judge_rows
from pearl_kernels._triton.launch import FUSED, LOW_BIT, REGISTERS, RESIDUAL_WARPS, WARPS, tiles_of, view_of
from pearl_kernels._triton.residuals import draw_residuals, sum_masses
from pearl_kernels._triton.workspace import Scratch, Size, workspace

RULES: dict[str, int] = {
    "greedy": chain.GREEDY.value,
    "token": chain.TOKEN.value,
    "block": chain.BLOCK_RULE.value,
    "coupled": chain.COUPLED.value,
}


class Draft(NamedTuple):
    """What the drafted tokens were sampled from, as the doors take it; logits None: the draft was certain."""

    logits: Tensor | None
    threshold: Tensor | None
    lse: Tensor | None
    d2t: Tensor | None


class Chains(NamedTuple):
    """Where the drafted tokens are, each chain's first position and its length; with `finished`, of a DecodeState."""

    tokens: Tensor  # (batch, any) int64
    starts: Tensor  # (batch,) int64
    lengths: Tensor  # (batch,) int32
    finished: Tensor | None


class Ends(NamedTuple):
    """Where verdicts go, and what ends a sequence of a DecodeState; in the order in which kernels take it."""

    max_len: Tensor | None
    eos_ids: Tensor | None
    eos_count: int
    next_window: int
    num_accepted: Tensor
    next_token: Tensor | None
    status: Tensor
    num_emitted: Tensor | None


class Params(NamedTuple):
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor


@dataclass(frozen=True, eq=False)
class _Judging:
    """One call, and its arguments as kernels take them."""

    logits: Tensor
    chains: Chains
    params: Params
    draft: Draft
    ends: Ends
    rule: str

    def queue(self) -> None:
        batch, width, vocab = self.logits.shape
        tiles = tiles_of(vocab, batch)
        groups = triton.cdiv(batch, tiles.rows)
        sides = 2 if self.draft.logits is not None and self.draft.lse is None else 1
        size = Size(groups, batch, width, sides, tiles.slices)
        with workspace(size, self.logits.device) as scratch:
            self._judge_rows(scratch, size)
            if self.draft.logits is not None:
                if self.rule == "block":
                    self._sum_masses(scratch, size)
                self._draw_residuals(scratch, size)

    @property
    def _constants(self) -> dict[str, int]:
        batch, width, vocab = self.logits.shape
        tiles = tiles_of(vocab, batch)
        return {
            "REQUESTS": tiles.rows,
            "WIDTH": triton.next_power_of_2(width),
            "BLOCK": tiles.block,
            "SLICES": tiles.slices_block,
            "EOS_BLOCK": triton.next_power_of_2(max(1, self.ends.eos_count)),
            "STEPS": 0 if self.draft.logits is None else self.draft.logits.shape[2].bit_length(),
        }

    def _draft_arguments(self, scratch: Scratch) -> tuple[Tensor | int | None, ...]:
        """View, d2t and statistics; those that are computed come with a status."""
        logits, threshold, lse, d2t = self.draft
        if logits is None:
            return (None, 0, 0, 0, None, None, None, None)
        if lse is None:
            return (*view_of(logits), d2t, scratch.draft_thresholds, scratch.draft_lses, scratch.draft_statuses)
        return (*view_of(logits), d2t, threshold, lse, None)

    def _chain_arguments(self) -> tuple[Tensor | int | None, ...]:
        return (self.chains.tokens, self.chains.tokens.stride(0), self.chains.starts)

    def _rows_arguments(self) -> tuple[Tensor | int | None, ...]:
        batch, width, _ = self.logits.shape
        return (*view_of(self.logits), batch, width, self.chains.lengths, self.chains.finished)

    def _judge_rows(self, scratch: Scratch, size: Size) -> None:
        certain = self.draft.logits is None
        draft_dtype = self.logits.dtype if self.draft.logits is None else self.draft.logits.dtype
        judge_rows[(size.groups * size.sides * size.width * size.slices,)](
            *self._rows_arguments(), *self.params, *self._chain_arguments(), *self._draft_arguments(scratch),
            scratch.row_counters, scratch.request_counters, scratch.maxima, scratch.best_ids, scratch.sums,
            scratch.scores, scratch.winners, scratch.thresholds, scratch.lses, scratch.statuses, scratch.own,
            scratch.columns, scratch.purposes, scratch.weights, scratch.bits, scratch.usable_lengths,
            scratch.prefix_weights, size.slices, *self.ends,
            RULE=RULES[self.rule], DRAWS=self.rule == "coupled" or (certain and self.rule != "greedy"),
            SIDES=size.sides, STEP=tiles_of(self.logits.shape[2], size.batch).step,
            LOW_BIT=LOW_BIT[self.logits.dtype], DRAFT_LOW_BIT=LOW_BIT[draft_dtype], num_warps=WARPS,
            maxnreg=None if self.rule == "greedy" else REGISTERS, **FUSED, **self._constants,
        )  # fmt: skip

    def _sum_masses(self, scratch: Scratch, size: Size) -> None:
        sum_masses[(size.groups * max(size.width - 1, 1) * size.slices,)](
            *self._rows_arguments(), self.params.temperature, self.params.seed, *self._chain_arguments(),
            *self._draft_arguments(scratch)[:-1],
            scratch.request_counters, scratch.thresholds, scratch.lses, scratch.statuses, scratch.scores,
            scratch.columns, scratch.purposes, scratch.weights, scratch.bits, scratch.usable_lengths,
            scratch.prefix_weights, size.slices, *self.ends, num_warps=RESIDUAL_WARPS, **FUSED, **self._constants,
        )  # fmt: skip

    def _draw_residuals(self, scratch: Scratch, size: Size) -> None:
        draw_residuals[(size.groups * size.slices,)](
            *self._rows_arguments(), self.params.temperature, self.params.seed, *self._chain_arguments(),
            *self._draft_arguments(scratch)[:-1],
            scratch.request_counters, scratch.thresholds, scratch.lses,
            scratch.columns, scratch.purposes, scratch.weights, scratch.bits,
            scratch.scores, scratch.winners, scratch.left_scores, scratch.left_ids, size.slices, *self.ends,
            num_warps=RESIDUAL_WARPS, **FUSED, **self._constants,
        )  # fmt: skip


def judge(logits: Tensor, chains: Chains, params: Params, draft: Draft, ends: Ends, rule: str) -> None:
    """Judge every chain by `rule`, and close it as `ends` and `chains` say."""
    if logits.shape[0] == 0:
        return
    if rule not in ("token", "block"):
        draft = Draft(None, None, None, None)
    with torch.cuda.device_of(logits):
        _Judging(logits, chains, params, draft, ends, rule).queue()
