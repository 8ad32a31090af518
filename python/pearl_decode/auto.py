"""Strategy "auto": for each round the choice that should give the most tokens per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from pearl_decode.costs import HORIZON, Costs, open_share, pearl_tokens, sequential_tokens
from pearl_decode.lookup import NGRAMS

GAMMAS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16)
LEAD = 1.02  # how much better another choice must be to be worth a change
RENEWED = 8  # rounds and judged tokens after which what is expected is renewed, and at once while times are new


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


@dataclass(frozen=True)
class Forecast:
    """What a round of each choice should give each row, and how long it should take.

    tokens:   (matches, rows, choices), by how much of a row's text came before
    closed:   likewise: how probably the target's window has none of the row's drafted tokens
    seconds:  (choices,), of rounds whose window has drafted tokens of any row; infinite where none were measured
    saved_s:  (choices,), how much less those take whose window has none
    usual:    (matches, choices), speeds with a draft, no row near its end, and as much that came before in each
    bests:    (matches,), the choices that are then the fastest
    """

    tokens: NDArray[np.float64]
    closed: NDArray[np.float64]
    seconds: NDArray[np.float64]
    saved_s: NDArray[np.float64]
    usual: NDArray[np.float64]
    bests: list[int]


class Chooser:
    """Chooses for one batch, from what its rows had accepted and what rounds of such batches took.

    A choice that was not measured yet is taken to cost the least it may, so that it is tried when that would pay.
    A choice made depends on what was verified before and on times, never on what a pending token might be: the output
    law is that of the rounds, whichever they are. Where a text repeats itself prompt lookup is the surer the more of it
    came before, and so is a draft model: what they have accepted is learnt apart for each of NGRAMS.

    choices: those there are, the first of them for as long as nothing was measured
    whole_windows: whether a round of PEARL reads a whole window even where none is open, as static ones do
    """

    def __init__(self, choices: Sequence[Choice], costs: Costs, rows: int, *, whole_windows: bool = False) -> None:
        self.choices = list(choices)
        self.costs = costs
        self.whole_windows = whole_windows
        self._reason = ""
        self._unexplained: tuple[NDArray[np.float64], Sequence[int]] | None = None  # arguments of `_explain`
        strategies = [choice.strategy for choice in self.choices]
        self._matches = (0, *(NGRAMS if "lookup" in strategies else ()))
        drafters = [("draft", n) for n in self._matches] + [("lookup", n) for n in self._matches[1:]]
        self._acceptances = {drafter: [costs.acceptance(drafter) for _ in range(rows)] for drafter in drafters}
        self._of_lookup, self._of_pearl, self._of_none = (
            np.array([strategy == name for strategy in strategies]) for name in ("lookup", "pearl", "autoregressive")
        )
        self._of_draft = ~(self._of_lookup | self._of_none)
        self._gammas = np.array([choice.gamma for choice in self.choices])
        widths = np.where(self._of_pearl, self._gammas, np.where(self._of_none, 1, self._gammas + 1))
        self._windows = np.append(widths, 1)  # the last is what is left where nothing was drafted
        self._present = 0  # of the choices
        self._draft_follows = False  # it drafted in the round before
        self._rows = rows
        self._forecast: Forecast | None = None
        self._unseen = 0  # rounds since it was made, and tokens of a row that were judged in them
        self._due = False  # it has to be made anew at once

    def choose(
        self, remaining: Sequence[int], matched: Sequence[int], drafting: bool, making_s: Sequence[float] | None = None
    ) -> Choice:
        """The choice for the next round.

        remaining: tokens each row may still get, 0 for one that has ended but is still computed
        matched:   how much of each row's text prompt lookup goes by, one of NGRAMS, or 0 where it has no guess
        drafting:  whether there is a draft model at work
        making_s:  what each choice costs before its rounds take as long as is known or hoped; None: nothing
        """
        forecast, place = self.prepare(), self._matches.index(matched[0])
        speeds, best = forecast.usual[place], forecast.bests[place]
        # An end that is near makes other choices slower: the fastest stays that, if all it may give is still to come.
        usual = drafting and len(set(matched)) == 1 and min(remaining) > self.choices[best].gamma
        making = making_s is not None and any(making_s)
        if not usual or making:
            speeds = self.speeds(remaining, matched, drafting)
            if making:
                tokens = max(sum(remaining), HORIZON)
                speeds = speeds / (1 + speeds * np.array(making_s) / tokens)
            best = int(speeds.argmax())
        if not speeds[best]:
            return self.choices[0]
        changes = best != self._present and speeds[best] > LEAD * speeds[self._present]
        if changes:
            self._present = best
        if changes or not (self._reason or self._unexplained):
            self._unexplained = speeds, matched
        return self.present

    @property
    def reason(self) -> str:
        """Why the present choice was made, in a line. It is written when it is asked for, so that can wait."""
        if self._unexplained is not None:
            self._reason, self._unexplained = self._explain(*self._unexplained), None
        return self._reason

    def speeds(self, remaining: Sequence[int], matched: Sequence[int], drafting: bool) -> NDArray[np.float64]:
        """Tokens per second expected of each of the choices, all rows together; 0 where it cannot be or is not known.

        The arguments are those of `choose`.
        """
        forecast, rows = self.prepare(), range(self._rows)
        places = [self._matches.index(n) for n in matched]
        tokens = np.minimum(forecast.tokens[places, rows], np.array(remaining)[:, None])
        speeds = _speeds(tokens, forecast.closed[places, rows], forecast.seconds, forecast.saved_s)
        if not any(matched):
            speeds[self._of_lookup] = 0
        if not drafting:
            speeds[self._of_draft] = 0
        return speeds

    def prepare(self) -> Forecast:
        """What `choose` goes by: nearly all of its work, for whenever there is time between `observe` and it.

        It is renewed every few rounds, and after each that accepted much or was timed for one of the first times.
        """
        if self._forecast is None or self._due or self._unseen >= RENEWED:
            expected = *self._outcomes(), *self._seconds()
            usual = _speeds(*expected)
            usual[0, self._of_lookup] = 0
            self._forecast = Forecast(*expected, usual, usual.argmax(1).tolist())
            self._unseen, self._due = 0, False
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
        self._unseen += 1 + max(judged)
        for row, (a, j, n) in enumerate(zip(accepted, judged, matched, strict=True)):
            by_lookup = choice.strategy == "lookup"
            # What had nothing to guess was not passed over.
            for name in ("draft", "lookup") if n else ("draft",):
                count = (a, j) if by_lookup == (name == "lookup") else (0, 0)
                self._acceptances[name, n][row].count(*count)
                costs.count((name, n), *count)
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
        self._due |= times.add_window(timing.width, target_s, costs.round)
        # The first step of a draft that was away reads what was written meanwhile.
        usual = steps if self._draft_follows else steps[1:]
        if usual:
            self._due |= times.add_steps(len(steps), len(steps) * fmean(usual), costs.round)
        self._draft_follows = bool(steps)

    @property
    def present(self) -> Choice:
        """The choice for the last round."""
        return self.choices[self._present]

    def replace(self, rows: Sequence[int]) -> None:
        """These rows are other requests now."""
        self._forecast = None
        for drafter, each in self._acceptances.items():
            for row in rows:
                each[row] = self.costs.acceptance(drafter)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._forecast, self._rows = None, len(rows)
        self._acceptances = {drafter: [each[row] for row in rows] for drafter, each in self._acceptances.items()}

    def _seconds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The parts of a Forecast: seconds and saved_s."""
        seconds, saved_s = np.full(len(self.choices), np.inf), np.zeros(len(self.choices))
        for overlapping, places in ((False, ~self._of_pearl), (True, self._of_pearl)):
            times, now = self.costs.times(self._rows, overlapping), self.costs.round
            windows_s = times.windows_s(self._windows, now)
            drafting_s = times.drafting_s(self._gammas[places], now)
            if windows_s is None or drafting_s is None:
                continue
            wide_s, narrow_s = windows_s[:-1][places], windows_s[-1]
            if overlapping:
                seconds[places] = np.maximum(wide_s, drafting_s)
                saved_s[places] = seconds[places] - np.maximum(narrow_s, drafting_s)
            else:
                seconds[places] = wide_s + drafting_s * self._of_draft[places]
        return seconds, saved_s

    def _outcomes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The parts of a Forecast: tokens and closed."""
        rates = self._hoped("draft", self._matches)
        none = np.zeros((1, self._rows, 1))  # accepted where there is no guess: the target's own token is left
        guessed = np.concatenate((none, self._hoped("lookup", self._matches[1:])))
        tokens = sequential_tokens(np.where(self._of_lookup, guessed, rates), self._gammas)
        tokens[..., self._of_none] = 1
        closed = np.zeros_like(tokens)
        gammas = self._gammas[self._of_pearl]
        tokens[..., self._of_pearl] = pearl_tokens(rates, gammas)
        if not self.whole_windows:
            closed[..., self._of_pearl] = 1 - open_share(rates, gammas)
        return tokens, closed

    def _hoped(self, drafter: str, matches: Sequence[int]) -> NDArray[np.float64]:
        """(matches, rows, 1)"""
        rates = [[row.hoped for row in self._acceptances[drafter, n]] for n in matches]
        return np.array(rates).reshape(len(matches), self._rows, 1)

    def _explain(self, speeds: NDArray[np.float64], matched: Sequence[int]) -> str:
        bests: dict[str, str] = {}
        for place in np.argsort(-speeds):
            if speeds[place]:
                bests.setdefault(self.choices[place].strategy, f"{self.choices[place]} {speeds[place]:.4g}")
        present, now, each = self.present, self.costs.round, self._acceptances
        times = self.costs.times(self._rows, present.strategy == "pearl")
        window_s, step_s = (times.window_s(1, now) or 0.0), (times.step_s(present.gamma, now) or 0.0)
        rates = {
            name: [each[name, n][row].value for row, n in enumerate(matched) if n or name == "draft"]
            for name in (("draft", "lookup") if any(matched) else ("draft",))
        }
        return (
            f"expected tokens/s: {', '.join(bests.values())}; "
            f"acceptance: {', '.join(f'{name} {fmean(values):.2f}' for name, values in rates.items())}; "
            f"target {1e3 * window_s:.4g} ms, draft step {1e3 * step_s:.4g} ms"
        )


def _speeds(
    tokens: NDArray[np.float64], closed: NDArray[np.float64], seconds: NDArray[np.float64], saved_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Tokens per second (..., choices), all rows (..., rows, choices) together, of the parts of a Forecast."""
    speeds: NDArray[np.float64] = tokens.sum(-2) / (seconds - closed.prod(-2) * saved_s)
    return speeds
