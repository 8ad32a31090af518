"""Decoder layers for windows on a CPU: one call in place of the fifty operations that a layer is written in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pearl_decode.cache import WindowCache
from pearl_decode.linear import WindowLinear
from pearl_decode.norm import WindowNorm
from pearl_kernels import LayerWeights, Linear, packed, window_layer

# Layers that are written as `window_layer` is, up to what a trial shows.
_KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "SmolLM3DecoderLayer")
_CLOSE = 1e-4  # of the greatest number


class Parts:
    """What a layer is made of, as it was when the layer was found to be one of ours."""

    def __init__(self, layer: nn.Module) -> None:
        """Raises AttributeError, KeyError or ValueError for a layer that is made of something else."""
        self._held: list[tuple[dict[str, Any], str, Any]] = []
        attention, mlp = self._child(layer, "self_attn"), self._child(layer, "mlp")
        config: Any = attention.config
        if any(getattr(owner, "sliding_window", None) for owner in (attention, config)):
            raise ValueError("its attention looks at a window")
        if type(self._child(mlp, "act_fn")).__name__ not in ("SiLU", "SiLUActivation"):
            raise ValueError("its MLP has another activation")
        before, after = (self._norm(layer, name) for name in ("input_layernorm", "post_attention_layernorm"))
        q_norm, k_norm = (
            self._norm(attention, name) if name in attention._modules else None for name in ("q_norm", "k_norm")
        )
        norms = [norm for norm in (before, after, q_norm, k_norm) if norm is not None]
        if len({norm.norm_eps for norm in norms}) > 1 or any(norm.norm_offset for norm in norms):
            raise ValueError("its norms differ")
        q, k, v, output = (self._linear(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
        gate, up, down = (self._linear(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
        self.index: int = attention.layer_idx
        self.scale: float = attention.scaling
        self.weights = LayerWeights(
            self._parameter(before, "weight"), q, k, v, output, self._parameter(after, "weight"), gate, up, down,
            head_dim=attention.head_dim, eps=before.norm_eps,
            q_norm=None if q_norm is None else self._parameter(q_norm, "weight"),
            k_norm=None if k_norm is None else self._parameter(k_norm, "weight"),
        )  # fmt: skip

    @property
    def unchanged(self) -> bool:
        """Whether the layer is still made of the same modules and parameters."""
        return all(owner.get(name) is value for owner, name, value in self._held)

    def _child(self, module: nn.Module, name: str) -> Any:
        child = module._modules[name]
        self._held.append((module._modules, name, child))
        return child

    def _norm(self, module: nn.Module, name: str) -> WindowNorm:
        norm = self._child(module, name)
        if not isinstance(norm, WindowNorm):
            raise ValueError(f"{name} is another norm")
        return norm

    def _linear(self, module: nn.Module, name: str) -> Linear:
        linear = self._child(module, name)
        if type(linear) is not WindowLinear:
            raise ValueError(f"{name} is no WindowLinear")
        weight, bias = self._parameter(linear, "weight"), self._parameter(linear, "bias")
        return Linear(weight, bias, linear.scale, linear.out_features)

    def _parameter(self, module: nn.Module, name: str) -> Any:
        parameter = module._parameters[name]
        self._held.append((module._parameters, name, parameter))
        return parameter


class WindowDecoderLayer(nn.Module):
    """In front of a model's own class of layers, whose forward it takes over for windows of float32 rows."""

    parts: Parts

    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
        if not args and not torch.compiler.is_compiling():
            out = run_layer(self.parts, hidden_states, named)
            if out is not None:
                return out
        return super().forward(hidden_states, *args, **named)


def run_layer(parts: Parts, hidden_states: Tensor, named: dict[str, Any]) -> Tensor | None:
    """What a layer that is called with these arguments gives; None where it has to be run as it is written.

    That is so unless a window of float32 rows is read over a `WindowCache` that left its entries to attention.
    """
    lengths, cache = named.get("attention_mask"), named.get("cache", named.get("past_key_values"))
    if not isinstance(cache, WindowCache) or not isinstance(lengths, Tensor) or lengths.dtype is not torch.int64:
        return None
    weights = parts.weights
    if hidden_states.dtype is not torch.float32 or torch.is_grad_enabled():
        return None
    if not cache.appends_later or not parts.unchanged:
        return None
    cos, sin = named["position_embeddings"]
    buffers = cache.buffers(parts.index, hidden_states, weights.kv_heads, weights.head_dim)
    return window_layer(hidden_states, weights, cos, sin, *buffers, lengths.reshape(-1), scale=parts.scale)


@torch.inference_mode()
def use_window_layers(model: PreTrainedModel, trial: Callable[[], object]) -> None:
    """Let the decoder layers of a model on a CPU run as `window_layer`, wherever a trial gives what they give.

    trial: runs windows over a `WindowCache`, the last with entries of other windows before them
    """
    found = dict(_candidates(model))
    calls: dict[nn.Module, tuple[Tensor, dict[str, Any], Any]] = {}

    def note(layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> None:
        calls[layer] = (args[0], named, output)

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in found]
    try:
        trial()
    finally:
        for hook in hooks:
            hook.remove()
    classes: dict[type[nn.Module], type[nn.Module]] = {}
    for layer, (hidden_states, named, wanted) in calls.items():
        got = run_layer(found[layer], hidden_states, named)
        if got is None or not isinstance(wanted, Tensor) or (got - wanted).abs().max() > _CLOSE * wanted.abs().max():
            continue
        own = type(layer)
        classes.setdefault(own, type(own.__name__, (WindowDecoderLayer, own), {}))
        layer.parts = found[layer]  # type: ignore[assignment]
        layer.__class__ = classes[own]


def store_in_int8(draft: PreTrainedModel) -> None:
    """Round the matrices of a draft that runs windows on a CPU to 8 bits: half as much to read as of 16.

    What it shares with its target stays as it is for that one, and its embedding for both.
    """
    for module in draft.modules():
        if isinstance(module, WindowLinear):
            module.store_in_int8()
    _look_again(draft)


def pack_weights(*models: PreTrainedModel) -> None:
    """Store the matrices that models multiply with on a CPU in the order in which they are read fastest.

    Those that models share they share still. Embeddings stay as they are, so a head that shares its own has a copy.
    """
    stored: dict[int, Tensor] = {}
    for model in models:
        for module in model.modules():
            if not isinstance(module, WindowLinear) or module.weight.device.type != "cpu" or module.operands.is_packed:
                continue
            place = module.weight.data_ptr()
            if place not in stored:
                stored[place] = packed(module.weight.detach())
            module.pack(stored[place])
        _look_again(model)


def _look_again(model: PreTrainedModel) -> None:
    """Let a model's layers run with the weights they have now."""
    for module in model.modules():
        if isinstance(module, WindowDecoderLayer):
            module.parts = Parts(module)


def _candidates(model: PreTrainedModel) -> Iterator[tuple[nn.Module, Parts]]:
    for module in model.modules():
        if type(module).__name__ not in _KNOWN or not type(module).__module__.startswith("transformers.models."):
            continue
        try:
            yield module, Parts(module)
        except (AttributeError, KeyError, ValueError):
            continue
