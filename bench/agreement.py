"""A draft that guesses a known text as often as is asked: its forwards are real, its acceptance is set.

What a draft that was never trained guesses is worth nothing, but what its forward costs is the same as ever. So the
forward runs, and afterwards the logits are told which token is to be the likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

CERTAIN = 2.0**15  # above any logit, and no infinity in any type


class Agreement:
    """Hooked to a draft model, makes the known text its greedy guess at a set share of the positions.

    At the others it guesses the id after the right one. Which positions these are is drawn once, by row and position: a
    position that is drafted again is guessed the same, whoever decodes. The share is exact, its order random, and what
    is right at one acceptance is right at every higher one. Nothing is read back to the host.

    A row is known by the token it reads, not by its place: rows leave a batch as they end.

    Use `follow` before the first forward. Positions that a forward reads must be given to it as position_ids.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._seen = self._wrong_seen = self._guess = torch.zeros(1, 1, dtype=torch.int64, device=device)

    @classmethod
    def of(cls, draft: PreTrainedModel) -> Agreement:
        """Hook one to this model, for good."""
        agreement = cls(draft.device)
        draft.register_forward_hook(agreement, with_kwargs=True)
        return agreement

    def follow(self, texts: Sequence[Sequence[int]], begin: int, acceptance: float, vocab: int, device: Any) -> None:
        """Guess these texts from now on.

        texts: a row each of one length, prompts included; the guesses count from position `begin` on
        Raises ValueError where the tokens of two rows, or the wrong guess of one, are the same at a position from
        begin - 1 on: they could not be told apart.
        """
        if not 0 <= acceptance <= 1:
            raise ValueError(f"acceptance must be in [0, 1], got {acceptance!r}")
        right = torch.tensor(texts)
        wrong = (right + 1) % vocab
        known = torch.cat([right, wrong])[:, begin - 1 :].sort(0).values
        if (same := (known[1:] == known[:-1]).any(0)).any():
            where = begin - 1 + int(same.nonzero()[0])
            raise ValueError(f"texts must differ from each other and from a wrong guess, got two alike at {where}")
        counted = right.shape[1] - begin
        order = torch.rand(len(right), counted, generator=torch.Generator().manual_seed(0)).argsort(1).argsort(1)
        coins = torch.cat([torch.zeros(len(right), begin), (order + 0.5) / counted], 1)
        guess = torch.where(coins < acceptance, right, wrong)
        self._seen, self._wrong_seen, self._guess = (each.to(device) for each in (right, wrong, guess))

    def __call__(self, model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """What torch calls after each forward of the model: changes the output's logits in place."""
        logits: Tensor = output.logits  # (batch, keep, vocab), of the last tokens, which may be none
        first, last = kwargs["input_ids"].shape[1] - logits.shape[1], self._guess.shape[1] - 1
        tokens, positions = kwargs["input_ids"][:, first:], kwargs["position_ids"][:, first:]
        positions = positions.expand_as(tokens).clamp(max=last)
        mine = (self._seen[:, positions] == tokens) | (self._wrong_seen[:, positions] == tokens)  # (rows, batch, keep)
        rows = mine.int().argmax(0)
        guess = self._guess[rows, (positions + 1).clamp(max=last)]
        logits.scatter_(-1, guess[..., None], CERTAIN)
