"""One target forward, one token."""

from __future__ import annotations

from pearl_decode.round import Outcome, Round


def autoregressive_round(round: Round) -> Outcome:
    """Verify a chain that is only a placeholder: the target draws the token itself."""
    round.write_drafts(None)
    return round.commit(round.target.window_logits(width=1), next_window=0)
