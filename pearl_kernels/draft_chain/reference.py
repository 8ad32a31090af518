"""`draft_chain` as the operations it is equivalent to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pearl_kernels.induction import induce_
from pearl_kernels.sample import sample
from pearl_kernels.types import Purpose, SamplingTensors
from pearl_kernels.window_decoder import Window, window_decoder

Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # tokens, threshold, lse, status, logits


class Draws(NamedTuple):
    """The arguments of these names of `draft_chain`."""

    params: SamplingTensors
    steps: int
    vocab: int
    purpose: Purpose
    epochs: Tensor | None
    d2t: Tensor | None
    text: Tensor | None
    strengths: Tensor | None


def one_by_one(window: Window, draws: Draws, backend: str | None) -> Found:
    """`pearl_kernels.draft_chain`, one operation after the other."""
    params, steps, vocab, purpose, epochs, d2t, text, strengths = draws
    drawn, rows = [], []
    for _ in range(steps):
        tokens, starts = window.tokens, window.seq_lens
        logits = window_decoder(*window[:-1], scale=window.scale, keep=1, backend=backend)[:, 0]
        heads = starts + tokens.shape[1]
        if text is not None and strengths is not None:
            text.scatter_(1, starts[:, None] + torch.arange(tokens.shape[1], device=tokens.device), tokens)
            induce_(logits[:, :vocab], text, heads, strengths, d2t=d2t, backend=backend)
        ids, stats, status = sample(
            logits[:, :vocab], params, heads, purpose=purpose, epochs=epochs, backend=backend
        )  # fmt: skip
        if d2t is not None:
            ids = d2t[ids]
        drawn.append((ids, *stats, status))
        rows.append(logits)
        window = window._replace(tokens=ids[:, None], seq_lens=heads)
    ids, threshold, lse, status = (torch.stack(column, dim=1) for column in zip(*drawn, strict=True))
    return ids, threshold, lse, status, torch.stack(rows, dim=1)


def draft_chain(window: Window, draws: Draws) -> Found:
    """`pearl_kernels.draft_chain` in plain torch."""
    return one_by_one(window, draws, "reference")
