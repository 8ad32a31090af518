"""The door of `window_layer` and `window_layers`: whole decoder layers over a window's few rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels.dispatch import choose, define
from pearl_kernels.window_layer.weights import LayerWeights

__all__ = ["LayerWeights", "window_layer", "window_layers"]


def window_layer(
    x: Tensor,
    weights: LayerWeights,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    backend: str | None = None,
) -> Tensor:
    """One layer of a Llama-like decoder in float32: norm, attention over the cache, norm and gated MLP, with residuals.

    Equivalent to, with `norm` as window_norm, `linear` as window_linear and attention as window_attention:
        rows = norm(x, attention_norm)
        q, k = rotated(norm(linear(rows, q), q_norm)), rotated(norm(linear(rows, k), k_norm))
        h = x + linear(attention(q, k, linear(rows, v)), output)
        rows = norm(h, mlp_norm)
        return h + linear(silu(linear(rows, gate)) * linear(rows, up), down)
    where rotated(s) = s * cos + cat(-s[half:], s[:half]) * sin in each head, and q_norm and k_norm may be absent.

    x:                (batch, width, size) float32
    weights:          LayerWeights
    cos, sin:         (batch, width, head_dim) float32, or (1, width, head_dim) for all rows alike
    k_cache, v_cache: (batch, kv_heads, capacity, head_dim) float32, last dimension contiguous; the window's keys and
                      values are stored at seq_lens[b] ... seq_lens[b] + width - 1
    seq_lens:         (batch,) int64, in [0, capacity - width]: others are taken to the nearer end
    scale:            of the attention's scores
    backend:          None picks the best for the device

    Returns (batch, width, size) float32. On the cpu backend each row's result is the same to the bit whatever rows are
    beside it and however many threads work. There is no derivative.
    Raises ValueError naming the argument, what was expected and what came.
    Source: Touvron et al. 2023, LLaMA: Open and Efficient Foundation Language Models.
    """
    return window_layers(x, [weights], cos, sin, [(k_cache, v_cache)], seq_lens, scale=scale, backend=backend)


def window_layers(
    x: Tensor,
    layers: Sequence[LayerWeights],
    cos: Tensor,
    sin: Tensor,
    caches: Sequence[tuple[Tensor, Tensor]],
    seq_lens: Tensor,
    *,
    scale: float,
    backend: str | None = None,
) -> Tensor:
    """Several layers of the same shapes, each with its own (k_cache, v_cache), one after the other: see `window_layer`.

    On the cpu backend that is one call, to the bits that the layers would give one by one.
    """
    if not layers or len(caches) != len(layers):
        raise ValueError(
            f"window_layer: caches must be as many as layers, at least 1, got {len(caches)}, {len(layers)}"
        )
    weights = layers[0]
    batch, width = _check(x, weights, *caches[0])
    rows = cos.shape[0] if cos.ndim == 3 and cos.shape[0] in (1, batch) else batch
    angles = (("batch", rows), ("width", width), ("head_dim", weights.head_dim))
    checks.tensor("window_layer", "cos", cos, angles, torch.float32, x.device)
    checks.tensor("window_layer", "sin", sin, angles, torch.float32, x.device)
    checks.tensor("window_layer", "seq_lens", seq_lens, (("batch", batch),), torch.int64, x.device)
    for other, cache in zip(layers[1:], caches[1:], strict=True):
        _check_same(other, weights, cache, caches[0])
    if torch.compiler.is_compiling():
        for layer, cache in zip(layers, caches, strict=True):
            x = torch.ops.pearl.window_layer_.default(
                x, *layer.as_lists(), layer.eps, cos, sin, *cache, seq_lens, scale, backend
            )
        return x
    return _run(x, layers, cos, sin, caches, seq_lens, scale, backend)  # to ask the registry takes longer


def _check_same(
    weights: LayerWeights, first: LayerWeights, cache: tuple[Tensor, Tensor], first_cache: tuple[Tensor, Tensor]
) -> None:
    """Refuse a later layer that is not like the first, quickly: a window goes through all layers of a model."""
    if weights.sizes != first.sizes:
        raise ValueError(f"window_layer: layers must have the sizes of the first, {first.sizes}, got {weights.sizes}")
    for tensor, like in zip(cache, first_cache, strict=True):
        if tensor.shape != like.shape or tensor.dtype is not like.dtype or tensor.device != like.device:
            raise ValueError(
                f"window_layer: caches must be like the first, {like.dtype} of {tuple(like.shape)} on {like.device}, "
                f"got {tensor.dtype} of {tuple(tensor.shape)} on {tensor.device}"
            )
        if tensor.stride(-1) != 1:
            raise ValueError(f"window_layer: caches must have a contiguous last dimension, got {tensor.stride()}")


def _check(x: Tensor, weights: LayerWeights, k_cache: Tensor, v_cache: Tensor) -> tuple[int, int]:
    if x.ndim != 3 or x.shape[2] != weights.size or x.dtype is not torch.float32:
        raise ValueError(
            f"window_layer: x must be (batch, width, size={weights.size}) float32, got {x.dtype} of {tuple(x.shape)}"
        )
    batch, width, _ = x.shape
    capacity = k_cache.shape[2] if k_cache.ndim == 4 else width
    sizes = (("batch", batch), ("kv_heads", weights.kv_heads), ("capacity", capacity), ("head_dim", weights.head_dim))
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        checks.tensor("window_layer", name, cache, sizes, torch.float32, x.device)
        if cache.stride(-1) != 1:
            raise ValueError(f"window_layer: {name} must have a contiguous last dimension, got {cache.stride()}")
    if width > capacity:
        raise ValueError(f"window_layer: k_cache must have a capacity of at least width={width}, got {capacity}")
    return batch, width


def _run(
    x: Tensor,
    layers: Sequence[LayerWeights],
    cos: Tensor,
    sin: Tensor,
    caches: Sequence[tuple[Tensor, Tensor]],
    seq_lens: Tensor,
    scale: float,
    backend: str | None,
) -> Tensor:
    run = choose("window_layer", x.device, backend)
    out: Tensor = run(x.contiguous(), layers, cos.contiguous(), sin.contiguous(), caches, seq_lens.contiguous(), scale)
    return out


def _window_layer(
    x: Tensor,
    norms: list[Tensor | None],
    weights: list[Tensor],
    biases: list[Tensor | None],
    scales: list[Tensor | None],
    outputs: list[int],
    eps: float,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seq_lens: Tensor,
    scale: float,
    backend: str | None,
) -> Tensor:
    layer = LayerWeights.of_lists(norms, weights, biases, scales, outputs, eps, k_cache.shape[3])
    return _run(x, [layer], cos, sin, [(k_cache, v_cache)], seq_lens, scale, backend)


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


define(
    "window_layer_(Tensor x, Tensor?[] norms, Tensor[] weights, Tensor?[] biases, Tensor?[] scales, int[] outputs, "
    "float eps, Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor seq_lens, float scale, "
    "str? backend) -> Tensor",
    _window_layer,
    _fake,
)
