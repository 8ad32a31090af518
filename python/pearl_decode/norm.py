"""Root-mean-square norms for windows: one pass in place of the five or more operations that models write it in."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pearl_decode.in_front import own_class, put_in_front
from pearl_kernels import window_norm

LOGGER = logging.getLogger(__name__)
_EPS_NAMES = ("variance_epsilon", "eps")
_OFFSETS = (0.0, 1.0)


class WindowNorm(nn.Module):
    """In front of a model's own class of norms, whose forward it takes over: on a CPU for float32 rows, on a GPU unless
    the model is compiled, and its norms with what is beside them.
    """

    norm_eps: float
    norm_offset: float

    def forward(self, *args: Any, **named: Any) -> Any:
        if len(args) == 1 and not named and not torch.is_grad_enabled():
            x, weight = args[0], self._parameters["weight"]
            assert weight is not None
            if x.dtype is weight.dtype and _is_ours(x):
                return window_norm(x, weight, eps=self.norm_eps, offset=self.norm_offset)
        return super().forward(*args, **named)


def _is_ours(rows: Tensor) -> bool:
    if rows.is_cuda:
        return not torch.compiler.is_compiling()
    return rows.dtype is torch.float32 and rows.device.type == "cpu"


FoundNorms = list[tuple[nn.Module, tuple[float, float]]]  # with eps and offset


def find_norms(model: PreTrainedModel) -> FoundNorms:
    """The norms of a model that give the same as `window_norm`."""
    norms = [module for module in model.modules() if not isinstance(module, WindowNorm)]
    return [(module, numbers) for module in norms if (numbers := _eps_and_offset(module)) is not None]


def switch_norms(found: FoundNorms) -> None:
    """Let norms run as `window_norm`."""
    for module, numbers in found:
        module.norm_eps, module.norm_offset = numbers  # type: ignore[assignment]
        put_in_front(WindowNorm, module)


def switch_norms_back(found: FoundNorms) -> None:
    """Let norms run as they are written."""
    for module, _ in found:
        module.__class__ = own_class(module)
        del module.norm_eps, module.norm_offset


@torch.inference_mode()
def _eps_and_offset(module: nn.Module) -> tuple[float, float] | None:
    """What `window_norm` needs to give the same as a module; None if it is no such norm."""
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 1 or not weight.is_floating_point() or not _is_ours(weight):
        return None
    eps = next((value for name in _EPS_NAMES if isinstance(value := getattr(module, name, None), float)), None)
    if eps is None or len(module._parameters) > 1 or module._buffers or module._modules:
        return None
    # Off zero, which tells it from a layer norm, and of a size at which eps counts, or does not.
    rows = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)) + 0.5
    rows = (rows * torch.tensor([[1e-3], [1.0], [1e3]])).to(weight.device, weight.dtype)
    rounding = torch.finfo(weight.dtype).eps
    rtol, atol = (1e-5, 1e-6) if weight.dtype is torch.float32 else (3 * rounding, rounding)
    try:
        wanted: Tensor = module(rows)
        for offset in _OFFSETS:
            if torch.allclose(window_norm(rows, weight, eps=eps, offset=offset), wanted, rtol=rtol, atol=atol):
                return eps, offset
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a module that is called otherwise, or of a compiler
        LOGGER.info("%s runs as it is written: %s: %s", type(module).__name__, type(error).__name__, error)
    return None
