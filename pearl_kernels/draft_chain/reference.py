"""`draft_chain` as the operations it is equivalent to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pearl_kernels.induction import induce_
from pearl_kernels.sample import sample
from pearl_kernels.types import Purpose, SamplingTensors
from pearl_kernels.window_decoder import DecoderWeights, window_decoder

Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # tokens, threshold, lse, status, logits


def one_by_one(
    backend: str | None,
    tokens: Tensor,
    weights: DecoderWeights,
    cos: Tensor,
    sin: Tensor,
    k_caches: Tensor,
    v_caches: Tensor,
    seq_lens: Tensor,
    params: SamplingTensors,
    scale: float,
    steps: int,
    vocab: int,
    purpose: Purpose,
    epochs: Tensor | None,
    d2t: Tensor | None,
    text: Tensor | None,
    strengths: Tensor | None,
) -> Found:
    """`pearl_kernels.draft_chain`, one operation after the other."""
    drawn, rows = [], []
    for _ in range(steps):
        logits = window_decoder(
            tokens, weights, cos, sin, k_caches, v_caches, seq_lens, scale=scale, keep=1, backend=backend
        )[:, 0]
        positions = seq_lens[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        seq_lens = seq_lens + tokens.shape[1]
        if text is not None and strengths is not None:
            text.scatter_(1, positions, tokens)
            induce_(logits[:, :vocab], text, seq_lens, strengths, d2t=d2t, backend=backend)
        ids, stats, status = sample(
            logits[:, :vocab], params, seq_lens, purpose=purpose, epochs=epochs, backend=backend
        )  # fmt: skip
        if d2t is not None:
            ids = d2t[ids]
        drawn.append((ids, *stats, status))
        rows.append(logits)
        tokens = ids[:, None]
    ids, threshold, lse, status = (torch.stack(column, dim=1) for column in zip(*drawn, strict=True))
    return ids, threshold, lse, status, torch.stack(rows, dim=1)


def draft_chain(*arguments: Any) -> Found:
    """`pearl_kernels.draft_chain` in plain torch."""
    return one_by_one("reference", *arguments)
