"""What a speed should be, from acceptance and forward times: the formulas the measured curve is drawn beside.

a: probability that one drafted token is accepted, taken as independent of the others; gamma: tokens drafted per round.
"""

from __future__ import annotations

from pearl_decode.costs import pearl_tokens, sequential_tokens


def pearl_speed(a: float, gamma: int, target_s: float, draft_s: float) -> float:
    """Tokens per second: a round is as long as its longer lane. target_s, draft_s: one forward of each."""
    return float(pearl_tokens(a, gamma) / max(target_s, gamma * draft_s))


def sequential_speed(a: float, gamma: int, target_s: float, draft_s: float) -> float:
    """Tokens per second: a round is both lanes' work, one after the other."""
    return float(sequential_tokens(a, gamma) / (target_s + gamma * draft_s))
