"""When the work of a lane ran."""

from __future__ import annotations

Interval = tuple[float, float]
REMEMBERED = 1 << 14  # of a lane's intervals, the latest


class Times:
    """When each piece of a lane's work ran. All who use a lane share them, so nobody begins them anew."""

    def __init__(self) -> None:
        self._intervals: list[Interval] = []
        self._forgotten = 0

    @property
    def count(self) -> int:
        """Of the pieces so far, ever: the number of the next one."""
        return self._forgotten + len(self._intervals)

    def add(self, start: float, end: float) -> None:
        """Of the next piece, in the order they were queued; seconds."""
        self._intervals.append((start, end))
        if len(self._intervals) >= 2 * REMEMBERED:
            del self._intervals[:REMEMBERED]
            self._forgotten += REMEMBERED

    def between(self, first: int, last: int) -> list[Interval] | None:
        """Of the pieces numbered first ... last - 1; None where one has yet to end, or is long past."""
        first, last = first - self._forgotten, last - self._forgotten
        return self._intervals[first:last] if first >= 0 and last <= len(self._intervals) else None

    def seconds(self, first: int, last: int) -> list[float] | None:
        """How long each of these pieces took; None as for `between`."""
        intervals = self.between(first, last)
        return None if intervals is None else [end - start for start, end in intervals]

    def paces(self, first: int, last: int) -> list[float] | None:
        """How long it took from the start of each of these pieces to the next one's, and the last one by itself: with
        what a lane does of its own after a piece, as far as that can be told. None as for `between`."""
        intervals = self.between(first, last)
        if intervals is None:
            return None
        nexts = [start for start, _ in intervals[1:]] + [end for _, end in intervals[-1:]]
        return [following - start for (start, _), following in zip(intervals, nexts, strict=True)]
