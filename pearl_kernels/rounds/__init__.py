"""Whole rounds of speculation on a CPU: draft, verify and commit in one call, or in one for each lane."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels.dispatch import backends
from pearl_kernels.rounds.drafter import Drafter
from pearl_kernels.threads import num_threads
from pearl_kernels.types import DecodeState, SamplingTensors
from pearl_kernels.window_decoder import Window

__all__ = ["DraftRows", "Drafter", "RoundOutput", "Rounds", "runs_rounds"]


class RoundOutput(NamedTuple):
    """What a round gave each row, and when its parts ran.

    emitted:      the tokens that were committed
    num_accepted: how many of them were drafted
    draft_error:  of a draft that failed: nothing was drafted then
    drafted_s, begun_s, verified_s: the draft's end, the begin and the end of the target's forward, in seconds since the
                  call
    """

    emitted: list[list[int]]
    num_accepted: list[int]
    draft_error: str | None
    drafted_s: float
    begun_s: float
    verified_s: float


class DraftRows(NamedTuple):
    """What a row's drafted tokens were drawn from, slot by slot: all float32 and contiguous.

    logits:         (slots, batch, outputs of the draft's head)
    threshold, lse: (slots, batch), as in RowStats
    """

    logits: Tensor
    threshold: Tensor
    lse: Tensor

    @classmethod
    def empty(cls, slots: int, like: Tensor) -> DraftRows:
        """like: (batch, outputs)"""
        logits = like.new_zeros(slots, *like.shape)
        return cls(logits, *(logits.new_zeros(logits.shape[:2], dtype=torch.float32) for _ in range(2)))


def runs_rounds() -> bool:
    """Whether `Rounds` can run here, and no other backend is forced."""
    return backends()["cpu"].available and os.environ.get("PEARL_BACKEND", "cpu") in ("", "cpu")


class Rounds:
    """The rounds of one batch, in C++: what Python and torch do between forwards takes several times as long as
    elsewhere, since these leave nothing of it in any cache.

    Where nothing waits to be verified, as in plain speculation, or none, `run` is equivalent to, with the operations of
    these names and heads = state.committed:
        drafted = draft_chain(the `missed` tokens before heads, ..., epochs=heads unless purpose is Purpose.SAMPLE)
        state.tokens[heads : heads + gamma] = drafted, or -1 where the draft row has a status; state.window = gamma
        state.tokens[heads + gamma] = -1
        logits = window_decoder(state.tokens[heads - 1 : heads + gamma], ..., heads - 1, keep=gamma + 1)
        advance_(state, logits, params, draft_logits=..., draft_stats=..., d2t=d2t, rule=rule)

    A round of PEARL is `draft` and `read_windows`, which may run at once on threads of their own, and `commit`. With
    first = state.committed, heads = first + state.window and width = 1 + max(state.window) they are equivalent to
        drafted = draft_chain(the `missed` tokens before heads, ..., epochs=first unless purpose is Purpose.SAMPLE)
        logits = window_decoder(state.tokens[first - 1 : first - 1 + width], ..., first - 1, keep=width)
        state.tokens[heads : heads + gamma] = drafted, or -1 where the draft row has a status
        advance_(state, logits, params, draft_logits=..., draft_stats=..., d2t=d2t, rule=rule, next_window=gamma - 1)

    Rows that are finished are left as they are.

    state, params: as in `advance_`
    target:  a Window of any tokens at any place, for its weights, angles and caches
    draft:   a Drafter, or None
    rule:    as in `advance_`
    All tensors are read and written where they are now, as weights that are `held`.
    Raises ValueError naming the argument, what was expected and what came.
    """

    def __init__(
        self, state: DecodeState, params: SamplingTensors, target: Window, draft: Drafter | None, *, rule: str
    ) -> None:
        op, batch = "Rounds", len(target.tokens)
        if not batch:
            raise ValueError(f"{op}: target must be of one row at least, got none")
        self._capacity = target.check(op)
        device = target.tokens.device
        checks.params(op, params, batch, device)
        checks.rule(op, rule)
        checks.state(op, state, batch, state.tokens.shape[-1], device)
        if draft is not None:
            self._capacity = min(self._capacity, draft.check(op, batch, target.weights.head.out_features, device))
        self._state = state
        self._drafts = draft is not None
        self._drafted = self._read = 0  # tokens, and the width of the windows, that wait for `commit`
        self._outputs = 0 if draft is None else draft.window.weights.head.out_features
        native = import_module("pearl_kernels.rounds._native")
        self._rounds, self._kept = native.native_rounds(state, params, target, draft, rule)

    def run(self, gamma: int, missed: int = 0, guesses: Sequence[Sequence[int]] = ()) -> RoundOutput:
        """One round.

        gamma:   tokens to draft of each row; 0: the target draws one by itself
        missed:  as many last committed tokens of each row the draft has not read: at least 1 where it drafts
        guesses: gamma tokens of each row, or none of a row, in place of what a draft would draw

        A draft that fails costs its tokens alone; a target that fails raises what it failed with.
        """
        committed, window = self._lengths()
        if any(window):
            raise ValueError(f"Rounds: state.window must be 0, got {window}")
        if gamma < 0 or max(committed) + gamma + 1 > min(self._capacity + 1, self._state.tokens.shape[1]):
            raise ValueError(
                f"Rounds: gamma must be at least 0 and leave room in caches of {self._capacity} positions and "
                f"{self._state.tokens.shape[1]} tokens, got {gamma} after {max(committed)}"
            )
        if guesses and (len(guesses) != len(committed) or any(len(row) not in (0, gamma) for row in guesses)):
            raise ValueError(
                f"Rounds: guesses must be gamma={gamma} tokens or none of each of batch={len(committed)} rows, "
                f"got {[len(row) for row in guesses]}"
            )
        if gamma and not guesses and not (self._drafts and 1 <= missed <= min(committed)):
            raise ValueError(
                f"Rounds: missed must be from 1 to {min(committed)}, with a draft, where that drafts, got {missed}"
            )
        self._drafted = self._read = 0
        error, seconds, emitted, accepted = self._rounds.run(gamma, missed, guesses, num_threads())
        return RoundOutput(emitted, accepted, error, *seconds)

    def draft(self, gamma: int, missed: int, rows: DraftRows | None) -> None:
        """Draft gamma tokens past each row's window, for `commit`.

        gamma:  at least 1
        missed: as many last tokens before heads the draft has not read, at least 1
        rows:   of gamma slots or more: what the tokens are drawn from; None where verification asks for none
        """
        heads = [committed + window for committed, window in zip(*self._lengths(), strict=True)]
        room = min(self._capacity + 1, self._state.tokens.shape[1]) - max(heads)
        if not 1 <= gamma <= room:
            raise ValueError(f"Rounds: gamma must be from 1 to {room} past the longest row, got {gamma}")
        if not self._drafts or not 1 <= missed <= min(heads):
            raise ValueError(f"Rounds: missed must be from 1 to {min(heads)}, with a draft, got {missed}")
        self._rounds.draft(gamma, missed, self._places("rows", rows, gamma), num_threads())
        self._drafted = gamma

    def read_windows(self) -> None:
        """Let the target read the windows, for `commit`."""
        width = 1 + max(self._check_windows())
        self._rounds.read_windows(num_threads())
        self._read = width

    def commit(
        self, gamma: int, drafted: DraftRows | None, chain: DraftRows | None
    ) -> tuple[list[list[int]], list[int]]:
        """Verify each window and the first token that was drafted past it. Where all is accepted, the other gamma - 1
        are the next window.

        gamma:   as it was drafted; 0: nothing was, and the target draws the token itself
        drafted: as `draft` was given
        chain:   from slot 1 on what the windows were drawn from, with a slot behind the longest, where that of the
                 first token is put; None as for `rows`. The `drafted` of a round is the chain of the next

        Returns what a RoundOutput calls `emitted` and `num_accepted`.
        """
        width = 1 + max(self._check_windows())
        if gamma not in (0, self._drafted):
            raise ValueError(f"Rounds: gamma must be 0, or {self._drafted} as was drafted, got {gamma}")
        if width != self._read:
            raise ValueError(f"Rounds: commit must follow read_windows of the same width={width}, got {self._read}")
        if (drafted is None) != (chain is None):
            raise ValueError("Rounds: drafted and chain must both be given or both be None")
        places = self._places("drafted", drafted, min(1, gamma)), self._places("chain", chain, 1 + width)
        emitted, accepted = self._rounds.commit(gamma, *places, num_threads())
        self._drafted = self._read = 0
        return emitted, accepted

    def _lengths(self) -> tuple[list[int], list[int]]:
        """The committed tokens and the window of each row."""
        committed, window = self._state.committed.tolist(), self._state.window.tolist()
        if min(committed) < 1:
            raise ValueError(f"Rounds: state.committed must be at least 1, got {committed}")
        return committed, window

    def _check_windows(self) -> list[int]:
        committed, window = self._lengths()
        most = min(self._capacity + 1, self._state.tokens.shape[1]) - max(committed) - 1
        if not all(0 <= size <= most for size in window):
            raise ValueError(f"Rounds: state.window must be from 0 to {most}, got {window}")
        return window

    def _places(self, name: str, rows: DraftRows | None, least: int) -> tuple[int, int, int]:
        """Where they are; refused unless they have so many slots."""
        if rows is None:
            return 0, 0, 0
        slots = max(least, rows.threshold.shape[0])
        sizes = (("slots", slots), ("batch", len(self._state.committed)))
        device = self._state.committed.device
        for field, value, more in (
            ("logits", rows.logits, (("outputs", self._outputs),)),
            ("threshold", rows.threshold, ()),
            ("lse", rows.lse, ()),
        ):
            checks.tensor("Rounds", f"{name}.{field}", value, (*sizes, *more), torch.float32, device)
            if not value.is_contiguous():
                raise ValueError(f"Rounds: {name}.{field} must be contiguous, got strides {value.stride()}")
        return rows.logits.data_ptr(), rows.threshold.data_ptr(), rows.lse.data_ptr()
