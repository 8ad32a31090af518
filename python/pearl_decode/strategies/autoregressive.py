"""One target forward, one token."""

from __future__ import annotations

from pearl_decode.round import Outcome, Round


def autoregressive_round(round: Round) -> Outcome:
    """Verify a chain that ends in a placeholder, where the target draws the token itself.

    The placeholder is all there is, unless an earlier round has left a window.
    """
    windows = list(round.batch.window)
    outcome = None if any(windows) else round.at_once(0)
    if outcome is not None:
        return outcome
    round.write_drafts(None)
    verifying = round.target.window_logits(width=1 + max(windows))
    return round.commit(verifying, next_window=0, drafted=windows, chain=round.draft_chain if any(windows) else None)
