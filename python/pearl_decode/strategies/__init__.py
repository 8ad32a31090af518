"""Ways to order a round's parts. Each is a function from a Round to its Outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pearl_decode.round import Outcome, Round
from pearl_decode.strategies.autoregressive import autoregressive_round
from pearl_decode.strategies.lookup import lookup_round
from pearl_decode.strategies.pearl import pearl_round
from pearl_decode.strategies.sequential import sequential_round


@dataclass(frozen=True)
class Strategy:
    """step: one round; drafts: whether it wants a draft model; overlaps: whether both lanes work at once."""

    step: Callable[[Round], Outcome]
    drafts: bool
    overlaps: bool


STRATEGIES = {
    "autoregressive": Strategy(autoregressive_round, drafts=False, overlaps=False),
    "lookup": Strategy(lookup_round, drafts=False, overlaps=False),
    "sequential": Strategy(sequential_round, drafts=True, overlaps=False),
    "pearl": Strategy(pearl_round, drafts=True, overlaps=True),
}

__all__ = ["STRATEGIES", "Strategy"]
