"""Linear layers for windows on a CPU: weights stay in the 16 bits of the checkpoint, everything else is float32.

Decoding a few rows costs what reading the weights costs, so half the bytes is twice the speed; and no value changes,
since a bfloat16 or float16 weight is exact in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from pearl_kernels import window_linear

MOST_ROWS = 64  # beyond them arithmetic is the cost, and torch's own product the faster one


class WindowLinear(nn.Linear):
    """An nn.Linear that takes float32 rows whatever its weights are stored in."""

    def forward(self, input: Tensor) -> Tensor:
        few = input.numel() <= MOST_ROWS * self.in_features
        if few and input.dtype is torch.float32 and input.device.type == "cpu" and not torch.is_grad_enabled():
            return window_linear(input, self.weight, self.bias)
        return linear(input, self.weight.to(input.dtype), self.bias)


class WideEmbedding(nn.Embedding):
    """An nn.Embedding whose rows come out in float32 whatever they are stored in."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


_SWAPS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: WindowLinear, nn.Embedding: WideEmbedding}


def use_window_linear(model: PreTrainedModel) -> None:
    """Let a model on a CPU compute in float32, with its linear layers and embeddings kept as they are stored.

    A model that does not run like this, because its code looks at the type of its weights, becomes float32 throughout.
    """
    kept: set[int] = set()
    others: set[int] = set()
    for module in model.modules():
        module.__class__ = _SWAPS.get(type(module), type(module))
        owner = kept if type(module) in _SWAPS.values() else others
        owner.update(id(tensor) for tensor in module.parameters(recurse=False) if tensor.ndim == 2)
    kept -= others  # a weight is kept if all who share it can take it
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point() and id(tensor) not in kept:
            tensor.data = tensor.data.float()
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    except RuntimeError:
        model.float()  # type: ignore[no-untyped-call]


def uses_window_linear(model: Any) -> bool:
    return any(isinstance(module, WindowLinear) for module in model.modules())
