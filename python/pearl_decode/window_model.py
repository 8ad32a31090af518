"""A whole decoder over a window: one call in place of all that its model runs."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pearl_decode.cache import WindowCache
from pearl_decode.layer import Parts, WindowDecoderLayer
from pearl_decode.norm import WindowNorm
from pearl_kernels import DecoderWeights, DraftChain, SamplingTensors, Window, draft_chain, window_decoder

WHOLE = "window_model"  # attribute of a model that is run by its WindowModel
# Of these a position's angles depend on nothing else.
_FIXED_ROTARIES = ("default", "linear", "llama3", "yarn")


class WindowModel:
    """A causal model that is an embedding, layers that are all ours, a norm and a head, with one rotary embedding.

    Raises AttributeError, KeyError or ValueError for a model that is made of something else. Whether the model does
    anything else with its parts, only a trial can tell.

    What a model is made of is looked at when the first window is read over a cache: those that follow are read with the
    same weights, whatever becomes of the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._parts = parts = Parts()
        base = parts.child(model, model.base_model_prefix)
        self._rotary = parts.child(base, "rotary_emb")
        embedding, norm = parts.child(base, "embed_tokens"), parts.child(base, "norm")
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        for owner in model.modules():
            for name in [name for name, module in owner._modules.items() if module is head]:
                parts.child(owner, name)
        self._stack = parts.child(base, "layers")
        layers = [parts.child(self._stack, name) for name in self._stack._modules]
        kinds: list[tuple[Any, type[nn.Module]]] = [(layer, WindowDecoderLayer) for layer in layers]
        kinds += [(embedding, nn.Embedding), (norm, WindowNorm), (head, nn.Linear)]
        for module, kind in kinds:
            if not isinstance(module, kind):
                raise ValueError(f"{type(module).__name__} is no {kind.__name__}")
        if getattr(self._rotary, "rope_type", None) not in _FIXED_ROTARIES:
            raise ValueError("its angles depend on more than the position")
        if norm.norm_offset or embedding.max_norm is not None:
            raise ValueError("its norm or its embedding does more than others")
        if [layer.parts.index for layer in layers] != list(range(len(layers))):
            raise ValueError("its layers are numbered otherwise")
        if len({layer.parts.scale for layer in layers}) != 1:
            raise ValueError("its layers have different scales")
        for layer in layers:
            parts.add(layer.parts)
        parts.watch(model)
        self._scale: float = layers[0].parts.scale
        self._weights = DecoderWeights(
            parts.parameter(embedding, "weight"), [layer.parts.weights for layer in layers],
            parts.parameter(norm, "weight"), parts.linear(head), eps=norm.norm_eps,
        )  # fmt: skip
        self._place = self._weights.norm.dtype, self._weights.norm.device
        self._held: WeakKeyDictionary[WindowCache, DecoderWeights] = WeakKeyDictionary()
        # cos and sin of each position, (positions, head_dim). The last are the longest; graphs may read those before.
        self._angles: list[tuple[Tensor, Tensor]] = []

    def logits(self, input_ids: Tensor, mask: Any, cache: WindowCache, keep: int) -> Tensor | None:
        """Logits (batch, keep, vocab) of the last tokens of a window; None where the model has to be run as it is.

        input_ids: (batch, width) int64
        mask: (batch, 1, 1, 1) int64, each row's first position; a mask of any other kind is not for us
        """
        ours = isinstance(mask, Tensor) and mask.dtype is torch.int64 and mask.ndim == 4
        if not ours or not cache.appends_later or not self.is_ready(cache):
            return None
        return self.logits_at(input_ids, mask.reshape(-1), cache, keep)

    def logits_at(self, input_ids: Tensor, starts: Tensor, cache: WindowCache, keep: int) -> Tensor:
        """The same of a window at starts (batch,) int64, if `is_ready`."""
        memory = self._memory(len(input_ids), cache)
        return window_decoder(input_ids, self._held[cache], *memory, starts, scale=self._scale, keep=keep)

    def draft(
        self, input_ids: Tensor, starts: Tensor, cache: WindowCache, params: SamplingTensors, **options: Any
    ) -> DraftChain:
        """`pearl_kernels.draft_chain` after a window (batch, width) at starts (batch,), if `is_ready`."""
        memory = self._memory(len(input_ids), cache)
        return draft_chain(input_ids, self._held[cache], *memory, starts, params, scale=self._scale, **options)

    def window(self, batch: int, cache: WindowCache) -> Window:
        """A window of `batch` rows, of any tokens at any place, over a cache, if `is_ready`."""
        tokens = torch.zeros(batch, 1, dtype=torch.int64, device=self._weights.norm.device)
        return Window(tokens, self._held[cache], *self._memory(batch, cache), tokens[:, 0], self._scale)

    def empty_logits(self, batch: int) -> Tensor:
        """(batch, outputs of the head), of the type and on the device of the logits."""
        return self._weights.norm.new_empty(batch, self._weights.head.out_features)

    def reserve(self, batch: int, cache: WindowCache) -> list[Tensor]:
        """The caches of all layers, made at first."""
        weights = self._weights
        return cache.stacked(len(weights.layers), batch, weights.kv_heads, weights.head_dim, weights.norm)

    def is_ready(self, cache: WindowCache) -> bool:
        """Whether it can stand for the model over a cache, as that is now: not over layers that the model made, whose
        memory captured rounds go on using.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self._parts.watched or cache.in_parts:
            return False
        if cache not in self._held and self._is_unchanged():
            self._held[cache] = self._weights.held()
        return cache in self._held

    def _is_unchanged(self) -> bool:
        norm = self._weights.norm
        same = self._parts.unchanged and len(self._stack) == len(self._weights.layers)
        return same and (norm.dtype, norm.device) == self._place

    def _memory(self, batch: int, cache: WindowCache) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Angles of all positions, and the caches of all layers."""
        keys, values = self.reserve(batch, cache)
        return *self._angles_of(cache.capacity), keys, values

    def _angles_of(self, capacity: int) -> tuple[Tensor, Tensor]:
        """cos and sin (positions, head_dim) of as many positions at least."""
        known = len(self._angles[-1][0]) if self._angles else 0
        if known < capacity:
            norm = self._weights.norm
            cos, sin = self._rotary(norm, torch.arange(max(capacity, 2 * known), device=norm.device)[None])
            if norm.is_cuda:  # other lanes read them too, on streams that wait for nothing of this one
                torch.cuda.current_stream(norm.device).synchronize()
            self._angles.append((cos[0], sin[0]))
        return self._angles[-1]
