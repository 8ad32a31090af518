"""`advance_` in CUDA."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._cuda import launch, queue
from pearl_kernels.advance._native import arguments


def advance_(
    tokens: Tensor,
    committed: Tensor,
    window: Tensor,
    max_len: Tensor,
    eos_ids: Tensor,
    finished: Tensor,
    status: Tensor,
    target_logits: Tensor,
    *rest: Any,
) -> None:
    """Queue what `pearl_kernels.advance_` says on the current stream, without synchronising."""
    state = (tokens, committed, window, max_len, eos_ids, finished, status)
    prepared = (*arguments(*state, target_logits, *rest), queue(target_logits, target_logits.shape[1]))
    launch(_C.advance_cuda, *prepared)
