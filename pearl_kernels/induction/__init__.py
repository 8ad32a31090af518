"""The door of `induce_`: make a draft's next token likelier where its text repeats itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels.dispatch import choose, contiguous, define, operation

MOST = 32


def induce_(
    logits: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    strengths: Tensor,
    *,
    d2t: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Add to the logit of the token that followed the last time a text ended as it ends now.

    Of all places before the end of a row's text, the one before which most tokens, up to `most`, are the text's last
    ones, and the latest among those: the token after it has strengths[n - 1] added to its logit, if n >= 1 tokens are.
    A model cannot do it better by attention, and a small one does it worse.

    logits:    (batch, vocab) float32/bfloat16/float16, any row stride but contiguous last dimension; written to
    tokens:    (batch, capacity) int64, any row stride but contiguous last dimension; a row's text is its first
               lengths[b] tokens
    lengths:   (batch,) int64 in [0, capacity]; on a GPU others are taken to the nearer end
    strengths: (most,) float32, 1 to 32 of them, to add after an end of 1 to `most` tokens
    d2t:       (vocab,) int64, strictly increasing, the token of each logit; None: token t has logit t. A token that has
               none changes nothing
    backend:   None picks the best for the device

    Returns logits. Nothing is read on the host, and a row's result does not depend on the others.
    Raises ValueError naming the argument, what was expected and what came.
    Source: the induction heads of Olsson et al. 2022 (arXiv 2209.11895), over n-grams as in Akyürek et al. 2024
    (arXiv 2401.12973).
    """
    op = "induce_"
    checks.logits(op, "logits", logits, ("batch", "vocab"))
    batch, device = logits.shape[0], logits.device
    capacity = check_induction(op, "tokens", tokens, strengths, d2t, batch, logits.shape[1], device)
    checks.tensor(op, "lengths", lengths, (("batch", batch),), torch.int64, device)
    if checks.readable(lengths) and batch:
        checks.in_range(op, "lengths", lengths, 0, capacity)
    operation("induce_", _induce)(logits, tokens, lengths, strengths, d2t, backend)
    return logits


def check_induction(
    op: str, name: str, text: Any, strengths: Any, d2t: Any, batch: int, vocab: int, device: torch.device
) -> int:
    """Refuse a text, called `name`, strengths or a d2t that do not fit. Returns the capacity of the text."""
    capacity = text.shape[-1] if isinstance(text, Tensor) and text.ndim else 0
    checks.tensor(op, name, text, (("batch", batch), ("capacity", capacity)), torch.int64, device)
    if text.stride(-1) != 1 and capacity > 1:
        raise ValueError(f"{op}: {name} must have a contiguous last dimension, got strides {text.stride()}")
    most = len(strengths) if isinstance(strengths, Tensor) and strengths.ndim else 0
    checks.tensor(op, "strengths", strengths, (("most", most),), torch.float32, device)
    if not 1 <= most <= MOST:
        raise ValueError(f"{op}: strengths must be 1 to {MOST} numbers, got {most}")
    if d2t is not None:
        checks.tensor(op, "d2t", d2t, (("vocab", vocab),), torch.int64, device)
    return capacity


def _induce(
    logits: Tensor, tokens: Tensor, lengths: Tensor, strengths: Tensor, d2t: Tensor | None, backend: str | None
) -> None:
    if tokens.numel():
        run = choose("induction", logits.device, backend)
        run(logits, tokens, *contiguous(lengths, strengths, d2t))


def _fake(*_: Any) -> None:
    pass


define(
    "induce_(Tensor(a!) logits, Tensor tokens, Tensor lengths, Tensor strengths, Tensor? d2t, str? backend) -> ()",
    _induce,
    _fake,
)
