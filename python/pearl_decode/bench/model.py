"""What a speed should be, from acceptance and forward times: the formulas the measured curve is drawn beside.

a: probability that one drafted token is accepted, taken as independent of the others; gamma: tokens drafted per round.
"""

from __future__ import annotations


def pearl_tokens_per_round(a: float, gamma: int) -> float:
    """A round has a full window with probability a / (1 - a^g + a), else it verifies one token."""
    if a >= 1:
        return float(gamma)
    return (1 - a**gamma) / ((1 - a) * (1 - a**gamma + a))


def sequential_tokens_per_round(a: float, gamma: int) -> float:
    """Accepted tokens, and the corrected or bonus token."""
    return float(gamma + 1) if a >= 1 else (1 - a ** (gamma + 1)) / (1 - a)


def pearl_speed(a: float, gamma: int, target_s: float, draft_s: float) -> float:
    """Tokens per second: a round is as long as its longer lane. target_s, draft_s: one forward of each."""
    return pearl_tokens_per_round(a, gamma) / max(target_s, gamma * draft_s)


def sequential_speed(a: float, gamma: int, target_s: float, draft_s: float) -> float:
    """Tokens per second: a round is both lanes' work, one after the other."""
    return sequential_tokens_per_round(a, gamma) / (target_s + gamma * draft_s)
