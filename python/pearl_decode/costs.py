"""What a round gives and what it costs: the numbers that strategy "auto" compares.

a: probability that the next drafted token is accepted, taken as independent of the others
gamma: tokens drafted per round
Both are numbers, or arrays that broadcast.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Of a time that is not measured again, per round and divided by its samples, as a single one may have been bad luck:
# what was slow is tried again, the slower the later.
FORGET = 0.001
MOST_FORGOTTEN = 0.3
HOPE = 0.004  # of the distance to 1 that an acceptance gains per round in which nothing was drafted
HORIZON = 1000  # tokens that are taken to come yet, where something has to be made ready before it can be fast
MAKING_SHARE = 0.05  # of the time spent on decoding, which may be spent on that whatever it brings
CHEAP_STEP = 0.05  # a draft step over a target forward, until one is measured
SAMPLES = 5
ENOUGH = 3  # of them, for the first and the last time of a curve to say how it goes on
Drafter = tuple[str, int]  # "draft" or "lookup", and how much of the text came before
ALMOST_SURE = 1 - 1e-9  # an acceptance of 1 has the same formulas, but for 0 / 0


def sequential_tokens(a: ArrayLike, gamma: ArrayLike) -> Any:
    """Mean tokens of a sequential round: the accepted ones, and the corrected or bonus token."""
    a = np.minimum(a, ALMOST_SURE)
    return (1 - a ** np.add(gamma, 1)) / (1 - a)


def open_share(a: ArrayLike, gamma: ArrayLike) -> Any:
    """Share of PEARL's rounds that begin with a drafted window: the others follow a refusal."""
    return np.divide(a, 1 + np.subtract(a, np.power(a, gamma)))


def pearl_tokens(a: ArrayLike, gamma: ArrayLike) -> Any:
    """Mean tokens of a PEARL round."""
    a = np.minimum(a, ALMOST_SURE)
    refused = 1 - a**gamma
    return refused / ((1 - a) * (refused + a))


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
    """A time as lately measured: the median of a few samples, of which the very first, a warm-up, is not one.

    seconds: None before there is one; round: of the last measurement
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.round = 0
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._warm = False

    def add(self, seconds: float, round: int) -> None:
        if self._warm:
            self._samples.append(seconds)
            self.seconds = median(self._samples)
        self._warm, self.round = True, round

    @property
    def count(self) -> int:
        """Of samples."""
        return len(self._samples)

    @property
    def is_full(self) -> bool:
        """Whether another sample takes the place of one."""
        return self.count == SAMPLES

    @property
    def forget(self) -> float:
        """The share of it that is forgotten with each round since."""
        return FORGET / max(1, self.count)


def _left(forget: ArrayLike, rounds: ArrayLike) -> Any:
    """What a time that was not measured for so many rounds is still taken for, as a share of it."""
    return 1 - np.minimum(MOST_FORGOTTEN, np.multiply(forget, rounds))


class Curve:
    """Times that grow with a number, lately measured at some of them.

    like:  the same times elsewhere; what is not measured here is assumed to be in proportion to them
    scale: what numbers here are multiplied by, to be like those there
    apart: whether each is forgotten when it is not measured itself, or all of them when none is
    grows: whether times beyond what was measured go on growing as those between did
    """

    def __init__(self, like: Curve | None, scale: float = 1.0, *, apart: bool, grows: bool) -> None:
        self._times: dict[float, Lately] = {}
        self._like = like
        self._scale = scale
        self._apart = apart
        self._grows = grows
        self._known: NDArray[np.float64] | None = None  # place, seconds, round, forget, samples

    def add(self, place: float, seconds: float, round: int) -> bool:
        """Whether it is one of the first there."""
        time = self._times.setdefault(place, Lately())
        is_new = not time.is_full
        time.add(seconds, round)
        self._known = None
        return is_new

    def at(self, places: NDArray[Any], round: int) -> NDArray[np.float64] | None:
        """Seconds at these places (n,): measured, or between those that are. None before anything was measured.

        Beyond what was measured they may be too good, and are then tried.
        """
        measured, seconds, rounds, forget, samples = self._measured()
        there = self._like.at(self._scale * np.concatenate((places, measured)), round) if self._like else None
        if not len(measured):
            return there
        seconds = seconds * _left(forget, round - rounds)
        if there is None:
            found: NDArray[np.float64] = np.interp(places, measured, seconds)
            if self._grows and len(measured) > 1 and min(samples[0], samples[-1]) >= ENOUGH:
                # A chord, since a few samples tell little of a slope; times that bend upwards grow more than it.
                slope = max(0.0, (seconds[-1] - seconds[0]) / (measured[-1] - measured[0]))
                found += slope * np.maximum(0, places - measured[-1])
            return found
        wanted, there = np.split(there, [len(places)])
        nearest = np.abs(places[:, None] - measured).argmin(1)
        in_proportion: NDArray[np.float64] = wanted * (seconds / there)[nearest]
        return in_proportion

    def _measured(self) -> NDArray[np.float64]:
        found = self._known
        if found is None:
            known = [
                (place, time.seconds, time.round, time.forget, time.count)
                for place, time in sorted(self._times.copy().items())
                if time.seconds
            ]
            found = np.array(known, dtype=np.float64).reshape(-1, 5).T
            seconds, rounds, forget = found[1:4]
            seconds[:] = np.minimum.accumulate(seconds[::-1])[::-1]  # none takes longer than one that does more
            if known and not self._apart:
                rounds[:], forget[:] = rounds.max(), forget[rounds.argmax()]
            self._known = found
        return found


class StepTimes:
    """Seconds of target windows by their width, with what a round costs beside them, and of draft steps.

    like:  times of the same models elsewhere; what is not measured here is assumed to be in proportion to them
    scale: how many times as many texts there are here: windows are alike that have as many rows in all
    """

    def __init__(self, like: StepTimes | None = None, scale: float = 1.0) -> None:
        self._windows: Curve = Curve(like._windows if like else None, scale, apart=True, grows=True)
        # Of each of gamma steps, by 1 / gamma: where drafting costs something whatever gamma is, that is a line.
        self._steps: Curve = Curve(like._steps if like else None, apart=False, grows=False)

    def add_window(self, width: int, seconds: float, round: int) -> bool:
        """Whether it is one of the first of so many rows."""
        return self._windows.add(width, seconds, round)

    def add_steps(self, gamma: int, seconds: float, round: int) -> bool:
        """All of them together. Whether they are among the first of so many."""
        return self._steps.add(1 / gamma, seconds / gamma, round)

    def windows_s(self, widths: NDArray[Any], round: int) -> NDArray[np.float64] | None:
        """Windows of so many rows (n,). None before anything was measured."""
        return self._windows.at(widths, round)

    def window_s(self, width: int, round: int) -> float | None:
        """One such window."""
        seconds = self.windows_s(np.array([width]), round)
        return None if seconds is None else float(seconds[0])

    def drafting_s(self, gammas: NDArray[Any], round: int) -> NDArray[np.float64] | None:
        """So many draft steps (n,); a guess before any were measured."""
        each = self._steps.at(1 / gammas, round)
        if each is None:
            window = self.window_s(1, round)
            return None if window is None else CHEAP_STEP * window * gammas
        return gammas * each

    def step_s(self, gamma: int, round: int) -> float | None:
        """One of so many draft steps."""
        seconds = self.drafting_s(np.array([gamma]), round)
        return None if seconds is None else float(seconds[0]) / gamma


class Costs:
    """What a decoder knows of its pair, from one request to the next.

    Times are kept by batch size, apart for lanes that take turns and lanes that work at once, since they may share
    cores or memory bandwidth. Acceptances are where a new request starts from, by who drafts. Threads that use one
    decoder share them: what one learns may be lost to another, and no more.
    """

    def __init__(self) -> None:
        self.round = 0
        self._decoding_s = self._making_s = 0.0
        self._makings: deque[float] = deque(maxlen=SAMPLES)
        self._alone: dict[int, StepTimes] = {}
        self._beside: dict[int, StepTimes] = {}
        self._starts: dict[Drafter, Acceptance] = {}

    def times(self, rows: int, overlapping: bool) -> StepTimes:
        """The times of batches of so many rows; until they are measured, those of the nearest size are taken."""
        if rows not in self._alone:
            nearest = min(list(self._alone), key=lambda size: abs(size - rows), default=None)
            alone = StepTimes() if nearest is None else StepTimes(self._alone[nearest], rows / nearest)
            self._beside[rows] = StepTimes(alone)
            self._alone[rows] = alone
        return (self._beside if overlapping else self._alone)[rows]

    def acceptance(self, drafter: Drafter) -> Acceptance:
        """Of a new request: as it was lately in others."""
        return Acceptance(self._start(drafter).value)

    def count(self, drafter: Drafter, accepted: int, judged: int) -> None:
        """Of one row in one round."""
        if judged:
            self._start(drafter).count(accepted, judged)

    def count_decoding(self, seconds: float) -> None:
        """Of a round that took as long as such rounds will again."""
        self._decoding_s += seconds

    def count_making(self, seconds: float) -> None:
        """Of a first round of a kind, which is run call by call, or captured."""
        self._making_s += seconds
        self._makings.append(seconds)

    def making_s(self, rounds: int) -> float:
        """What so many first rounds of a kind should cost, as far as that counts: what there is time for does not."""
        if not rounds or not self._makings:
            return 0.0
        seconds = rounds * fmean(self._makings)
        return 0.0 if self._making_s + seconds < MAKING_SHARE * self._decoding_s else seconds

    def _start(self, drafter: Drafter) -> Acceptance:
        return self._starts.setdefault(drafter, Acceptance())
