"""What every strategy's round is made of: draft, verify, commit."""

from __future__ import annotations

import warnings
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from pearl_decode.lanes.draft import DraftLane
from pearl_decode.lanes.target import TargetLane
from pearl_decode.state import PLACEHOLDER, Batch
from pearl_kernels import advance_


@dataclass(frozen=True)
class Outcome:
    """One round, per row: tokens committed, drafted ones among them; and the draft forwards it took."""

    num_emitted: list[int]
    num_accepted: list[int]
    draft_forwards: int


class Round:
    """The parts of a round over one batch. A strategy calls them in its own order.

    A draft that fails costs speed, never a request: it is dropped with a warning and the target goes on alone.
    """

    def __init__(self, batch: Batch, target: TargetLane, draft: DraftLane | None, rule: str, gamma: int) -> None:
        self.batch = batch
        self.target = target
        self.draft = draft
        self.rule = rule
        self.gamma = gamma
        self.drafting = draft is not None

    def prefill(self) -> None:
        """Both lanes read the prompts, at once."""
        drafting = self.draft.prefill() if self.draft else None
        reading = self.target.prefill()
        if drafting is not None:
            self.drafted(drafting)
        reading.result()

    def drafted(self, future: Future[torch.Tensor] | Future[None]) -> torch.Tensor | None:
        """Wait for the draft; None if it failed, and from then on."""
        try:
            return future.result()
        except Exception as error:  # whatever it is, the target can go on
            self.drafting = False
            warnings.warn(f"the draft failed, the target goes on alone: {error!r}", RuntimeWarning, stacklevel=2)
            return None

    def write_drafts(self, drafted: torch.Tensor | None) -> None:
        """Put the drafted tokens (batch, n) after the window, or a placeholder where there are none."""
        if drafted is None:
            drafted = self.batch.state.tokens.new_full((len(self.batch.committed), 1), PLACEHOLDER)
        self.batch.write(self.batch.heads, drafted)

    def commit(self, verifying: Future[torch.Tensor], next_window: int) -> Outcome:
        """Verify the window and the token after it, commit the outcome, and roll both caches back."""

        logits = verifying.result()
        chain = self.draft.chain.first(logits.shape[1]) if self.draft and self.draft.chain else None
        output = advance_(
            self.batch.state,
            logits,
            self.batch.params,
            draft_logits=chain.logits if chain else None,
            draft_stats=chain.stats if chain else None,
            d2t=self.draft.model.d2t if self.draft and chain else None,
            rule=self.rule,
            next_window=next_window,
        )
        self.batch.refresh()
        forwards = 0
        if self.draft is not None:
            self.draft.settle()
            forwards, self.draft.forwards = self.draft.forwards, 0
            if not self.drafting and not any(self.batch.window):
                self.draft = None  # its last window is verified: free its memory
        return Outcome(output.num_emitted.tolist(), output.num_accepted.tolist(), forwards)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.batch.keep(rows)
        self.target.keep(rows)
        if self.draft is not None:
            self.draft.keep(rows)
