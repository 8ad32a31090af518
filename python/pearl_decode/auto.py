"""Strategy "auto": for each round the choice that should give the most tokens per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from statistics import fmean

from pearl_decode.costs import Costs, open_share, pearl_tokens, sequential_tokens

GAMMAS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
LEAD = 1.02  # how much better another choice must be to be worth a change


@dataclass(frozen=True)
class Choice:
    """How to do one round. gamma: tokens drafted; of no meaning where nothing is."""

    strategy: str
    gamma: int

    @property
    def drafter(self) -> str:
        return "lookup" if self.strategy == "lookup" else "draft"

    def __str__(self) -> str:
        return self.strategy if self.strategy == "autoregressive" else f"{self.strategy} {self.gamma}"


@dataclass(frozen=True)
class Timing:
    """One round as it was timed. width: rows of the target's window; round_s: all of it; steps_s: draft forwards."""

    width: int
    round_s: float
    target_s: float
    steps_s: list[float]


class Chooser:
    """Chooses for one batch, from what its rows had accepted and what rounds of such batches took.

    A choice that was not measured yet is taken to cost the least it may, so that it is tried when that would pay.
    A choice made depends on what was verified before and on times, never on what a pending token might be: the output
    law is that of the rounds, whichever they are.

    choices: those there are, the first of them for as long as nothing was measured
    whole_windows: whether a round of PEARL reads a whole window even where none is open, as static ones do
    reason:  why the present choice was made, in a line
    """

    def __init__(self, choices: Sequence[Choice], costs: Costs, rows: int, *, whole_windows: bool = False) -> None:
        self.choices = list(choices)
        self.costs = costs
        self.whole_windows = whole_windows
        self.reason = ""
        self._acceptances = {
            drafter: [costs.acceptance(drafter) for _ in range(rows)] for drafter in ("draft", "lookup")
        }
        self._present = self.choices[0]

    def choose(self, remaining: Sequence[int], found: Sequence[bool], drafting: bool) -> Choice:
        """The choice for the next round.

        remaining: tokens each row may still get, 0 for one that has ended but is still computed; found: whether prompt
                   lookup has a guess for it
        drafting:  whether there is a draft model at work
        """
        speeds = {}
        for choice in self.choices:
            if choice.strategy == "lookup" and not any(found):
                continue
            if choice.strategy in ("sequential", "pearl") and not drafting:
                continue
            speed = self._speed(choice, remaining, found)
            if speed is not None:
                speeds[choice] = speed
        if not speeds:
            return self.choices[0]
        best = max(speeds, key=speeds.__getitem__)
        if speeds[best] > LEAD * speeds.get(self._present, 0.0) and best != self._present:
            self._present = best
            self.reason = self._explain(speeds)
        return self._present

    def observe(self, choice: Choice, timing: Timing | None, accepted: Sequence[int], judged: Sequence[int]) -> None:
        """Learn from a round. choice: what was done; accepted, judged: drafted tokens of each row.

        timing: None for a round that took longer than such rounds will again
        """
        costs, rows = self.costs, len(judged)
        costs.round += 1
        for drafter, acceptances in self._acceptances.items():
            theirs = judged if drafter == choice.drafter else [0] * rows
            for acceptance, a, j in zip(acceptances, accepted, theirs, strict=True):
                acceptance.count(a, j)
        costs.count(choice.drafter, zip(accepted, judged, strict=True))
        if timing is not None:
            self._observe_time(choice.strategy == "pearl", timing, rows)

    def _observe_time(self, overlapping: bool, timing: Timing, rows: int) -> None:
        costs, steps = self.costs, timing.steps_s
        times = costs.times(rows, overlapping)
        if overlapping and steps:
            beside = timing.round_s - max(timing.target_s, sum(steps))
            times.add_window(timing.width, timing.target_s + beside, costs.round)
            times.add_step(fmean(steps) + beside / len(steps), costs.round)
        elif not overlapping:
            times.add_window(timing.width, timing.round_s - sum(steps), costs.round)
            # A first step may also read what the draft had missed.
            if len(steps) > 1 or (steps and not times.knows_step):
                times.add_step(fmean(steps), costs.round)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._acceptances = {drafter: [each[row] for row in rows] for drafter, each in self._acceptances.items()}

    def _speed(self, choice: Choice, remaining: Sequence[int], found: Sequence[bool]) -> float | None:
        """Tokens per second expected, all rows together; None while there is no measurement at all."""
        gamma, now = choice.gamma, self.costs.round
        times = self.costs.times(len(remaining), choice.strategy == "pearl")
        window_s, step_s = times.window_s(1, now), times.step_s(now)
        if window_s is None or step_s is None:
            return None
        rates = [acceptance.hoped for acceptance in self._acceptances[choice.drafter]]
        if choice.strategy == "autoregressive":
            return sum(min(1, left) for left in remaining) / window_s
        wide_s = times.window_s(gamma if choice.strategy == "pearl" else gamma + 1, now) or window_s
        if choice.strategy == "pearl":
            tokens = [pearl_tokens(a, gamma) for a in rates]
            share = 1.0 if self.whole_windows else 1 - prod(1 - open_share(a, gamma) for a in rates)
            round_s = (1 - share) * max(window_s, gamma * step_s) + share * max(wide_s, gamma * step_s)
        elif choice.strategy == "lookup":
            tokens = [sequential_tokens(a, gamma) if guess else 1.0 for a, guess in zip(rates, found, strict=True)]
            round_s = wide_s
        else:
            tokens = [sequential_tokens(a, gamma) for a in rates]
            round_s = wide_s + gamma * step_s
        return sum(map(min, tokens, remaining)) / round_s

    def _explain(self, speeds: dict[Choice, float]) -> str:
        bests: dict[str, str] = {}
        for choice, speed in sorted(speeds.items(), key=lambda item: -item[1]):
            bests.setdefault(choice.strategy, f"{choice} {speed:.4g}")
        times = self.costs.times(len(self._acceptances["draft"]), self._present.strategy == "pearl")
        window_s, step_s = (times.window_s(1, self.costs.round) or 0.0), (times.step_s(self.costs.round) or 0.0)
        rates = ", ".join(
            f"{drafter} {sum(each.value for each in acceptances) / len(acceptances):.2f}"
            for drafter, acceptances in self._acceptances.items()
        )
        return (
            f"expected tokens/s: {', '.join(bests.values())}; acceptance: {rates}; "
            f"target {1e3 * window_s:.4g} ms, draft step {1e3 * step_s:.4g} ms"
        )
