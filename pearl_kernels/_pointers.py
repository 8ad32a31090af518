"""How tensors cross into the extension: as addresses, sizes and strides. Shared by the _native.py files."""

from __future__ import annotations

import torch
from torch import Tensor

Logits = tuple[int, int, int, int, int]
Draft = tuple[Logits, int, int, int]
Params = tuple[int, int, int, int, int]

# The numbers of csrc/common/types.h and csrc/verify/verify.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
RULES = {"greedy": 0, "token": 1, "block": 2, "coupled": 3}

_NO_LOGITS: Logits = (0, 0, 0, 0, 0)


def address(tensor: Tensor | None) -> int:
    """The address of a contiguous tensor's data, 0 for None. The caller keeps the tensor alive."""
    if tensor is None:
        return 0
    assert tensor.is_contiguous(), f"the extension walks this tensor as contiguous, got strides {tensor.stride()}"
    return tensor.data_ptr()


def logits_view(logits: Tensor) -> Logits:
    """logits: (batch, vocab) or (batch, width, vocab), last dimension contiguous, any strides before it."""
    row_stride = logits.stride(1) if logits.ndim == 3 else 0
    return logits.data_ptr(), DTYPES[logits.dtype], logits.shape[-1], logits.stride(0), row_stride


def draft_side(logits: Tensor | None, threshold: Tensor | None, lse: Tensor | None, d2t: Tensor | None) -> Draft:
    """What the draft says of its tokens; all None for a draft without probabilities."""
    view = _NO_LOGITS if logits is None else logits_view(logits)
    return view, address(threshold), address(lse), address(d2t)


def sampling_params(temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seed: Tensor) -> Params:
    """The five columns of SamplingTensors, (batch,) each."""
    return address(temperature), address(top_k), address(top_p), address(min_p), address(seed)
