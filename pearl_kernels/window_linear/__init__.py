"""The door of `window_linear`: the few rows of a window against a whole weight matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pearl_kernels.dispatch import choose, define

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def window_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """x @ weight.T + bias in float32, for few rows: weights are read once, in the type they are stored in.

    x:       (..., inputs) float32
    weight:  (outputs, inputs) float32/bfloat16/float16, rows contiguous
    bias:    (outputs,) float32 contiguous, or None
    backend: None picks the best for the device

    Returns (..., outputs) float32. On the cpu backend each row's result is the same to the bit whatever rows are
    beside it and however many threads work (torch.get_num_threads()). There is no derivative.
    Raises ValueError naming the argument, what was expected and what came.
    """
    _check(x, weight, bias)
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.pearl.window_linear.default(x, weight, bias, backend)
        return out
    return _window_linear(x, weight, bias, backend)  # a model calls this hundreds of times: the registry costs more


def window_linears(
    x: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]], *, backend: str | None = None
) -> list[Tensor]:
    """`window_linear` of the same rows with each layer's (weight, bias), to the same bits, begun once for all of them.

    The cpu backend's threads share out the outputs of all layers together, as if the weights were one matrix.
    """
    for weight, bias in layers:
        _check(x, weight, bias)
    if torch.compiler.is_compiling():
        return [torch.ops.pearl.window_linear.default(x, weight, bias, backend) for weight, bias in layers]
    return _window_linears(x, layers, backend)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dtype is not torch.float32:
        raise ValueError(f"window_linear: x must be float32, got {x.dtype}")
    if weight.dtype not in WEIGHT_DTYPES or weight.ndim != 2 or weight.stride(1) != 1:
        raise ValueError(
            "window_linear: weight must be (outputs, inputs) float32, bfloat16 or float16 with contiguous rows, "
            f"got {weight.dtype} of shape {tuple(weight.shape)}, strides {weight.stride()}"
        )
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"window_linear: x must be (..., {weight.shape[1]}), got shape {tuple(x.shape)}")
    if bias is not None and (
        bias.dtype is not torch.float32 or bias.shape != weight.shape[:1] or not bias.is_contiguous()
    ):
        raise ValueError(
            f"window_linear: bias must be ({weight.shape[0]},) float32 and contiguous, "
            f"got {bias.dtype} of shape {tuple(bias.shape)}"
        )
    if weight.device != x.device or (bias is not None and bias.device != x.device):
        raise ValueError(f"window_linear: weight and bias must be on {x.device}, got weight on {weight.device}")


def _window_linears(x: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]], backend: str | None) -> list[Tensor]:
    rows, device = x.shape[:-1], x.device
    outs = [torch.empty((*rows, weight.shape[0]), dtype=torch.float32, device=device) for weight, _ in layers]
    if outs:
        choose("window_linear", device, backend)(x.contiguous(), layers, outs)
    return outs


def _window_linear(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str | None) -> Tensor:
    return _window_linears(x, [(weight, bias)], backend)[0]


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


define("window_linear(Tensor x, Tensor weight, Tensor? bias, str? backend) -> Tensor", _window_linear, _fake)
