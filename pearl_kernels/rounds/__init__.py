"""Whole rounds of speculation on a CPU: draft, verify and commit in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from pearl_kernels import checks
from pearl_kernels.dispatch import backends
from pearl_kernels.rounds.drafter import Drafter
from pearl_kernels.threads import num_threads
from pearl_kernels.types import DecodeState, SamplingTensors
from pearl_kernels.window_decoder import Window

__all__ = ["Drafter", "RoundOutput", "Rounds", "runs_rounds"]


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


def runs_rounds() -> bool:
    """Whether `Rounds` can run here, and no other backend is forced."""
    return backends()["cpu"].available and os.environ.get("PEARL_BACKEND", "cpu") in ("", "cpu")


class Rounds:
    """The rounds of one batch in which nothing waits to be verified: plain speculation, or none.

    A round is equivalent to, with the operations of these names and heads = state.committed:
        drafted = draft_chain(the `missed` tokens before heads, ..., epochs=heads unless purpose is Purpose.SAMPLE)
        state.tokens[heads : heads + gamma] = drafted, or -1 where the draft row has a status; state.window = gamma
        state.tokens[heads + gamma] = -1
        logits = window_decoder(state.tokens[heads - 1 : heads + gamma], ..., heads - 1, keep=gamma + 1)
        advance_(state, logits, params, draft_logits=..., draft_stats=..., d2t=d2t, rule=rule)
    but for rows that are finished, which are left as they are. It is all in C++: what Python and torch do between
    forwards takes several times as long as elsewhere, since these leave nothing of it in any cache.

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
        self._capacity = target.check(op)
        device = target.tokens.device
        checks.params(op, params, batch, device)
        checks.rule(op, rule)
        checks.state(op, state, batch, state.tokens.shape[-1], device)
        if draft is not None:
            self._capacity = min(self._capacity, draft.check(op, batch, target.weights.head.out_features, device))
        self._state = state
        self._drafts = draft is not None
        native = import_module("pearl_kernels.rounds._native")
        self._rounds, self._kept = native.native_rounds(state, params, target, draft, rule)

    def run(self, gamma: int, missed: int = 0, guesses: Sequence[Sequence[int]] = ()) -> RoundOutput:
        """One round.

        gamma:   tokens to draft of each row; 0: the target draws one by itself
        missed:  as many last committed tokens of each row the draft has not read: at least 1 where it drafts
        guesses: gamma tokens of each row, or none of a row, in place of what a draft would draw

        A draft that fails costs its tokens alone; a target that fails raises what it failed with.
        """
        committed, window = self._state.committed.tolist(), self._state.window.tolist()
        if any(window):
            raise ValueError(f"Rounds: state.window must be 0, got {window}")
        if min(committed, default=1) < 1:
            raise ValueError(f"Rounds: state.committed must be at least 1, got {committed}")
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
        error, seconds, emitted, accepted = self._rounds.run(gamma, missed, guesses, num_threads())
        return RoundOutput(emitted, accepted, error, *seconds)
