"""What static rounds leave to later batches: their memory, and what was captured of them."""

from __future__ import annotations

from collections.abc import Callable

from pearl_decode.device.rounds import StaticRounds

MOST_KEPT = 3


class Kept:
    """Rounds of the last batches, each for another batch of its kind that is no longer. They take turns where kinds do.

    most: how many; those that were not used for longest go first
    """

    def __init__(self, most: int = MOST_KEPT) -> None:
        self.most = most
        self._kept: list[tuple[object, StaticRounds]] = []  # the last used last

    @property
    def rounds(self) -> list[StaticRounds]:
        """All that are kept, the last used last."""
        return [rounds for _, rounds in self._kept]

    def capacity(self, kind: object, least: int) -> int:
        """Positions of the shortest rounds of this kind that have so many at least; `least` where none have."""
        enough = [r.capacity for known, r in self._kept if known == kind and r.capacity >= least]
        return min(enough, default=least)

    def take(self, kind: object, capacity: int) -> StaticRounds | None:
        """Kept rounds of this kind and of just this capacity, which are the caller's alone from here on."""
        for index in reversed(range(len(self._kept))):
            known, rounds = self._kept[index]
            if (known, rounds.capacity) == (kind, capacity):
                del self._kept[index]
                return rounds
        return None

    def give(self, kind: object, rounds: StaticRounds) -> None:
        self._kept.append((kind, rounds))
        self.shrink(lambda: len(self._kept) <= self.most)

    def shrink(self, enough: Callable[[], bool]) -> None:
        """Let go of rounds, and give their memory back, until that is enough or nothing is left."""
        while self._kept and not enough():
            self._kept.pop(0)[1].release()

    def clear(self) -> None:
        self.shrink(lambda: False)
