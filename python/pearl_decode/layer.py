"""Decoder layers for windows on a CPU: one call in place of the fifty operations that a layer is written in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pearl_decode.cache import WindowCache
from pearl_decode.linear import WindowLinear
from pearl_decode.norm import WindowNorm
from pearl_kernels import LayerWeights, Linear, window_layer

# Layers that are written as `window_layer` is, up to what a trial shows.
_KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "SmolLM3DecoderLayer")
_CLOSE = 1e-4  # of the greatest number


class Parts:
    """Modules and parameters as they were when they were looked at."""

    def __init__(self) -> None:
        self._owners: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._values: list[Any] = []

    @property
    def unchanged(self) -> bool:
        """Whether those who had these modules and parameters still have the same."""
        return all(map(is_, map(dict.get, self._owners, self._names), self._values))

    def child(self, module: nn.Module, name: str) -> Any:
        return self._held(module._modules, name)

    def parameter(self, module: nn.Module, name: str) -> Any:
        return self._held(module._parameters, name)

    def linear(self, module: WindowLinear) -> Linear:
        weight, bias = self.parameter(module, "weight"), self.parameter(module, "bias")
        return Linear(weight, bias, module.scale, module.out_features)

    def add(self, others: Parts) -> None:
        """Look at theirs too."""
        self._owners += others._owners
        self._names += others._names
        self._values += others._values

    def _held(self, owner: dict[str, Any], name: str) -> Any:
        value = owner[name]
        self._owners.append(owner)
        self._names.append(name)
        self._values.append(value)
        return value


class LayerParts(Parts):
    """What a layer is made of, as it was when the layer was found to be one of ours."""

    def __init__(self, layer: nn.Module) -> None:
        """Raises AttributeError, KeyError or ValueError for a layer that is made of something else."""
        super().__init__()
        attention, mlp = self.child(layer, "self_attn"), self.child(layer, "mlp")
        config: Any = attention.config
        if any(getattr(owner, "sliding_window", None) for owner in (attention, config)):
            raise ValueError("its attention looks at a window")
        if type(self.child(mlp, "act_fn")).__name__ not in ("SiLU", "SiLUActivation"):
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
            self.parameter(before, "weight"), q, k, v, output, self.parameter(after, "weight"), gate, up, down,
            head_dim=attention.head_dim, eps=before.norm_eps,
            q_norm=None if q_norm is None else self.parameter(q_norm, "weight"),
            k_norm=None if k_norm is None else self.parameter(k_norm, "weight"),
        )  # fmt: skip

    def _norm(self, module: nn.Module, name: str) -> WindowNorm:
        norm = self.child(module, name)
        if not isinstance(norm, WindowNorm):
            raise ValueError(f"{name} is another norm")
        return norm

    def _linear(self, module: nn.Module, name: str) -> Linear:
        linear = self.child(module, name)
        if type(linear) is not WindowLinear:
            raise ValueError(f"{name} is no WindowLinear")
        return self.linear(linear)


class WindowDecoderLayer(nn.Module):
    """In front of a model's own class of layers, whose forward it takes over for windows of float32 rows."""

    parts: LayerParts

    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
        if not args and not torch.compiler.is_compiling():
            out = run_layer(self.parts, hidden_states, named)
            if out is not None:
                return out
        return super().forward(hidden_states, *args, **named)


def run_layer(parts: LayerParts, hidden_states: Tensor, named: dict[str, Any]) -> Tensor | None:
    """What a layer that is called with these arguments gives; None where it has to be run as it is written.

    That is so unless a window of float32 rows is read over a `WindowCache` that left its entries to attention.
    """
    lengths, cache = named.get("attention_mask"), named.get("cache", named.get("past_key_values"))
    if not isinstance(cache, WindowCache) or not isinstance(lengths, Tensor) or lengths.dtype is not torch.int64:
        return None
    weights = parts.weights
    if hidden_states.dtype is not torch.float32 or torch.is_grad_enabled():
        return None
    if not cache.appends_later or not parts.unchanged or not is_wide(weights.norms[0]):
        return None
    cos, sin = named["position_embeddings"]
    buffers = cache.buffers(parts.index, hidden_states, weights.kv_heads, weights.head_dim)
    return window_layer(hidden_states, weights, cos, sin, *buffers, lengths.reshape(-1), scale=parts.scale)


def is_wide(vector: Tensor) -> bool:
    """Whether a vector of a layer is still as loading leaves it: float32 and on a CPU."""
    return vector.dtype is torch.float32 and vector.device.type == "cpu"


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


def _candidates(model: PreTrainedModel) -> Iterator[tuple[nn.Module, LayerParts]]:
    for module in model.modules():
        if type(module).__name__ not in _KNOWN or not type(module).__module__.startswith("transformers.models."):
            continue
        try:
            yield module, LayerParts(module)
        except (AttributeError, KeyError, ValueError):
            continue
