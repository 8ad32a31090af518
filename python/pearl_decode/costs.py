"""What a round gives and what it costs: the numbers that strategy "auto" compares.

a: probability that the next drafted token is accepted, taken as independent of the others
gamma: tokens drafted per round
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

FORGET = 0.001  # of a time that is not measured again, per round: what was slow is tried again, the slower the later
MOST_FORGOTTEN = 0.3
HOPE = 0.004  # of the distance to 1 that an acceptance gains per round in which nothing was drafted
CHEAP_STEP = 0.05  # a draft step over a target forward, until one is measured
SAMPLES = 5


def sequential_tokens(a: float, gamma: int) -> float:
    """Mean tokens of a sequential round: the accepted ones, and the corrected or bonus token."""
    return float(gamma + 1) if a >= 1 else (1 - a ** (gamma + 1)) / (1 - a)


def open_share(a: float, gamma: int) -> float:
    """Share of PEARL's rounds that begin with a drafted window: the others follow a refusal."""
    return a / (1 + a - a**gamma)


def pearl_tokens(a: float, gamma: int) -> float:
    """Mean tokens of a PEARL round."""
    return float(gamma) if a >= 1 else (1 - a**gamma) / ((1 - a) * (1 + a - a**gamma))


class Acceptance:
    """The probability that a drafted token is accepted, learnt from those the target judged, the latest most.

    Two memories of different length: the long one is believed until the short one contradicts it clearly, as it does
    when the text changes. What is known at the start counts as `weight` tokens.
    """

    LONG, SHORT = 0.992, 0.92  # what a token's weight falls to with each one after it
    CLEAR = 3.5  # standard deviations

    def __init__(self, start: float = 0.5, weight: float = 6.0) -> None:
        self._accepted, self._judged = start * weight, weight
        self._lately_accepted = self._lately_judged = 0.0
        self._rounds_unseen = 0

    def count(self, accepted: int, judged: int) -> None:
        """A round in which the target judged so many drafted tokens, none included."""
        self._rounds_unseen = 0 if judged else self._rounds_unseen + 1
        for index in range(judged):
            hit = index < accepted
            self._accepted = self.LONG * self._accepted + hit
            self._judged = self.LONG * self._judged + 1
            self._lately_accepted = self.SHORT * self._lately_accepted + hit
            self._lately_judged = self.SHORT * self._lately_judged + 1
        if judged and self._contradicted():
            self._accepted, self._judged = self._lately_accepted, self._lately_judged

    @property
    def value(self) -> float:
        """The estimate itself."""
        return self._accepted / self._judged

    @property
    def hoped(self) -> float:
        """The estimate, nearer to 1 the longer nothing was drafted: so that drafting is tried again some time."""
        return self.value + (1 - self.value) * min(1.0, HOPE * self._rounds_unseen)

    def _contradicted(self) -> bool:
        lately, value = self._lately_accepted / self._lately_judged, self.value
        # An exponential memory of factor f that is full is worth (1 + f) / (1 - f) independent tokens.
        worth = self._lately_judged * (1 + self.SHORT)
        spread = max(value * (1 - value), 0.25 / worth)
        return abs(lately - value) > self.CLEAR * math.sqrt(spread / worth)


class Lately:
    """A time as lately measured: the median of a few samples, of which the very first, a warm-up, is not one."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._median = 0.0
        self._warm = False
        self._round = 0

    def add(self, seconds: float, round: int) -> None:
        if self._warm:
            self._samples.append(seconds)
            self._median = median(self._samples)
        self._warm, self._round = True, round

    @property
    def known(self) -> bool:
        return bool(self._samples)

    def seconds(self, round: int) -> float:
        """The time, a little less for each round since it was measured."""
        return self._median * (1 - min(MOST_FORGOTTEN, FORGET * (round - self._round)))


class StepTimes:
    """Seconds of target windows by their width, with what a round costs beside them, and of a draft step.

    like: times of the same models elsewhere; what is not measured here is assumed to be in proportion to them
    """

    def __init__(self, like: StepTimes | None = None) -> None:
        self._windows: dict[int, Lately] = {}
        self._step = Lately()
        self._like = like
        self._known: dict[int, float] = {}  # of the windows, in `_known_at`
        self._known_at = -1

    def add_window(self, width: int, seconds: float, round: int) -> None:
        self._windows.setdefault(width, Lately()).add(seconds, round)
        self._known_at = -1

    def add_step(self, seconds: float, round: int) -> None:
        self._step.add(seconds, round)

    def window_s(self, width: int, round: int) -> float | None:
        """A window of so many rows: measured, or between those that are. None before anything was measured."""
        known = self._known_windows(round)
        if width in known:
            return known[width]
        there = self._like.window_s(width, round) if self._like else None
        if not known:
            return there
        if self._like is not None and there is not None:
            nearest = min(known, key=lambda measured: abs(measured - width))
            return there * known[nearest] / (self._like.window_s(nearest, round) or there)
        return _interpolated(known, width)

    def step_s(self, round: int) -> float | None:
        """A draft step; a guess before one was measured."""
        if self._step.known:
            return self._step.seconds(round)
        if self._like is not None:
            return self._like.step_s(round)
        window = self.window_s(1, round)
        return None if window is None else CHEAP_STEP * window

    @property
    def knows_step(self) -> bool:
        return self._step.known

    def _known_windows(self, round: int) -> dict[int, float]:
        if self._known_at != round:
            self._known = {width: time.seconds(round) for width, time in self._windows.items() if time.known}
            self._known_at = round
        return self._known


def _interpolated(known: dict[int, float], width: int) -> float:
    """Between measured widths a line; beyond them as long as the nearest, which may be too good, and is then tried."""
    below = max((measured for measured in known if measured < width), default=None)
    above = min((measured for measured in known if measured > width), default=None)
    if below is None or above is None:
        return known[max(known) if above is None else min(known)]
    return known[below] + (known[above] - known[below]) * (width - below) / (above - below)


class Costs:
    """What a decoder knows of its pair, from one request to the next.

    Times are kept by batch size, apart for lanes that take turns and lanes that work at once, since they may share
    cores or memory bandwidth. Acceptances are where a new request starts from, by who drafts.
    """

    def __init__(self) -> None:
        self.round = 0
        self._alone: dict[int, StepTimes] = {}
        self._beside: dict[int, StepTimes] = {}
        self._starts: dict[str, Acceptance] = {}

    def times(self, rows: int, overlapping: bool) -> StepTimes:
        """The times of batches of so many rows; until they are measured, those of the nearest size are taken."""
        if rows not in self._alone:
            nearest = min(self._alone, key=lambda size: abs(size - rows), default=None)
            self._alone[rows] = StepTimes(self._alone[nearest] if nearest is not None else None)
            self._beside[rows] = StepTimes(self._alone[rows])
        return (self._beside if overlapping else self._alone)[rows]

    def acceptance(self, drafter: str) -> Acceptance:
        """Of a new request: as it was lately in others."""
        return Acceptance(self._start(drafter).value)

    def count(self, drafter: str, rows: Iterable[tuple[int, int]]) -> None:
        """(accepted, judged) of each row."""
        for accepted, judged in rows:
            if judged:
                self._start(drafter).count(accepted, judged)

    def _start(self, drafter: str) -> Acceptance:
        return self._starts.setdefault(drafter, Acceptance())
