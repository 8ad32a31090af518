"""What models have read of a text: one that goes on from there need not be read again from its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from pearl_decode.cache import WindowCache


@dataclass(frozen=True, eq=False)
class Read:
    """What one model has read: a cache of one row, and the tokens whose entries it holds, from the first on."""

    cache: WindowCache
    tokens: list[int]

    def hand_over(self, cache: WindowCache, text: Sequence[int]) -> int:
        """Let another cache hold what a text begins with, and this one nothing. Returns how many tokens that is: the
        last one of the text is never among them, as a round begins by reading it.
        """
        pairs = zip(self.tokens, text[:-1], strict=False)
        length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        cache.go_on_from(self.cache, length)
        return length

    def release(self) -> None:
        """Give the memory back."""
        self.tokens.clear()
        self.cache.release()


@dataclass(eq=False)
class Past:
    """What target and draft have read of the text before. None of a model: nothing that can be gone on with."""

    target: Read | None = None
    draft: Read | None = None

    @property
    def capacity(self) -> int:
        """Positions the target has memory for."""
        return 0 if self.target is None else self.target.cache.capacity

    @property
    def draft_capacity(self) -> int:
        """Positions the draft has memory for."""
        return 0 if self.draft is None else self.draft.cache.capacity

    def take(self) -> tuple[Read | None, Read | None]:
        """Both, which are the caller's alone from here on."""
        found = self.target, self.draft
        self.target = self.draft = None
        return found

    def release(self) -> None:
        """Give the memory back."""
        for read in self.take():
            if read is not None:
                read.release()
