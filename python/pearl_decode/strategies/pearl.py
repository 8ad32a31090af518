"""Parallel speculative decoding: both models work at once (PEARL, Liu et al. 2408.11850)."""

from __future__ import annotations

from pearl_decode.round import Outcome, Round


def pearl_round(round: Round) -> Outcome:
    """Verify the window while the draft writes gamma tokens past it.

    The first new token completes the chain being verified. If all of it is accepted, the other gamma - 1 are the
    next window; if not, they are forgotten.
    """
    outcome = round.ahead_at_once(round.gamma) or _in_parts(round)
    if round.draft is not None:
        round.draft.turn()
    return outcome


def _in_parts(round: Round) -> Outcome:
    # Beside a lane that has begun everything here takes longer, for there is one interpreter.
    verify = round.target.prepared_window(width=1 + max(round.batch.window))
    drafting = round.draft.write_ahead(round.gamma) if round.draft and round.drafting else None
    verifying = verify()
    round.do_chores(beside=verifying)
    drafted = round.drafted(drafting) if drafting else None
    chain = [window + (drafted is not None) for window in round.batch.window]
    round.write_drafts(drafted)
    next_window = 0 if drafted is None else round.gamma - 1
    return round.commit(verifying, next_window, drafted=chain, chain=round.draft_chain)
