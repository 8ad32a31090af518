"""Plain speculative decoding: the draft writes, then the target verifies (Leviathan et al. 2211.17192)."""

from __future__ import annotations

from pearl_decode.round import Outcome, Round
from pearl_decode.strategies.autoregressive import autoregressive_round


def sequential_round(round: Round) -> Outcome:
    """Draft gamma tokens, then verify them and the bonus token: a placeholder after them, so always the target's."""
    drafted = round.drafted(round.draft.write_chain()) if round.draft and round.drafting else None
    if drafted is None:
        return autoregressive_round(round)
    round.write_drafts(drafted)
    round.batch.open_window(round.gamma)
    round.write_drafts(None)
    return round.commit(round.target.window_logits(width=round.gamma + 1), next_window=0)
