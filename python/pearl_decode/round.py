"""What every strategy's round is made of: draft, verify, commit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pearl_decode.at_once import RoundsAtOnce
from pearl_decode.lanes.draft import ChainLogits, DraftLane
from pearl_decode.lanes.target import TargetLane
from pearl_decode.lanes.worker import Job
from pearl_decode.lookup import PromptLookup
from pearl_decode.past import Past, Read
from pearl_decode.state import PLACEHOLDER, Batch
from pearl_kernels import advance_, kernels_alone

T = TypeVar("T")
SETTLED_S = 0.5e-3  # a lane's thread has the interpreter to itself for so long, to begin its forward


@dataclass(frozen=True)
class Outcome:
    """One round, per row: tokens committed, drafted ones among them, drafted ones the target judged, one by one until
    the first it refused; and the draft forwards it took.
    """

    emitted: list[list[int]]
    num_accepted: list[int]
    num_judged: list[int]
    draft_forwards: int


class Round:
    """The parts of a round over one batch. A strategy calls them in its own order.

    A draft that fails costs speed, never a request: it is dropped with a warning and the target goes on alone.

    gamma:   tokens to draft, which may be another number every round
    lookups: prompt lookup of each row, where it is wanted
    chores:  what the host has to do some time; done, once, while a lane works
    """

    def __init__(
        self,
        batch: Batch,
        target: TargetLane,
        draft: DraftLane | None,
        rule: str,
        gamma: int,
        lookups: list[PromptLookup] | None = None,
    ) -> None:
        self.batch = batch
        self.target = target
        self.draft = draft
        self.rule = rule
        self.gamma = gamma
        self.lookups = lookups
        self.chores: Callable[[], None] | None = None
        self._at_once = RoundsAtOnce(batch, target, draft, rule)
        self.drafting = draft is not None

    def go_on(self, past: Past, capacity: int) -> None:
        """Begin with what was read of the batch's only text before, in caches of this capacity or more."""
        target, draft = past.take()
        if target is not None:
            self.target.go_on(target, capacity)
        if draft is not None and self.draft is not None:
            self.draft.go_on(draft, capacity)
        elif draft is not None:
            draft.release()

    def leave(self, past: Past) -> None:
        """Let the batch's only text be gone on with, where its target is one call."""
        if not self.target.model.is_whole:
            return
        past.release()
        tokens = self.batch.state.tokens[0, : self.batch.committed[0] - 1].tolist()
        past.target = Read(self.target.cache, tokens)
        if self.draft is not None and self.drafting:
            past.draft = Read(self.draft.cache, tokens[: self.draft.cached[0]])

    def release(self) -> None:
        """Give the caches' memory back, when nothing runs in them any more. The end of these rounds."""
        self.target.cache.release()
        if self.draft is not None:
            self.draft.cache.release()

    def prefill(self, drafting: bool) -> None:
        """Both lanes read the prompts, at once; the draft later, when it first drafts, if it is not sure to."""
        prompting = self.draft.prefill() if self.draft and drafting else None
        reading = self.target.prefill()
        if prompting is not None:
            self.drafted(prompting)
        reading.result()

    @property
    def draft_chain(self) -> ChainLogits | None:
        """The distributions the drafted chain was drawn from, where verification needs them."""
        return self.draft.chain if self.draft else None

    def leave_draft(self) -> None:
        """Go on without the draft, before it has drafted anything."""
        self.drafting = False
        self._free_draft()

    def guesses(self, count: int) -> list[list[int]]:
        """What prompt lookup drafts: per row `count` tokens, or none."""
        return [lookup.continuation(count) for lookup in self.lookups or ()]

    def matched(self) -> list[int]:
        """How much of each row's text prompt lookup goes by, 0 where it has no guess."""
        return [lookup.matched for lookup in self.lookups or ()] or [0] * len(self.batch.committed)

    def do_chores(self, beside: Job[Any] | None = None) -> None:
        """Do them, if there are any: now, or beside a lane's work when that has begun."""
        if self.chores is None:
            return
        if beside is not None:
            beside.wait(SETTLED_S)
        chores, self.chores = self.chores, None
        chores()

    def drafted(self, future: Job[T]) -> T | None:
        """Wait for the draft; None if it failed, and from then on."""
        try:
            return future.result()
        except Exception as error:  # whatever it is, the target can go on
            self._lose_draft(repr(error))
            return None

    def write_drafts(self, drafted: torch.Tensor | None) -> None:
        """Put the drafted tokens (batch, n) after the window, or a placeholder where there are none."""
        if drafted is None:
            drafted = self.batch.state.tokens.new_full((len(self.batch.committed), 1), PLACEHOLDER)
        self.batch.write(self.batch.heads, drafted)

    def commit(
        self,
        verifying: Job[torch.Tensor],
        next_window: int,
        drafted: Sequence[int],
        chain: ChainLogits | None = None,
    ) -> Outcome:
        """Verify the window and the token after it, commit the outcome, and roll both caches back.

        drafted: how many tokens of each row's chain are drafted ones, the rest are placeholders
        chain:   what the draft model drew them from; None for certain guesses, or where the rule does not ask
        """
        self.do_chores(beside=verifying)
        logits = verifying.result()
        draft_logits, draft_stats = (None, None) if chain is None else chain.first(logits.shape[1])
        before = self.batch.committed
        with kernels_alone():  # or OpenMP threads of this one would wait awake beside the lanes
            output = advance_(
                self.batch.state,
                logits,
                self.batch.params,
                draft_logits=draft_logits,
                draft_stats=draft_stats,
                d2t=self.draft.model.d2t if self.draft and chain else None,
                rule=self.rule,
                next_window=next_window,
            )
        self.batch.refresh()
        return self._outcome(self.batch.since(before), output.num_accepted.tolist(), drafted)

    def at_once(self, gamma: int, guesses: Sequence[list[int]] = ()) -> Outcome | None:
        """Draft, verify and commit in one call, where nothing waits to be verified. None where that cannot be.

        gamma:   tokens to draft of each row; 0: the target alone draws one
        guesses: gamma tokens of each row, or none of a row, in place of the draft's
        """
        running = self._at_once.begin(gamma, guesses)
        if running is None:
            return None
        self.do_chores(beside=running)
        output = running.result()
        if output is None:
            return None
        self.batch.refresh()
        drafted = [len(guess) for guess in guesses] or [gamma] * len(output.emitted)
        if output.draft_error is not None:
            self._lose_draft(output.draft_error)
            drafted = [0] * len(drafted)
        return self._outcome(output.emitted, output.num_accepted, drafted)

    def ahead_at_once(self, gamma: int) -> Outcome | None:
        """Draft past the windows while the target reads them, verify and commit, in few calls of each lane. None where
        that cannot be.
        """
        begun = self._at_once.begin_ahead(gamma) if self.drafting else None
        if begun is None:
            return None
        drafting, verifying = begun
        chain = list(self.batch.window)
        self.do_chores(beside=verifying)
        if self.drafted(drafting):
            chain = [window + 1 for window in chain]
        emitted, accepted = verifying.result()
        self.batch.refresh()
        return self._outcome(emitted, accepted, chain)

    def _lose_draft(self, error: str) -> None:
        self.drafting = False
        warnings.warn(f"the draft failed, the target goes on alone: {error}", RuntimeWarning, stacklevel=2)

    def _free_draft(self) -> None:
        if self.draft is not None:
            self.draft.cache.release()
        self.draft = None
        self._at_once = RoundsAtOnce(self.batch, self.target, None, self.rule)

    def _outcome(self, emitted: list[list[int]], accepted: list[int], drafted: Sequence[int]) -> Outcome:
        """What was committed, after it was. drafted: how many tokens of each row's chain were drafted ones."""
        forwards = 0
        if self.draft is not None:
            self.draft.settle()
            forwards, self.draft.forwards = self.draft.forwards, 0
            if not self.drafting and not any(self.batch.window):
                self._free_draft()  # its last window is verified
        for lookup, tokens in zip(self.lookups or (), emitted, strict=False):
            lookup.extend(tokens)
        # A refusal shows by the corrected token after the accepted ones.
        judged = [a + (a < d and a < len(e)) for a, d, e in zip(accepted, drafted, emitted, strict=True)]
        return Outcome(emitted, accepted, judged, forwards)

    def replace(self, rows: list[int], others: Batch, drafting: bool) -> None:
        """Let the sequences of another batch take the places of these rows, and read their prompts.

        drafting: as in `prefill`
        Raises what the target raises; the rows that go on do not notice.
        """
        self.batch.replace(rows, others)
        if self.lookups is not None:
            for row, prompt in zip(rows, others.since([0] * len(rows)), strict=True):
                self.lookups[row] = PromptLookup(prompt)
        prompting = None
        if self.draft is not None:
            self.draft.replace(rows)
            prompting = self.draft.read_new() if self.drafting and drafting else None
        reading = self.target.replace(rows)
        if prompting is not None:
            self.drafted(prompting)
        self._at_once = RoundsAtOnce(self.batch, self.target, self.draft, self.rule)
        reading.result()

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.batch.keep(rows)
        self.target.keep(rows)
        if self.lookups is not None:
            self.lookups = [self.lookups[row] for row in rows]
        if self.draft is not None:
            self.draft.keep(rows)
        self._at_once = RoundsAtOnce(self.batch, self.target, self.draft, self.rule)
