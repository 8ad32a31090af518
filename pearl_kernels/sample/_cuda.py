"""`sample` in CUDA."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._cuda import launch, queue
from pearl_kernels.sample._native import arguments


def sample_out(logits: Tensor, *rest: Any) -> None:
    """Queue what `pearl_kernels.sample` says on the current stream, without synchronising."""
    prepared = (*arguments(logits, *rest), queue(logits, 1))
    launch(_C.sample_cuda, *prepared)
