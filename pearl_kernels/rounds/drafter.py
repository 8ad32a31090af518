"""The draft of `Rounds`: a decoder on its caches, and how it draws."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels.draft_chain import check_draws
from pearl_kernels.types import Purpose
from pearl_kernels.window_decoder import Window


class Drafter(NamedTuple):
    """window: of any tokens at any place; the others are the arguments of these names of `draft_chain`."""

    window: Window
    vocab: int | None = None
    purpose: Purpose = Purpose.DRAFT
    d2t: Tensor | None = None
    text: Tensor | None = None
    strengths: Tensor | None = None

    def check(self, op: str, batch: int, vocab: int, device: torch.device) -> int:
        """Refuse what does not fit a batch and a target of so many ids. Returns the capacity of the caches."""
        capacity = self.window.check(op)
        if len(self.window.tokens) != batch:
            raise ValueError(f"{op}: draft must be of batch={batch} rows, got {len(self.window.tokens)}")
        checks.noise(op, self.purpose, None, batch, device)
        columns = check_draws(op, self.window.weights, self.vocab, self.d2t, self.text, self.strengths, batch, device)
        if columns > vocab:
            raise ValueError(f"{op}: draft must draw from at most the target's {vocab} ids, got {columns}")
        if self.d2t is not None:
            checks.ids(op, self.d2t, columns, vocab, device)
        return capacity
