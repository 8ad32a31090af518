"""Decoder layers for windows: one call in place of the fifty operations that a layer is written in."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pearl_decode.cache import WindowCache
from pearl_decode.in_front import own_class, put_in_front
from pearl_decode.linear import WindowLinear
from pearl_decode.norm import WindowNorm
from pearl_kernels import LayerWeights, Linear, window_layer
from pearl_kernels.window_layer.weights import as_one

LOGGER = logging.getLogger(__name__)
# Layers that are written as `window_layer` is, up to what a trial shows.
_KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "SmolLM3DecoderLayer")
_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "SmolLM3RMSNorm")  # theirs, unless ours
_PRODUCTS = (nn.Linear, WindowLinear)
_HOOKS_OF_ALL = (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)


class Parts:
    """Modules and parameters as they were when they were looked at."""

    def __init__(self) -> None:
        self._hooks: list[dict[int, Any]] = [*_HOOKS_OF_ALL]
        self._owners: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._values: list[Any] = []

    @property
    def unchanged(self) -> bool:
        """Whether those who had these modules and parameters still have the same."""
        return all(map(is_, map(dict.get, self._owners, self._names), self._values))

    @property
    def watched(self) -> bool:
        """Whether there are hooks, which want to see what goes through the modules."""
        return any(self._hooks)

    def child(self, module: nn.Module, name: str) -> Any:
        child = self._held(module._modules, name)
        self.watch(child)
        return child

    def watch(self, module: nn.Module) -> None:
        """Look at a module's hooks."""
        self._hooks += [module._forward_hooks, module._forward_pre_hooks]

    def parameter(self, module: nn.Module, name: str) -> Any:
        return self._held(module._parameters, name)

    def linear(self, module: nn.Linear) -> Linear:
        weight, bias = self.parameter(module, "weight"), self.parameter(module, "bias")
        return Linear(weight, bias, getattr(module, "scale", None), module.out_features)

    def add(self, others: Parts) -> None:
        """Look at theirs too."""
        self._hooks += others._hooks
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
        eps = {_eps_of(norm) for norm in (before, after, q_norm, k_norm) if norm is not None}
        if len(eps) > 1:
            raise ValueError("its norms differ")
        q, k, v, output = (self._linear(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
        gate, up, down = (self._linear(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
        self.index: int = attention.layer_idx
        self.scale: float = attention.scaling
        self.weights = LayerWeights(
            self.parameter(before, "weight"), q, k, v, output, self.parameter(after, "weight"), gate, up, down,
            head_dim=attention.head_dim, eps=eps.pop(),
            q_norm=None if q_norm is None else self.parameter(q_norm, "weight"),
            k_norm=None if k_norm is None else self.parameter(k_norm, "weight"),
        )  # fmt: skip

        # What is given the same rows: their weights may be parts of one, and are then multiplied together.
        self.joinable = [
            [attention._modules[name] for name in ("q_proj", "k_proj", "v_proj")],
            [mlp._modules[name] for name in ("gate_proj", "up_proj")],
        ]

    def _norm(self, module: nn.Module, name: str) -> nn.Module:
        norm: nn.Module = self.child(module, name)
        _eps_of(norm)
        return norm

    def _linear(self, module: nn.Module, name: str) -> Linear:
        linear = self.child(module, name)
        if type(linear) not in _PRODUCTS:
            raise ValueError(f"{name} is no plain linear layer")
        return self.linear(linear)


def _eps_of(norm: nn.Module) -> float:
    """Raises ValueError for what is no root-mean-square norm times its weight."""
    if isinstance(norm, WindowNorm) and not norm.norm_offset:
        return norm.norm_eps
    if type(norm).__name__ not in _NORMS:
        raise ValueError(f"{type(norm).__name__} is another norm")
    return float(norm.variance_epsilon)  # type: ignore[arg-type]


class WindowDecoderLayer(nn.Module):
    """In front of a model's own class of layers, whose forward it takes over for windows."""

    parts: LayerParts

    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
        if not args and not torch.compiler.is_compiling():
            out = run_layer(self.parts, hidden_states, named)
            if out is not None:
                return out
        return super().forward(hidden_states, *args, **named)


def run_layer(parts: LayerParts, hidden_states: Tensor, named: dict[str, Any]) -> Tensor | None:
    """What a layer that is called with these arguments gives; None where it has to be run as it is written.

    That is so unless a window, of float32 rows where it is on a CPU, is read over a `WindowCache` that left entries to
    attention.
    """
    lengths, cache = named.get("attention_mask"), named.get("cache", named.get("past_key_values"))
    if not isinstance(cache, WindowCache) or not isinstance(lengths, Tensor) or lengths.dtype is not torch.int64:
        return None
    weights = parts.weights
    if hidden_states.dtype is not weights.dtype or torch.is_grad_enabled():
        return None
    norm = weights.norms[0]
    if not cache.appends_later or not parts.unchanged or parts.watched or not (norm.is_cuda or is_wide(norm)):
        return None
    cos, sin = named["position_embeddings"]
    buffers = cache.buffers(parts.index, hidden_states, weights.kv_heads, weights.head_dim)
    return window_layer(hidden_states, weights, cos, sin, *buffers, lengths.reshape(-1), scale=parts.scale)


def is_wide(vector: Tensor) -> bool:
    """Whether a vector of a layer is still as loading leaves it: float32 and on a CPU."""
    return vector.dtype is torch.float32 and vector.device.type == "cpu"


Found = list[tuple[nn.Module, LayerParts]]  # layers that may be run as `window_layer`


def switch_layers(found: Found) -> None:
    """Let layers run as `window_layer`."""
    for layer, parts in found:
        layer.parts = parts  # type: ignore[assignment]
        put_in_front(WindowDecoderLayer, layer)


def switch_layers_back(found: Found) -> None:
    """Let layers run as they are written."""
    for layer, _ in found:
        layer.__class__ = own_class(layer)
        del layer.parts


@torch.no_grad()
def join_weights(found: Found, sharers: Iterable[nn.Parameter] = ()) -> None:
    """Keep weights that are given the same rows as parts of one. Values, parameters and modules stay as they are.

    sharers: parameters of other models, or of this one, which go on sharing the memory of those they share it with
    """
    sharing: defaultdict[int, list[nn.Parameter]] = defaultdict(list)
    for parameter in sharers:
        sharing[parameter.data_ptr()].append(parameter)
    for linears in (each for _, parts in found for each in parts.joinable):
        for name in ("weight", "bias"):
            own = [parameter for linear in linears if (parameter := linear._parameters[name]) is not None]
            if len(own) < len(linears) or as_one(own) is not None:
                continue
            joined = torch.cat([parameter.data for parameter in own])
            for parameter, part in zip(own, torch.split(joined, list(map(len, own))), strict=True):
                # Taken out, as its old memory may be where the next joined weights are.
                for other in sharing.pop(parameter.data_ptr(), ()):
                    if other.shape == parameter.shape:
                        other.data = part.data
                parameter.data = part


@torch.inference_mode()
def find_window_layers(model: PreTrainedModel, trial: Callable[[], object]) -> Found:
    """The decoder layers that give as `window_layer` what they give in a trial.

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
    return [(layer, found[layer]) for layer, call in calls.items() if _agrees(found[layer], *call)]


def _agrees(parts: LayerParts, hidden_states: Tensor, named: dict[str, Any], wanted: Any) -> bool:
    try:
        got = run_layer(parts, hidden_states, named)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of compilers too, which have errors of their own
        LOGGER.warning("a decoder layer runs as it is written: %s: %s", type(error).__name__, error)
        return False
    return got is not None and isinstance(wanted, Tensor) and agree(got, wanted)


def agree(got: Tensor, wanted: Tensor) -> bool:
    """Whether two ways to compute something differ by rounding only."""
    within = 1e-4 if wanted.dtype is torch.float32 else 4 * torch.finfo(wanted.dtype).eps  # of the greatest number
    return bool((got - wanted).abs().max() <= within * wanted.abs().max())


def _candidates(model: PreTrainedModel) -> Iterator[tuple[nn.Module, LayerParts]]:
    for module in model.modules():
        if type(module).__name__ not in _KNOWN or not type(module).__module__.startswith("transformers.models."):
            continue
        try:
            yield module, LayerParts(module)
        except (AttributeError, KeyError, ValueError):
            continue
