"""Linear layers for windows on a CPU: weights stay in the 16 bits of the checkpoint, everything else is float32.

Decoding a few rows costs what reading the weights costs, so half the bytes is twice the speed; and no value changes,
since a bfloat16 or float16 weight is exact in float32. A draft's may be rounded to 8 bits besides. Layers that multiply
the same rows, as a query's, a key's and a value's do, are multiplied together when the first of them is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from pearl_decode.norm import find_norms, switch_norms
from pearl_kernels import Linear, quantized, window_linear, window_linears


class WindowLinear(nn.Linear):
    """An nn.Linear that takes float32 rows whatever its weights are stored in, and whether they are packed.

    scale: of each row of an int8 weight; None for any other
    """

    joined: Joined | None = None
    scale: Tensor | None = None

    @property
    def operands(self) -> Linear:
        parameters = self._parameters
        return Linear(parameters["weight"], parameters["bias"], self.scale, self.out_features)  # type: ignore[arg-type]

    @torch.no_grad()
    def store_in_int8(self) -> None:
        """Round the weight, which may be shared with other modules: they keep theirs."""
        self._set_weight(*quantized(self.operands.widened()))

    @torch.no_grad()
    def widen(self) -> None:
        """Store the weight in float32, as what it stands for."""
        self._set_weight(self.operands.widened())

    @property
    def rows(self) -> Tensor:
        """The weight (outputs, inputs) as it is stored, packed or not."""
        return self.operands.rows.detach()

    def pack(self, weight: Tensor) -> None:
        """Take the same weight, packed, in place of the one that there is."""
        self._set_weight(weight, self.scale)

    def _set_weight(self, weight: Tensor, scale: Tensor | None = None) -> None:
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WindowLinear:
        if self.operands.is_packed:
            part = self.weight.detach()[:0]
            changed = fn(part)
            if (changed.dtype, changed.device) != (part.dtype, part.device):  # packed is for one type, and for CPUs
                self._set_weight(self.rows, self.scale)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.operands.is_packed:
            destination[f"{prefix}weight"] = self.rows

    def forward(self, input: Tensor) -> Tensor:
        joined = self.joined
        if joined is not None:
            rows, products = joined.ready
            if rows is input and self in products:
                return products.pop(self)
        if input.dtype is not torch.float32 or input.device.type != "cpu" or torch.is_grad_enabled():
            return linear(input, self.operands.widened(input.dtype), self.bias)
        if joined is None or joined.layers[0] is not self:
            return window_linear(input, *self.operands)
        return joined.multiply(input)


class Joined:
    """Layers that are given the same rows one after the other. When the first is called, all are multiplied.

    ready: what the first was given last, and the products with it of the layers that were not called since. One tuple,
           so that a thread that runs the same model meanwhile cannot come between the two
    """

    def __init__(self, layers: list[WindowLinear]) -> None:
        self.layers = layers
        self.ready: tuple[Tensor | None, dict[WindowLinear, Tensor]] = (None, {})
        for layer in layers:
            layer.joined = self

    def multiply(self, rows: Tensor) -> Tensor:
        """The first layer's product; the others' are kept until they are called."""
        if self.ready[1]:
            # Not all were called since: the model took another way, and what was multiplied for them was wasted.
            self.separate()
            return self.layers[0](rows)  # type: ignore[no-any-return]
        first, *others = window_linears(rows, [layer.operands for layer in self.layers])
        self.ready = rows, dict(zip(self.layers[1:], others, strict=True))
        return first

    def separate(self) -> None:
        """Let each layer be multiplied by itself."""
        for layer in self.layers:
            layer.joined = None


class WideEmbedding(nn.Embedding):
    """An nn.Embedding whose rows come out in float32 whatever they are stored in."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


_SWAPS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: WindowLinear, nn.Embedding: WideEmbedding}


def use_window_linear(model: PreTrainedModel) -> None:
    """Let a model on a CPU compute in float32, with its linear layers and embeddings kept as they are stored, and its
    norms as `window_norm`, wherever that gives what they give.

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
    switch_norms(find_norms(model))
    try:
        _join_layers(model)
    except RuntimeError:
        model.float()  # type: ignore[no-untyped-call]


def uses_window_linear(model: Any) -> bool:
    return any(isinstance(module, WindowLinear) for module in model.modules())


def multiplies_by_kernels(model: Any) -> bool:
    """Whether all of a model's matrices are a WindowLinear's, or looked up."""
    modules = [module for module in model.modules() if not isinstance(module, (WindowLinear, nn.Embedding))]
    return all(tensor.ndim < 2 for module in modules for tensor in module.parameters(recurse=False))


@torch.inference_mode()
def _join_layers(model: PreTrainedModel) -> None:
    """Multiply the layers of one module together that a trial gives the same rows, one right after the other.

    If the model then says anything else, for it changes the rows in between, none are.
    """
    parents = {child: parent for parent in model.modules() for child in parent.children()}
    ids = torch.arange(2)[None] % model.config.get_text_config().vocab_size
    with _calls(model) as calls:
        wanted = model(input_ids=ids, use_cache=False).logits
    runs: list[list[WindowLinear]] = []
    last: Tensor | None = None
    for layer, rows in calls:
        if rows is last and parents[layer] is parents[runs[-1][0]] and layer not in runs[-1]:
            runs[-1].append(layer)
        else:
            runs.append([layer])
        last = rows
    counts = Counter(layer for layer, _ in calls)
    joined = [Joined(run) for run in runs if len(run) > 1 and all(counts[layer] == 1 for layer in run)]
    if not torch.equal(model(input_ids=ids, use_cache=False).logits, wanted):
        for group in joined:
            group.separate()


@contextmanager
def _calls(model: PreTrainedModel) -> Iterator[list[tuple[WindowLinear, Tensor]]]:
    """Within: the layers that are called, in order, and what they are given."""
    calls: list[tuple[WindowLinear, Tensor]] = []
    layers = [module for module in model.modules() if isinstance(module, WindowLinear)]
    hooks = [layer.register_forward_pre_hook(lambda layer, args: calls.append((layer, args[0]))) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
