"""`draft_chain` in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import address, sampling_params
from pearl_kernels.dispatch import contiguous
from pearl_kernels.draft_chain.reference import Found
from pearl_kernels.types import Purpose, SamplingTensors
from pearl_kernels.window_decoder import DecoderWeights
from pearl_kernels.window_decoder._native import described_decoder


def draft_chain(
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
    """`pearl_kernels.draft_chain` of CPU tensors, in one call. What it returns lies step by step."""
    batch = len(tokens)
    columns = contiguous(params.temperature, params.top_k, params.top_p, params.min_p, params.seed)
    epochs, d2t, strengths = contiguous(epochs, d2t, strengths)
    window = [each.contiguous() for each in (tokens, cos, sin, seq_lens)]
    logits = torch.empty(steps, batch, weights.head.out_features)
    ids = torch.empty(steps, batch, dtype=torch.int64)
    threshold, lse = torch.empty(steps, batch), torch.empty(steps, batch)
    status = torch.empty(steps, batch, dtype=torch.int32)
    _C.draft_chain(
        described_decoder(window[0], weights, window[1], window[2], k_caches, v_caches, window[3], scale),
        steps,
        vocab,
        sampling_params(*columns),  # type: ignore[arg-type]
        address(epochs),
        int(purpose),
        address(d2t),
        (0, 0, 0) if text is None else (text.data_ptr(), text.stride(0), text.shape[1]),
        (address(strengths), 0 if strengths is None else len(strengths)),
        (address(logits), address(ids), address(threshold), address(lse), address(status)),
    )
    return ids.T, threshold.T, lse.T, status.T, logits.transpose(0, 1)
