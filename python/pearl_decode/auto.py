"""Strategy "auto": for each round the choice that should give the most tokens per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pearl_decode.costs import HORIZON, Costs, open_share, pearl_tokens, sequential_tokens
from pearl_decode.lookup import NGRAMS

GAMMAS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
LEAD = 1.02  # how much better another choice must be to be worth a change
SETTLING = 8  # rounds with one choice after which what is expected is renewed every other round, then every third ...
RAREST = 4


@dataclass(frozen=True)
class Choice:
    """How to do one round. gamma: tokens drafted; of no meaning where nothing is."""

    strategy: str
    gamma: int

    def __str__(self) -> str:
        return self.strategy if self.strategy == "autoregressive" else f"{self.strategy} {self.gamma}"


@dataclass(frozen=True)
class Timing:
    """One round as it was timed. width: rows of the target's window; round_s: all of it; steps_s: draft forwards."""

    width: int
    round_s: float
    target_s: float
    steps_s: list[float]


class Family:
    """The choices of one strategy. places: of these among all; widths: of their windows, and 1 at the end."""

    def __init__(self, strategy: str, choices: Sequence[Choice]) -> None:
        self.strategy = strategy
        self.places = np.array([place for place, choice in enumerate(choices) if choice.strategy == strategy])
        self.gammas = np.array([choices[place].gamma for place in self.places])
        self.widths = np.append(self.gammas if strategy == "pearl" else self.gammas + 1, 1)


@dataclass(frozen=True)
class Forecast:
    """What a round of each choice should give each row, and how long it should take.

    tokens:  (rows, choices), by how much of a row's text prompt lookup goes by
    seconds: (choices,); infinite where nothing was measured
    usual:   speeds of the choices, and the best of them, where no row is near its end, there is a draft, and prompt
             lookup goes by as much in every row
    """

    tokens: dict[int, NDArray[np.float64]]
    seconds: NDArray[np.float64]
    usual: dict[int, tuple[NDArray[np.float64], int]]


def _lookup_by(n: int) -> str:
    """The name of prompt lookup where it goes by n tokens: the more, the surer it is."""
    return f"{n}-gram"


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
        strategies = [choice.strategy for choice in self.choices]
        self._matches = (0, *(NGRAMS if "lookup" in strategies else ()))
        self._acceptances = {
            drafter: [costs.acceptance(drafter) for _ in range(rows)]
            for drafter in ("draft", *map(_lookup_by, self._matches[1:]))
        }
        self._families = [Family(strategy, self.choices) for strategy in dict.fromkeys(strategies)]
        self._of_lookup = np.array([strategy == "lookup" for strategy in strategies])
        self._of_draft = np.array([strategy in ("sequential", "pearl") for strategy in strategies])
        self._present = 0  # of the choices
        self._draft_follows = False  # it drafted in the round before
        self._most_tokens = 1 + max(choice.gamma for choice in self.choices)
        self._forecast: Forecast | None = None
        self._unseen = 0  # rounds since it was made
        self._settled = 0  # rounds since the present choice was made

    def choose(
        self, remaining: Sequence[int], matched: Sequence[int], drafting: bool, making_s: Sequence[float] | None = None
    ) -> Choice:
        """The choice for the next round.

        remaining: tokens each row may still get, 0 for one that has ended but is still computed
        matched:   how much of each row's text prompt lookup goes by, one of NGRAMS, or 0 where it has no guess
        drafting:  whether there is a draft model at work
        making_s:  what each choice costs before its rounds take as long as is known or hoped; None: nothing
        """
        if drafting and min(remaining) >= self._most_tokens and len(set(matched)) == 1:
            speeds, best = self.prepare().usual[matched[0]]
        else:
            speeds = self.speeds(remaining, matched, drafting)
            best = int(speeds.argmax())
        if making_s is not None and any(making_s):
            tokens = max(sum(remaining), HORIZON)
            speeds = speeds / (1 + speeds * np.array(making_s) / tokens)
            best = int(speeds.argmax())
        if not speeds[best]:
            return self.choices[0]
        if best != self._present and speeds[best] > LEAD * speeds[self._present]:
            self._present, self._settled = best, 0
            self.reason = self._explain(speeds)
        return self.choices[self._present]

    def speeds(self, remaining: Sequence[int], matched: Sequence[int], drafting: bool) -> NDArray[np.float64]:
        """Tokens per second expected of each of the choices, all rows together; 0 where it cannot be or is not known.

        The arguments are those of `choose`.
        """
        forecast = self.prepare()
        expected = np.stack([forecast.tokens[n][row] for row, n in enumerate(matched)])
        tokens = np.minimum(expected, np.array(remaining)[:, None])
        return self._speeds(tokens, forecast.seconds, any(matched), drafting)

    def _speeds(
        self, tokens: NDArray[np.float64], seconds: NDArray[np.float64], guessed: bool, drafting: bool
    ) -> NDArray[np.float64]:
        speeds: NDArray[np.float64] = tokens.sum(0) / seconds
        if not guessed:
            speeds[self._of_lookup] = 0
        if not drafting:
            speeds[self._of_draft] = 0
        return speeds

    def prepare(self) -> Forecast:
        """What `choose` goes by: nearly all of its work, for whenever there is time between `observe` and it.

        It is renewed after every round at first, and more seldom the longer the choice has stayed the same.
        """
        if self._forecast is None or self._unseen > min(RAREST - 1, self._settled // SETTLING):
            rows = len(self._acceptances["draft"])
            expected = np.ones((len(self._matches), rows, len(self.choices)))
            seconds = np.full(len(self.choices), np.inf)
            for family in self._families:
                expected[:, :, family.places], seconds[family.places] = self._expected(family, rows)
            tokens, usual = dict(zip(self._matches, expected, strict=True)), {}
            for n in self._matches:
                speeds = self._speeds(tokens[n], seconds, n > 0, drafting=True)
                usual[n] = speeds, int(speeds.argmax())
            self._forecast, self._unseen = Forecast(tokens, seconds, usual), 0
        return self._forecast

    def observe(
        self,
        choice: Choice,
        timing: Timing | None,
        accepted: Sequence[int],
        judged: Sequence[int],
        matched: Sequence[int],
    ) -> None:
        """Learn from a round. choice: what was done; accepted, judged: drafted tokens of each row.

        timing:  None for a round that took longer than such rounds will again
        matched: as `choose` was told
        """
        costs = self.costs
        costs.round += 1
        self._unseen += 1
        self._settled += 1
        for row, (a, j, n) in enumerate(zip(accepted, judged, matched, strict=True)):
            # What had nothing to guess was not passed over.
            counts = {"draft": (0, 0)} | ({_lookup_by(n): (0, 0)} if n else {})
            if j:
                counts[_lookup_by(n) if choice.strategy == "lookup" else "draft"] = a, j
            for drafter, count in counts.items():
                self._acceptances[drafter][row].count(*count)
                costs.count(drafter, *count)
        if timing is not None:
            costs.count_decoding(timing.round_s)
            self._observe_time(choice.strategy == "pearl", timing, len(judged))

    def _observe_time(self, overlapping: bool, timing: Timing, rows: int) -> None:
        costs, steps = self.costs, timing.steps_s
        times = costs.times(rows, overlapping)
        target_s = timing.round_s - sum(steps)
        if overlapping and steps:
            beside = timing.round_s - max(timing.target_s, sum(steps))
            target_s = timing.target_s + beside
            steps = [step + beside / len(steps) for step in steps]
        times.add_window(timing.width, target_s, costs.round)
        # The first step of a draft that was away reads what was written meanwhile.
        usual = steps if self._draft_follows else steps[1:]
        if usual:
            times.add_step(fmean(usual), costs.round)
        self._draft_follows = bool(steps)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._forecast = None
        self._acceptances = {drafter: [each[row] for row in rows] for drafter, each in self._acceptances.items()}

    def _expected(self, family: Family, rows: int) -> tuple[Any, Any]:
        """The parts of a Forecast: tokens (rows, gammas) and seconds (gammas,), or one number for all.

        Tokens of prompt lookup are (matches, rows, gammas), by how much of the text it goes by.
        """
        strategy, gammas, now = family.strategy, family.gammas, self.costs.round
        times = self.costs.times(rows, strategy == "pearl")
        windows_s, step_s = times.windows_s(family.widths, now), times.step_s(now)
        if windows_s is None or step_s is None:
            return 1.0, np.inf
        wide_s, narrow_s = windows_s[:-1], windows_s[-1]
        if strategy == "autoregressive":
            return 1.0, narrow_s
        if strategy == "lookup":
            none = np.zeros((rows, 1))  # accepted where there is no guess: the target's own token is left
            rates = np.stack([none, *(self._hoped(_lookup_by(n)) for n in self._matches[1:])])
            return sequential_tokens(rates, gammas), wide_s
        rates, drafting_s = self._hoped("draft"), gammas * step_s
        if strategy == "sequential":
            return sequential_tokens(rates, gammas), wide_s + drafting_s
        share = 1.0 if self.whole_windows else 1 - np.prod(1 - open_share(rates, gammas), axis=0)
        round_s = (1 - share) * np.maximum(narrow_s, drafting_s) + share * np.maximum(wide_s, drafting_s)
        return pearl_tokens(rates, gammas), round_s

    def _hoped(self, drafter: str) -> NDArray[np.float64]:
        """(rows, 1)"""
        return np.array([[acceptance.hoped] for acceptance in self._acceptances[drafter]])

    def _explain(self, speeds: NDArray[np.float64]) -> str:
        bests: dict[str, str] = {}
        for place in np.argsort(-speeds):
            if speeds[place]:
                bests.setdefault(self.choices[place].strategy, f"{self.choices[place]} {speeds[place]:.4g}")
        overlapping = self.choices[self._present].strategy == "pearl"
        times = self.costs.times(len(self._acceptances["draft"]), overlapping)
        window_s, step_s = (times.window_s(1, self.costs.round) or 0.0), (times.step_s(self.costs.round) or 0.0)
        rates = ", ".join(
            f"{drafter} {sum(each.value for each in acceptances) / len(acceptances):.2f}"
            for drafter, acceptances in self._acceptances.items()
        )
        return (
            f"expected tokens/s: {', '.join(bests.values())}; acceptance: {rates}; "
            f"target {1e3 * window_s:.4g} ms, draft step {1e3 * step_s:.4g} ms"
        )
