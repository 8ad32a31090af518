"""Root-mean-square norms for windows on a CPU: one pass in place of the five operations that models write it in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pearl_kernels import window_norm

_EPS_NAMES = ("variance_epsilon", "eps")
_OFFSETS = (0.0, 1.0)


class WindowNorm(nn.Module):
    """In front of a model's own class of norms, whose forward it takes over for float32 rows on a CPU."""

    norm_eps: float
    norm_offset: float

    def forward(self, *args: Any, **named: Any) -> Any:
        if len(args) == 1 and not named and not torch.is_grad_enabled():
            x, weight = args[0], self._parameters["weight"]
            assert weight is not None
            if x.dtype is torch.float32 is weight.dtype and x.device.type == "cpu":
                return window_norm(x, weight, eps=self.norm_eps, offset=self.norm_offset)
        return super().forward(*args, **named)


def use_window_norm(model: PreTrainedModel) -> None:
    """Let the norms of a model on a CPU run as `window_norm`, wherever that gives what they give."""
    classes: dict[type[nn.Module], type[nn.Module]] = {}
    for module in model.modules():
        found = None if isinstance(module, WindowNorm) else _eps_and_offset(module)
        if found is None:
            continue
        own = type(module)
        classes.setdefault(own, type(own.__name__, (WindowNorm, own), {}))
        module.norm_eps, module.norm_offset = found  # type: ignore[assignment]
        module.__class__ = classes[own]


def own_class(module: nn.Module) -> type[nn.Module]:
    """A norm's class without ours in front of it; any other module's class as it is."""
    if not isinstance(module, WindowNorm):
        return type(module)
    return next(cls for cls in type(module).__mro__[1:] if cls is not WindowNorm)


@torch.inference_mode()
def _eps_and_offset(module: nn.Module) -> tuple[float, float] | None:
    """What `window_norm` needs to give the same as a module; None if it is no such norm."""
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 1 or weight.dtype is not torch.float32 or weight.device.type != "cpu":
        return None
    eps = next((value for name in _EPS_NAMES if isinstance(value := getattr(module, name, None), float)), None)
    if eps is None or len(module._parameters) > 1 or module._buffers or module._modules:
        return None
    # Off zero, which tells it from a layer norm, and of a size at which eps counts, or does not.
    rows = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)) + 0.5
    rows *= torch.tensor([[1e-3], [1.0], [1e3]])
    try:
        wanted: Tensor = module(rows)
    except (TypeError, ValueError, RuntimeError):
        return None
    for offset in _OFFSETS:
        if torch.allclose(window_norm(rows, weight, eps=eps, offset=offset), wanted, rtol=1e-5, atol=1e-6):
            return eps, offset
    return None
