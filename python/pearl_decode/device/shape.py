"""What is fixed about the rounds of a batch, whatever happens in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pearl_decode.auto import Choice
from pearl_decode.engine import Plan
from pearl_decode.strategies import STRATEGIES

# What gamma "auto" may choose among, as rows of the target's window: rounds of PEARL and of sequential speculation that
# share a width share what is compiled for it. Each is captured when it is first chosen, and compiling takes a minute.
WIDTHS = (2, 4, 8, 16)
COMPILED_WIDTHS = (4, 8)


@dataclass(frozen=True)
class Shape:
    """How a strategy's round looks when no shape may depend on what was accepted.

    drafted:     tokens the draft writes; 0: it has no part
    reread:      tokens the draft's first step reads. In a sequential round that is accepted whole, the draft has never
                 seen its own last token, so it reads two: writing a position again with the same token is harmless
    width:       rows of the target's window; those past a row's chain are ignored
    runs_ahead:  whether the draft works while the target does, past the window, or before it
    next_window: drafted tokens that follow a chain accepted whole
    guessed:     tokens prompt lookup gives instead of a draft
    """

    drafted: int
    reread: int
    width: int
    runs_ahead: bool
    next_window: int
    guessed: int = 0

    @property
    def most_emitted(self) -> int:
        """Tokens a round can commit to one row."""
        return self.width

    @property
    def reach(self) -> int:
        """How far past its committed tokens a row may be read or written in a round."""
        return max(self.width, self.next_window + self.drafted)


ALONE = Shape(drafted=0, reread=0, width=1, runs_ahead=False, next_window=0)


def shape_of(strategy: str, gamma: int) -> Shape:
    """The rounds of a strategy that drafts gamma tokens. Raises ValueError for a name that is none."""
    if strategy == "autoregressive":
        return ALONE
    if strategy == "lookup":
        return replace(ALONE, width=gamma + 1, guessed=gamma)
    if strategy == "sequential":
        return Shape(drafted=gamma, reread=2, width=gamma + 1, runs_ahead=False, next_window=0)
    if strategy == "pearl":
        return Shape(drafted=gamma, reread=1, width=gamma, runs_ahead=True, next_window=gamma - 1)
    raise ValueError(f"strategy must be one of {list(STRATEGIES)}, got {strategy!r}")


def static_choices(plan: Plan, widths: Sequence[int], *, drafting: bool) -> list[Choice]:
    """What a round may be, the plainest first.

    widths:   of the target's windows, where gamma is "auto"
    drafting: whether there is a draft
    """
    strategies = STRATEGIES if plan.strategy == "auto" else (plan.strategy,)
    found = []
    for name in strategies:
        gammas = [width - (name != "pearl") for width in widths] if plan.gamma == "auto" else [int(plan.gamma)]
        for gamma in gammas if name != "autoregressive" else [1]:
            drafted = shape_of(name, gamma).drafted
            if drafting or not drafted:
                found.append(Choice(name, gamma))
    return found
