"""Rounds in few calls, where kernels run the models on a CPU: in one, or in PEARL in three, of two lanes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from pearl_decode.lanes.draft import DraftLane
from pearl_decode.lanes.target import TargetLane
from pearl_decode.lanes.worker import Job
from pearl_decode.models import MOST_ROWS
from pearl_decode.state import Batch
from pearl_kernels import Drafter, RoundOutput, Rounds, kernels_alone, runs_rounds

# Of a round of PEARL the draft's part, true when it is done, and the target's: what a RoundOutput calls `emitted` and
# `num_accepted`.
Ahead = tuple[Job[bool], Job[tuple[list[list[int]], list[int]]]]
# Of what is made before a round begins. A round in parts fails too, but its draft by itself, which costs speed alone.
NO_MEMORY = (MemoryError, OSError, RuntimeError)


class RoundsAtOnce:
    """Those of a batch as long as its rows are the same: after that, another one is to be made."""

    def __init__(self, batch: Batch, target: TargetLane, draft: DraftLane | None, rule: str) -> None:
        self._batch = batch
        self._target = target
        self._draft = draft if draft is not None and draft.model.is_whole else None
        self._may_run = target.model.is_whole and runs_rounds()
        self._rule = rule
        self._rounds: Rounds | None = None

    def begin(self, gamma: int, guesses: Sequence[Sequence[int]]) -> Job[RoundOutput | None] | None:
        """A round, as in `pearl_kernels.Rounds.run`. None, now or as its result, where it has to be done in parts."""
        drafts = gamma > 0 and not guesses
        if drafts and self._draft and self._draft.has_new:
            return None
        missed = max(self._draft.missed) if self._draft and drafts else 0
        if not self._fits(drafts) or missed > min(MOST_ROWS, *self._batch.committed):
            return None
        return self._target.lane.run(lambda: self._run(gamma, missed, guesses))

    def begin_ahead(self, gamma: int) -> Ahead | None:
        """A round of PEARL. None where it has to be done in parts. A draft that fails costs its tokens alone."""
        target, draft = self._target, self._draft
        if not self._may_run or draft is None or draft.has_new or not draft.draws_all:
            return None
        if draft.lane.shares_thread(target.lane):
            return None
        heads, missed = self._batch.heads, max(draft.missed)
        if missed > min(MOST_ROWS, *heads):
            return None
        with torch.inference_mode():  # as lanes run
            if not (target.model.runs_at_once(target.cache) and draft.model.runs_at_once(draft.cache)):
                return None
            chain, ahead = None, None
            try:
                rounds = self._rounds = self._rounds or self._made()
                if draft.keeps_logits:
                    chain, ahead = (each.rows for each in draft.chains(draft.model.empty_logits(len(heads))))
            except NO_MEMORY:
                return None
        draft.cached = [head + gamma - 1 for head in heads]

        def write() -> bool:
            with kernels_alone(), draft.lane.forward(gamma):
                rounds.draft(gamma, missed, ahead)
            draft.forwards += gamma
            return True

        def verify() -> tuple[list[list[int]], list[int]]:
            with kernels_alone():
                with target.lane.forward():
                    rounds.read_windows()
                drafting.wait()
                return rounds.commit(0 if drafting.failed else gamma, ahead, chain)

        drafting = draft.lane.run(write)
        return drafting, target.lane.run(verify)

    def _fits(self, drafts: bool) -> bool:
        """Whether there is anything that can be done at once, whoever looks on."""
        lane, draft = self._target.lane, self._draft
        if not self._may_run or not lane.AT_ONCE:
            return False
        return not drafts or (draft is not None and draft.lane.shares_thread(lane))

    def _run(self, gamma: int, missed: int, guesses: Sequence[Sequence[int]]) -> RoundOutput | None:
        target, draft = self._target, self._draft
        with kernels_alone():
            if not target.model.runs_at_once(target.cache):
                return None
            if draft is not None and not draft.model.runs_at_once(draft.cache):
                return None
            try:
                rounds = self._rounds = self._rounds or self._made()
            except NO_MEMORY:
                return None
            begin = time.perf_counter()
            output = rounds.run(gamma, missed, guesses)
        if draft is not None and missed and output.draft_error is None:
            draft.lane.note(begin, begin + output.drafted_s, gamma)
            draft.forwards += gamma
            draft.cached = [committed + gamma - 1 for committed in self._batch.committed]
        target.lane.note(begin + output.begun_s, begin + output.verified_s)
        return output

    def _made(self) -> Rounds:
        batch, target, draft = self._batch, self._target, self._draft
        drafter, rows = None, len(batch.committed)
        if draft is not None:
            drafter = Drafter(
                draft.model.window(draft.cache, rows),
                draft.model.drawn_from(draft.vocab_size),
                draft.purpose,
                draft.model.d2t,
                *draft.model.induced(draft.cache, batch.state.tokens),
            )
        return Rounds(batch.state, batch.params, target.model.window(target.cache, rows), drafter, rule=self._rule)
