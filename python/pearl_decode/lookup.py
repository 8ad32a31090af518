"""Prompt lookup: a draft that needs no model, since much of a text is a repetition of itself (Saxena 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pearl_decode.state import PLACEHOLDER

NGRAMS = (8, 4, 3, 2)  # lengths of the ends that are looked up, the surest first


class PromptLookup:
    """One text, and where each of its short sequences was last continued."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._continued: dict[tuple[int, ...], int] = {}  # n-gram -> position of the token after its last occurrence
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on with these tokens."""
        for token in tokens:
            end = len(self._tokens)
            for n in NGRAMS:
                if n <= end:
                    self._continued[tuple(self._tokens[end - n :])] = end
            self._tokens.append(token)

    @property
    def matched(self) -> int:
        """How much of the present end came before: the first of NGRAMS for which it did, 0 if the end is new."""
        return self._match()[0]

    def continuation(self, count: int) -> list[int]:
        """What came after the present end the last time, `count` tokens of it; none if the end is new.

        Where the earlier occurrence reaches up to the end itself, the text is taken to repeat with that period.
        """
        n, start = self._match()
        if not n:
            return []
        period = len(self._tokens) - start
        return [self._tokens[start + i % period] for i in range(count)]

    def _match(self) -> tuple[int, int]:
        """The longest end that came before, and the position after its last occurrence; zeros if there is none."""
        for n in NGRAMS:
            start = self._continued.get(tuple(self._tokens[-n:])) if n <= len(self._tokens) else None
            if start is not None:
                return n, start
        return 0, 0


def look_up(tokens: Tensor, committed: Tensor, count: int) -> Tensor:
    """`PromptLookup.continuation` of every row of a batch, on its device: nothing is read on the host.

    tokens:    (batch, length) int64, of which the first committed (batch,) int64 of a row are its text. What is given
               for a row that is committed further than that has no meaning
    Returns (batch, count) int64, PLACEHOLDER throughout a row whose end is new.
    """
    length, longest = tokens.shape[1], max(NGRAMS)
    numbers = torch.arange(max(length, count, longest), device=tokens.device)
    places = numbers[:length]
    last = tokens.gather(1, (committed[:, None] - longest + numbers[:longest]).clamp(0, length - 1))
    # The tokens up to each place, with what is no token before a text.
    ends = pad(tokens, (longest - 1, 0), value=PLACEHOLDER - 1).unfold(1, longest, 1)  # (batch, length, longest)
    # Column n - 1: whether the last n of them are the last n of the text.
    same = (ends == last[:, None]).flip(-1).cumprod(-1, dtype=torch.int8)
    surest = sum((same[..., n - 1] for n in NGRAMS), torch.zeros_like(tokens))
    # The longest one, and among those the last; not the end itself.
    score = (surest * length + places).masked_fill((surest == 0) | (places >= committed[:, None] - 1), -1)
    best, place = score.max(1)
    start = place + 1
    period = (committed - start).clamp(min=1)
    sources = start[:, None] + numbers[:count] % period[:, None]
    guesses = tokens.gather(1, sources.clamp(max=length - 1))
    return guesses.masked_fill(best[:, None] < 0, PLACEHOLDER)
