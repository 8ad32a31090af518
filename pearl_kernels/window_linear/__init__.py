"""The door of `window_linear`: the few rows of a window against a whole weight matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pearl_kernels import checks
from pearl_kernels.dispatch import choose, define, operation

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
BLOCK = 32  # outputs whose weights lie together in a packed weight


class Linear(NamedTuple):
    """A layer of which row n is weight[n] * scale[n], and bias[n] is added; see `window_linear`."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    outputs: int | None = None

    @property
    def is_packed(self) -> bool:
        return self.weight.ndim == 3

    @property
    def out_features(self) -> int:
        if self.outputs is not None:
            return self.outputs
        return self.weight.shape[0] * BLOCK if self.is_packed else self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def rows(self) -> Tensor:
        """The weight (outputs, inputs) in the type it is stored in, packed or not."""
        return unpacked(self.weight, self.out_features) if self.is_packed else self.weight

    def packed(self) -> Linear:
        """The same layer with its weight `packed`."""
        return self._replace(weight=packed(self.weight), outputs=self.out_features)

    def widened(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that is meant, (outputs, inputs) in a floating type."""
        weight = self.rows.to(dtype)
        return weight if self.scale is None else weight * self.scale.to(dtype)[:, None]


def packed(weight: Tensor) -> Tensor:
    """A weight (outputs, inputs) in the order in which it is read fastest: (blocks, inputs, BLOCK) of its dtype.

    A block is BLOCK = 32 outputs, the last one filled up with zeros; what lies together belongs to one input, or of
    bfloat16 to two. Meant for `window_linear` and `unpacked` alone, so the order within a block may be any.
    """
    if weight.ndim != 2:
        raise ValueError(f"packed: weight must be (outputs, inputs), got shape {tuple(weight.shape)}")
    blocks = -(-weight.shape[0] // BLOCK)
    whole = pad(weight, (0, 0, 0, blocks * BLOCK - weight.shape[0])).view(blocks, BLOCK, weight.shape[1])
    # Of bfloat16 the weights of two inputs make a 32-bit word: shifted it is the first as float32, masked the second.
    paired = weight.shape[1] // 2 * 2 if weight.dtype is torch.bfloat16 else 0
    words = whole[..., :paired].reshape(blocks, BLOCK, paired // 2, 2).transpose(1, 2).reshape(blocks, paired, BLOCK)
    return torch.cat([words, whole[..., paired:].mT], dim=1)


def unpacked(weight: Tensor, outputs: int) -> Tensor:
    """The first `outputs` rows of the weight (outputs, inputs) that `packed` was given."""
    blocks, inputs, _ = weight.shape
    paired = inputs // 2 * 2 if weight.dtype is torch.bfloat16 else 0
    words = weight[:, :paired].reshape(blocks, paired // 2, BLOCK, 2).transpose(1, 2).flatten(2)
    return torch.cat([words, weight[:, paired:].mT], dim=2).flatten(0, 1)[:outputs].contiguous()


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest int8 weight and its scale (outputs,) float32, so that each row's greatest number becomes 127.

    weight: (outputs, inputs) of a floating type, finite
    """
    wide = weight.float()
    scale = wide.abs().amax(dim=1) / 127
    rows = wide / torch.where(scale > 0, scale, 1.0)[:, None]
    return rows.round_().to(torch.int8), scale


def window_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    outputs: int | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """x @ (scale * weight).T + bias in float32, for few rows: weights are read once, in the type they are stored in.

    x:       (..., inputs) float32
    weight:  (outputs, inputs) float32/bfloat16/float16, or int8 with a scale; rows contiguous. Or the same `packed`,
             which is faster and gives the same bits
    bias:    (outputs,) float32 contiguous, or None
    scale:   (outputs,) float32 contiguous, of each row of an int8 weight; None for any other
    outputs: how many a packed weight has; None: whole blocks
    backend: None picks the best for the device

    Returns (..., outputs) float32. On the cpu backend each row's result is the same to the bit whatever rows are
    beside it and however many threads work (torch.get_num_threads()). Where the processor has AMX and `inputs` is a
    multiple of 32, bfloat16 weights are multiplied by that, and infinite numbers may come out as NaN. There is no
    derivative.
    Raises ValueError naming the argument, what was expected and what came.
    """
    _check(x, Linear(weight, bias, scale, outputs))
    out: Tensor = operation("window_linear", _window_linear)(x, weight, bias, scale, outputs, backend)
    return out


def window_linears(x: Tensor, layers: Sequence[Linear], *, backend: str | None = None) -> list[Tensor]:
    """`window_linear` of the same rows with each layer, to the same bits, begun once for all of them.

    The cpu backend's threads share out the outputs of all layers together, as if the weights were one matrix.
    """
    for layer in layers:
        _check(x, layer)
    if checks.traced(x):
        return [torch.ops.pearl.window_linear.default(x, *layer, backend) for layer in layers]
    return _window_linears(x, layers, backend)


def _check(x: Tensor, layer: Linear) -> None:
    weight = layer.weight
    if x.dtype is not torch.float32:
        raise ValueError(f"window_linear: x must be float32, got {x.dtype}")
    check_linear("window_linear", "weight", layer)
    if x.ndim == 0 or x.shape[-1] != layer.in_features:
        raise ValueError(f"window_linear: x must be (..., {layer.in_features}), got shape {tuple(x.shape)}")
    if weight.device != x.device:
        raise ValueError(f"window_linear: weight must be on {x.device}, got {weight.device}")


def check_linear(operation: str, name: str, layer: Linear, dtype: torch.dtype = torch.float32) -> None:
    """Raise ValueError unless a layer is one that `window_linear` takes, with a bias of dtype."""
    weight, bias, scale, outputs = layer
    if layer.is_packed:
        fits = weight.shape[2] == BLOCK and weight.is_contiguous()
    else:
        fits = weight.ndim == 2 and weight.stride(1) == 1
    if weight.dtype not in WEIGHT_DTYPES or not fits:
        raise ValueError(
            f"{operation}: {name} must be (outputs, inputs) float32, bfloat16, float16 or int8 with contiguous rows, "
            f"or packed, got {weight.dtype} of shape {tuple(weight.shape)}, strides {weight.stride()}"
        )
    most = Linear(weight).out_features
    least = max(0, most - BLOCK + 1) if layer.is_packed else most
    if outputs is not None and not least <= outputs <= most:
        raise ValueError(
            f"{operation}: outputs must be from {least} to {most} for a {name} of shape {tuple(weight.shape)}, "
            f"got {outputs}"
        )
    if (weight.dtype is torch.int8) != (scale is not None):
        had = "none" if scale is None else "one"
        raise ValueError(f"{operation}: {name} must have a scale if it is int8, got {had} for {weight.dtype}")
    for kind, vector, wanted in (("bias", bias, dtype), ("scale", scale, torch.float32)):
        if vector is None:
            continue
        what = kind if name == "weight" else f"{name}'s {kind}"
        if vector.dtype is not wanted or vector.shape != (layer.out_features,) or not vector.is_contiguous():
            raise ValueError(
                f"{operation}: {what} must be ({layer.out_features},) {str(wanted)[6:]} and contiguous, "
                f"got {vector.dtype} of shape {tuple(vector.shape)}"
            )
        if vector.device != weight.device:
            raise ValueError(f"{operation}: {what} must be on {weight.device}, got {vector.device}")


def _window_linears(x: Tensor, layers: Sequence[Linear], backend: str | None) -> list[Tensor]:
    rows, device = x.shape[:-1], x.device
    outs = [torch.empty((*rows, layer.out_features), dtype=torch.float32, device=device) for layer in layers]
    if outs:
        choose("window_linear", device, backend)(x.contiguous(), layers, outs)
    return outs


def _window_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, outputs: int | None, backend: str | None
) -> Tensor:
    return _window_linears(x, [Linear(weight, bias, scale, outputs)], backend)[0]


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, outputs: int | None, backend: str | None
) -> Tensor:
    return x.new_empty((*x.shape[:-1], Linear(weight, outputs=outputs).out_features))


define(
    "window_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, int? outputs, str? backend) -> Tensor",
    _window_linear,
    _fake,
)
