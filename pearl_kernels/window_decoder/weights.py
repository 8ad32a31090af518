"""The weights of a whole decoder, looked at once."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from pearl_kernels.window_layer import LayerWeights
from pearl_kernels.window_layer.weights import LinearLike, check_vector
from pearl_kernels.window_linear import Linear, check_linear

_EMBEDDING_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class DecoderWeights:
    """What `window_decoder` is made of. The tensors are the caller's; their values and addresses may change later.

    embedding: (vocab, size) float32/bfloat16/float16 contiguous
    layers:    LayerWeights, at least one, all of the same sizes and for rows of the same type
    norm:      (size,) of that type, contiguous, before the head
    head:      a `Linear` or a tuple of the same: a weight (outputs, size) as `window_linear` takes it, a bias or None,
               a scale if the weight is int8
    eps:       of the norm before the head
    Raises ValueError naming the argument, what was expected and what came.
    """

    def __init__(
        self, embedding: Tensor, layers: Sequence[LayerWeights], norm: Tensor, head: LinearLike, *, eps: float
    ) -> None:
        self.embedding, self.layers, self.norm, self.head, self.eps = embedding, list(layers), norm, Linear(*head), eps
        self.memory: list[torch.UntypedStorage] = []  # of all tensors, where they are held
        if not self.layers:
            raise ValueError("window_decoder: layers must be at least 1, got 0")
        first = self.layers[0]
        self.sizes, self.kv_heads, self.head_dim, self.dtype = first.sizes, first.kv_heads, first.head_dim, first.dtype
        for layer in self.layers:
            if (layer.sizes, layer.dtype) != (self.sizes, self.dtype):
                raise ValueError(
                    f"window_decoder: layers must have the sizes of the first, {self.sizes}, for {self.dtype}, "
                    f"got {layer.sizes} for {layer.dtype}"
                )
        if (
            embedding.dtype not in _EMBEDDING_DTYPES
            or embedding.shape[1:] != (first.size,)
            or not embedding.numel()
            or not embedding.is_contiguous()
        ):
            raise ValueError(
                f"window_decoder: embedding must be (vocab, size={first.size}) float32, bfloat16 or float16 and "
                f"contiguous, got {embedding.dtype} of {tuple(embedding.shape)}"
            )
        device = first.norms[0].device
        check_vector("window_decoder", "norm", norm, first.size, device, self.dtype)
        check_linear("window_decoder", "head", self.head, self.dtype)
        if self.head.in_features != first.size:
            raise ValueError(
                f"window_decoder: head must be of shape (outputs, {first.size}), "
                f"got ({self.head.out_features}, {self.head.in_features})"
            )
        if not eps >= 0:
            raise ValueError(f"window_decoder: eps must be at least 0, got {eps!r}")
        parts = (("layers", layer.norms[0]) for layer in self.layers)
        for name, tensor in (("embedding", embedding), ("head", self.head.weight), *parts):
            if tensor.device != device:
                raise ValueError(f"window_decoder: {name} must be on {device}, got {tensor.device}")

    def held(self) -> DecoderWeights:
        """The same for many calls: after the first one the cpu backend does not ask again where they are.

        It keeps the memory that they had then, and reads that, whatever becomes of the caller's tensors; a value
        written to it is seen.
        """
        held = copy(self)
        held.hold()
        return held

    def hold(self) -> None:
        """Keep the memory that the tensors have now."""
        tensors = [self.embedding, self.norm, *(tensor for tensor in self.head[:3] if tensor is not None)]
        tensors += [tensor for layer in self.layers for tensor in layer.tensors]
        self.memory = [tensor.untyped_storage() for tensor in tensors]
