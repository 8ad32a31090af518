"""Plain speculative decoding: the draft writes, then the target verifies (Leviathan et al. 2211.17192)."""

from __future__ import annotations

from pearl_decode.round import Outcome, Round
from pearl_decode.strategies.autoregressive import autoregressive_round


def sequential_round(round: Round) -> Outcome:
    """Draft gamma tokens, then verify them and the bonus token: a placeholder after them, so always the target's.

    A window that an earlier round has left is verified first.
    """
    if any(round.batch.window) or not (round.draft and round.drafting):
        return autoregressive_round(round)
    outcome = round.at_once(round.gamma)
    if outcome is not None:
        return outcome
    drafted = round.drafted(round.draft.write_chain(round.gamma))
    if drafted is None:
        return autoregressive_round(round)
    round.write_drafts(drafted)
    round.batch.open_window(round.gamma)
    windows = list(round.batch.window)
    round.write_drafts(None)
    verifying = round.target.window_logits(width=round.gamma + 1)
    return round.commit(verifying, next_window=0, drafted=windows, chain=round.draft_chain)
