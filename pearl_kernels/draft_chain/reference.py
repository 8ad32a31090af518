"""`draft_chain` as the operations it is equivalent to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pearl_kernels.induction import induce_
from pearl_kernels.sample import sample
from pearl_kernels.types import Purpose, SamplingTensors
from pearl_kernels.window_decoder import Window, window_decoder


class Found(NamedTuple):
    """Where the fields of `DraftChain` are written, step by step: (steps, batch), and logits (steps, batch, outputs),
    None where they are not kept.
    """

    ids: Tensor
    threshold: Tensor
    lse: Tensor
    status: Tensor
    logits: Tensor | None


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
    lengths: Tensor | None


def one_by_one(window: Window, draws: Draws, found: Found, backend: str | None) -> None:
    """`pearl_kernels.draft_chain`, one operation after the other."""
    params, steps, vocab, purpose, epochs, d2t, text, strengths, lengths = draws
    for step in range(steps):
        tokens, starts = window.tokens, window.seq_lens
        width = tokens.shape[1]
        keep = 1 if lengths is None else width
        rows = window_decoder(*window[:-1], scale=window.scale, keep=keep, backend=backend)
        logits, heads = rows[:, -1], starts + width
        if lengths is not None:
            logits = rows.gather(1, (lengths - 1)[:, None, None].expand(-1, -1, rows.shape[2]))[:, 0]
            heads, lengths = starts + lengths, None
        if text is not None and strengths is not None:
            places = starts[:, None] + torch.arange(width, device=tokens.device)
            text.copy_(pad(text, (0, width)).scatter_(1, places, tokens)[:, : text.shape[1]])
            induce_(logits[:, :vocab], text, heads, strengths, d2t=d2t, backend=backend)
        ids, stats, status = sample(
            logits[:, :vocab], params, heads, purpose=purpose, epochs=epochs, backend=backend
        )  # fmt: skip
        if d2t is not None:
            ids = d2t[ids]
        for all_steps, value in zip(found, (ids, *stats, status, logits), strict=True):
            if all_steps is not None:
                all_steps[step] = value
        window = window._replace(tokens=ids[:, None], seq_lens=heads)


def draft_chain(window: Window, draws: Draws, found: Found) -> None:
    """`pearl_kernels.draft_chain` in plain torch."""
    one_by_one(window, draws, found, "reference")
