"""A whole decoder over a window on a CPU: its layers in one call, without what its model runs between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pearl_decode.cache import WindowCache
from pearl_decode.layer import WindowDecoderLayer
from pearl_decode.linear import WideEmbedding, WindowLinear
from pearl_decode.norm import WindowNorm
from pearl_kernels import window_layers

WHOLE = "window_model"  # attribute of a model that is run by its WindowModel
# Of these a position's angles depend on nothing else.
_FIXED_ROTARIES = ("default", "linear", "llama3", "yarn")


class WindowModel:
    """A causal model that is an embedding, layers that are all ours, a norm and a head, with one rotary embedding.

    Raises AttributeError, KeyError or ValueError for a model that is made of something else. Whether the model does
    anything else with its parts, only a trial can tell.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        base: Any = model.base_model
        self._base, self._rotary = base, base.rotary_emb
        self._layers: list[Any] = list(base.layers)
        kinds: list[tuple[Any, type[nn.Module]]] = [(layer, WindowDecoderLayer) for layer in self._layers]
        kinds += [(base.embed_tokens, WideEmbedding), (base.norm, WindowNorm), (self._head, WindowLinear)]
        for module, kind in kinds:
            if not isinstance(module, kind):
                raise ValueError(f"{type(module).__name__} is no {kind.__name__}")
        if [layer.parts.index for layer in self._layers] != list(range(len(self._layers))):
            raise ValueError("its layers are numbered otherwise")
        if len({layer.parts.scale for layer in self._layers}) != 1:
            raise ValueError("its layers have different scales")
        self._angles: tuple[Tensor, Tensor] | None = None  # cos and sin of each position, (positions, head_dim)

    @property
    def _head(self) -> Any:
        return self._model.get_output_embeddings()

    def logits(self, input_ids: Tensor, positions: Tensor, mask: Any, cache: WindowCache, keep: int) -> Tensor | None:
        """Logits (batch, keep, vocab) of the last tokens of a window; None where the model has to be run as it is.

        input_ids, positions: (batch, width) int64
        mask: (batch, 1, 1, 1) int64, each row's first position; a mask of any other kind is not for us
        """
        ours = isinstance(mask, Tensor) and mask.dtype is torch.int64 and mask.ndim == 4
        if not ours or torch.is_grad_enabled() or torch.compiler.is_compiling() or self._is_watched():
            return None
        if not cache.appends_later or not self._is_unchanged():
            return None
        parts = [layer.parts for layer in self._layers]
        hidden = self._base.embed_tokens(input_ids)
        cos, sin = self._angles_at(hidden, positions, cache.capacity)
        weights = [part.weights for part in parts]
        heads = weights[0].kv_heads, weights[0].head_dim
        caches = [cache.buffers(part.index, hidden, *heads) for part in parts]
        hidden = window_layers(hidden, weights, cos, sin, caches, mask.reshape(-1), scale=parts[0].scale)
        found: Tensor = self._head(self._base.norm(hidden[:, hidden.shape[1] - keep :].contiguous()))
        return found

    def _is_unchanged(self) -> bool:
        base = self._model.base_model
        same = base is self._base and base.rotary_emb is self._rotary and list(base.layers) == self._layers
        return same and all(layer.parts.unchanged for layer in self._layers)

    def _is_watched(self) -> bool:
        """Whether hooks want to see what goes through the model or a layer."""
        modules = (self._model, self._base, *self._layers)
        return any(module._forward_hooks or module._forward_pre_hooks for module in modules)

    def _angles_at(self, hidden: Tensor, positions: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """cos and sin (batch, width, head_dim)."""
        if getattr(self._rotary, "rope_type", None) not in _FIXED_ROTARIES:
            cos, sin = self._rotary(hidden, positions)
            return cos, sin
        angles = self._angles
        if angles is None or len(angles[0]) < capacity:
            cos, sin = self._rotary(hidden, torch.arange(capacity)[None])
            self._angles = angles = cos[0], sin[0]
        return angles[0][positions], angles[1][positions]
