"""`draft_chain` in C++."""

from __future__ import annotations

from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import address, sampling_params
from pearl_kernels.dispatch import contiguous
from pearl_kernels.draft_chain.reference import Draws, Found
from pearl_kernels.window_decoder import Window
from pearl_kernels.window_decoder._native import described_weights, described_window


def draft_chain(window: Window, draws: Draws, found: Found) -> None:
    """`pearl_kernels.draft_chain` of CPU tensors, in one call."""
    params, steps, vocab, purpose, _, _, text, *_ = draws
    columns = contiguous(params.temperature, params.top_k, params.top_p, params.min_p, params.seed)
    epochs, d2t, strengths, lengths = contiguous(draws.epochs, draws.d2t, draws.strengths, draws.lengths)
    ids, threshold, lse, status, logits = found
    if logits is None:
        logits = window.cos.new_empty(*ids.shape, window.weights.head.out_features)
    _C.draft_chain(
        described_weights(window.weights),
        described_window(window),
        address(lengths),
        steps,
        vocab,
        sampling_params(*columns),  # type: ignore[arg-type]
        address(epochs),
        int(purpose),
        address(d2t),
        described_text(text),
        described_strengths(strengths),
        (address(logits), address(ids), address(threshold), address(lse), address(status)),
    )


def described_text(text: Tensor | None) -> tuple[int, int, int]:
    """Address, stride between rows, length."""
    return (0, 0, 0) if text is None else (text.data_ptr(), text.stride(0), text.shape[1])


def described_strengths(strengths: Tensor | None) -> tuple[int, int]:
    """Address, length."""
    return address(strengths), 0 if strengths is None else len(strengths)
