"""`sample` in C++."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pearl_kernels import _C
from pearl_kernels._pointers import address, logits_view, sampling_params
from pearl_kernels.threads import num_threads


def sample_out(*given: Any) -> None:
    """Draw a token for each row of CPU logits and keep the row's statistics, as `pearl_kernels.sample` says."""
    _C.sample(*(*arguments(*given), num_threads()))


def arguments(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    positions: Tensor,
    epochs: Tensor | None,
    purpose: int,
    tokens: Tensor,
    threshold: Tensor,
    lse: Tensor,
    status: Tensor,
) -> tuple[Any, ...]:
    """The arguments of `sample_out` as the extension takes them."""
    return (
        logits.shape[0],
        logits_view(logits),
        sampling_params(temperature, top_k, top_p, min_p, seed),
        address(positions),
        address(epochs),
        purpose,
        address(tokens),
        address(threshold),
        address(lse),
        address(status),
    )
