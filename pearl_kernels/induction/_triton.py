"""`induce_` in Triton: one program for each row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pearl_kernels._triton.launch import FUSED, INTERPRETED

BLOCK = 1 << 13 if INTERPRETED else 1 << 10
WARPS = 4


@triton.jit
def induce_rows(
    logits, batch_stride, vocab, d2t, tokens, tokens_stride, capacity, lengths, strengths,
    MOST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Score each place by how many tokens match, then by how late it is; the token after the best one gains."""
    row = tl.program_id(0).to(tl.int64)
    text = tokens + row * tokens_stride
    last = tl.minimum(tl.load(lengths + row), capacity) - 1
    best = tl.full((BLOCK,), -1, tl.int64)
    for begin in range(0, last, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        same = place < last
        matched = tl.zeros((BLOCK,), tl.int64)
        for back in range(MOST):
            ending = tl.load(text + last - back, mask=back <= last, other=0)
            token = tl.load(text + place - back, mask=same & (back <= place), other=0)
            same = same & (back <= place) & (token == ending)
            matched += same.to(tl.int64)
        best = tl.maximum(best, tl.where(matched > 0, (matched << 32) + place, -1))
    found = tl.max(best, 0)
    if found >= 0:
        token = tl.load(text + (found & 0xFFFFFFFF) + 1)
        column = token
        known = (token >= 0) & (token < vocab)
        if d2t is not None:
            low = token * 0
            high = low + vocab
            while low < high:
                middle = (low + high) // 2
                below = tl.load(d2t + middle) < token
                low = tl.where(below, middle + 1, low)
                high = tl.where(below, high, middle)
            column = low
            known = tl.load(d2t + low, mask=low < vocab, other=-1) == token
        logit = logits + row * batch_stride + column
        strength = tl.load(strengths + (found >> 32) - 1)
        added = tl.load(logit, mask=known, other=0.0).to(tl.float32) + strength
        tl.store(logit, added.to(logits.dtype.element_ty), mask=known)


def induce_(logits: Tensor, tokens: Tensor, lengths: Tensor, strengths: Tensor, d2t: Tensor | None) -> None:
    """`pearl_kernels.induce_`: a launch, whose loops are as long as the texts."""
    batch, capacity = tokens.shape
    with torch.cuda.device_of(logits):
        induce_rows[(batch,)](
            logits, logits.stride(0), logits.shape[1], d2t, tokens, tokens.stride(0), capacity, lengths, strengths,
            MOST=len(strengths), BLOCK=BLOCK, num_warps=WARPS, **FUSED,
        )  # fmt: skip
