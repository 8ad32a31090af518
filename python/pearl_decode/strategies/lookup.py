"""Prompt lookup decoding: what is drafted is a repetition of the text so far, and costs nothing (Saxena 2023)."""

from __future__ import annotations

import torch

from pearl_decode.round import Outcome, Round
from pearl_decode.state import PLACEHOLDER
from pearl_decode.strategies.autoregressive import autoregressive_round


def lookup_round(round: Round) -> Outcome:
    """Verify gamma tokens that came after the same words before, and the bonus token; just that where none did."""
    guesses = round.guesses(round.gamma)
    if any(round.batch.window) or not any(guesses):
        return autoregressive_round(round)
    outcome = round.at_once(round.gamma, guesses)
    if outcome is not None:
        return outcome
    rows = [guess or [PLACEHOLDER] * round.gamma for guess in guesses]
    round.write_drafts(torch.tensor(rows, device=round.batch.state.tokens.device))
    round.batch.open_window(round.gamma)
    round.write_drafts(None)
    verifying = round.target.window_logits(width=round.gamma + 1)
    return round.commit(verifying, next_window=0, drafted=[len(guess) for guess in guesses])
