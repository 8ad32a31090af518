"""What static rounds leave to later batches: their memory, and what was captured of them."""

from __future__ import annotations

from collections.abc import Callable

from pearl_decode.device.rounds import StaticRounds

MOST_KEPT = 3


class Kept:
    """Rounds of the last batches, each for another batch of the same sizes. They take turns where sizes do.

    most: how many; those that were not used for longest go first
    """

    def __init__(self, most: int = MOST_KEPT) -> None:
        self.most = most
        self._kept: list[tuple[object, StaticRounds]] = []  # the last used last

    @property
    def rounds(self) -> list[StaticRounds]:
        """All that are kept, the last used last."""
        return [rounds for _, rounds in self._kept]

    def take(self, key: object) -> StaticRounds | None:
        """Kept rounds of this kind, which are the caller's alone from here on."""
        for index in reversed(range(len(self._kept))):
            if self._kept[index][0] == key:
                return self._kept.pop(index)[1]
        return None

    def give(self, key: object, rounds: StaticRounds) -> None:
        self._kept.append((key, rounds))
        self.shrink(lambda: len(self._kept) <= self.most)

    def shrink(self, enough: Callable[[], bool]) -> None:
        """Let go of rounds, and give their memory back, until that is enough or nothing is left."""
        while self._kept and not enough():
            self._kept.pop(0)[1].release()

    def clear(self) -> None:
        self.shrink(lambda: False)
