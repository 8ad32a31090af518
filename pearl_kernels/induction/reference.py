"""`induce_` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def induce_(logits: Tensor, tokens: Tensor, lengths: Tensor, strengths: Tensor, d2t: Tensor | None) -> None:
    """Compare all places with the end, token by token, as `pearl_kernels.induce_` says."""
    capacity = tokens.shape[1]
    places = torch.arange(capacity, device=tokens.device)
    last = lengths.clamp(0, capacity)[:, None] - 1
    same = places < last  # whether all tokens up to a place are the last ones, so far
    matched = torch.zeros_like(tokens)  # how many are
    for back in range(min(len(strengths), capacity)):
        ending = tokens.gather(1, (last - back).clamp(min=0))
        same[:, back:] &= tokens[:, : capacity - back] == ending
        same[:, :back] = False  # there are none before a text
        matched += same
    best, place = (matched * capacity + places).masked_fill(matched == 0, -1).max(1)
    token = tokens.gather(1, (place + 1).clamp(max=capacity - 1)[:, None])
    column = token if d2t is None else torch.searchsorted(d2t, token)
    inside = column.clamp(0, logits.shape[1] - 1)
    known = (token if d2t is None else d2t[inside]) == (inside if d2t is None else token)
    strength = strengths[(best // capacity - 1).clamp(min=0)]
    added = torch.where(known & (best >= 0)[:, None], strength[:, None], 0.0)
    logits.scatter_(1, inside, (logits.gather(1, inside).float() + added).to(logits.dtype))
