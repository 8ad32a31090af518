"""The door of `window_layer`: a whole decoder layer over a window's few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels.dispatch import choose, define
from pearl_kernels.window_layer.weights import LayerWeights

__all__ = ["LayerWeights", "window_layer"]


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
    """One layer of a Llama-like decoder: norm, attention over the cache, norm and gated MLP, with residuals.

    Equivalent to, with `norm` as window_norm, `linear` as window_linear and attention as window_attention:
        rows = norm(x, attention_norm)
        q, k = rotated(norm(linear(rows, q), q_norm)), rotated(norm(linear(rows, k), k_norm))
        h = x + linear(attention(q, k, linear(rows, v)), output)
        rows = norm(h, mlp_norm)
        return h + linear(silu(linear(rows, gate)) * linear(rows, up), down)
    where rotated(s) = s * cos + cat(-s[half:], s[:half]) * sin in each head, and q_norm and k_norm may be absent.

    x:                (batch, width, size), float32 on a CPU; on a GPU of the type of the weights
    weights:          LayerWeights, whose norms and biases are of the type of x
    cos, sin:         (batch, width, head_dim) of the type of x, or (1, width, head_dim) for all rows alike
    k_cache, v_cache: (batch, kv_heads, capacity, head_dim) of that type, last dimension contiguous; the window's keys
                      and values are stored at seq_lens[b] ... seq_lens[b] + width - 1
    seq_lens:         (batch,) int64, in [0, capacity - width]: others are taken to the nearer end
    scale:            of the attention's scores
    backend:          None picks the best for the device

    Returns (batch, width, size) like x. On the cpu backend each row's result is the same to the bit whatever rows are
    beside it and however many threads work. There is no derivative.
    Raises ValueError naming the argument, what was expected and what came. The reference computes in float32.
    Source: Touvron et al. 2023, LLaMA: Open and Efficient Foundation Language Models.
    """
    batch, width = _check(x, weights, k_cache, v_cache)
    rows = cos.shape[0] if cos.ndim == 3 and cos.shape[0] in (1, batch) else batch
    angles = (("batch", rows), ("width", width), ("head_dim", weights.head_dim))
    checks.tensor("window_layer", "cos", cos, angles, weights.dtype, x.device)
    checks.tensor("window_layer", "sin", sin, angles, weights.dtype, x.device)
    checks.tensor("window_layer", "seq_lens", seq_lens, (("batch", batch),), torch.int64, x.device)
    if checks.traced(x):
        out: Tensor = torch.ops.pearl.window_layer_.default(
            x, *weights.as_lists(), weights.eps, cos, sin, k_cache, v_cache, seq_lens, scale, backend
        )
        return out
    return _run(x, weights, cos, sin, k_cache, v_cache, seq_lens, scale, backend)  # to ask the registry takes longer


def _check(x: Tensor, weights: LayerWeights, k_cache: Tensor, v_cache: Tensor) -> tuple[int, int]:
    if x.ndim != 3 or x.shape[2] != weights.size or x.dtype is not weights.dtype:
        raise ValueError(
            f"window_layer: x must be (batch, width, size={weights.size}) {str(weights.dtype)[6:]}, "
            f"got {x.dtype} of {tuple(x.shape)}"
        )
    batch, width, _ = x.shape
    capacity = k_cache.shape[2] if k_cache.ndim == 4 else width
    sizes = (("batch", batch), ("kv_heads", weights.kv_heads), ("capacity", capacity), ("head_dim", weights.head_dim))
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        checks.tensor("window_layer", name, cache, sizes, weights.dtype, x.device)
        if cache.stride(-1) != 1:
            raise ValueError(f"window_layer: {name} must have a contiguous last dimension, got {cache.stride()}")
    if width > capacity:
        raise ValueError(f"window_layer: k_cache must have a capacity of at least width={width}, got {capacity}")
    return batch, width


def _run(
    x: Tensor,
    weights: LayerWeights,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seq_lens: Tensor,
    scale: float,
    backend: str | None,
) -> Tensor:
    run = choose("window_layer", x.device, backend)
    out: Tensor = run(
        x.contiguous(), weights, cos.contiguous(), sin.contiguous(), k_cache, v_cache, seq_lens.contiguous(), scale
    )
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
    return _run(x, layer, cos, sin, k_cache, v_cache, seq_lens, scale, backend)


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


define(
    "window_layer_(Tensor x, Tensor?[] norms, Tensor[] weights, Tensor?[] biases, Tensor?[] scales, int[] outputs, "
    "float eps, Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor seq_lens, float scale, "
    "str? backend) -> Tensor",
    _window_layer,
    _fake,
)
