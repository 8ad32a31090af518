"""`verify` in CUDA."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._cuda import launch, queue
from pearl_kernels.verify._native import arguments


def verify_out(target_logits: Tensor, *rest: Any) -> None:
    """Queue what `pearl_kernels.verify` says on the current stream, without synchronising."""
    prepared = (*arguments(target_logits, *rest), queue(target_logits, target_logits.shape[1]))
    launch(_C.verify_cuda, *prepared)
