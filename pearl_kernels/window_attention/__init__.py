"""The door of `window_attention`: append a few rows of keys and values to a long cache, and attend to it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels.dispatch import choose, define

MAX_HEAD_DIM = 512
MOST_TRITON_WIDTH = 256
_MOST_GOOD = 4096
_ARGUMENTS = "Tensor seq_lens, float scale, int? window, float? softcap, str? backend"

# Shapes, strides, types and devices of arguments that were found good.
_GOOD: set[tuple[Any, ...]] = set()


def window_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_new: Tensor | None,
    v_new: Tensor | None,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention of each row's `width` newest positions to that row's cache, whose length is known on the device.

    Equivalent to, for every row b and i in [0, width):
        k_cache[b, :, seq_lens[b] + i] = k_new[b, i], and the values alike; then
        out[b, i] = softmax(cap(scale * q[b, i] @ keys.T)) @ values
    over the positions from 0, or with a window from seq_lens[b] + i - window + 1, to seq_lens[b] + i. cap(x) is
    softcap * tanh(x / softcap), or x. Query heads h * group ... (h + 1) * group - 1 share the key head h.

    q:                (batch, width, heads, head_dim) float32/bfloat16/float16; meant for a width of 1 to 17
    k_cache, v_cache: (batch, kv_heads, capacity, head_dim), position t at index t; written to where k_new is given
    k_new, v_new:     (batch, width, kv_heads, head_dim), or None: the cache has the new entries already
    seq_lens:         (batch,) int64 or int32, entries before the new ones; seq_lens + width <= capacity. Read on the
                      device alone unless that is the CPU; there, rows that break this bound may be anything, but
                      nothing outside the cache is touched
    scale:            of the scores, 1 / sqrt(head_dim) as a rule
    window:           positions a query sees, its own one included; None: all
    softcap:          bound of the scores; None: none

    All of one dtype, with any strides but a contiguous last dimension. Scores and sums are float32.
    Returns (batch, width, heads, head_dim) in q's dtype. What the cache holds past a row's end changes nothing.
    In the `reference`, `cpu` and `triton` backends a row's bits do not depend on its slot or on the other rows. In
    `cpu` neither do they on the capacity, on the number of threads (torch.get_num_threads()) or on the width: a query's
    are those that it would have alone, once the entries before it are in the cache, be that now or before. In `triton`
    they depend on the capacity only above 8192, and whether entries were appended now or before is the same; the
    number of queries per key head (width * group) may change the last bits where it changes the tile: 16, 32 or 64, at
    most 32 of heads above 128, and 16 above 256.
    Raises ValueError naming the argument, what was expected and what came.
    Source: Dao et al. 2023, FlashDecoding; Gemma 2 (arXiv 2408.00118) for the softcap.
    """
    _check(q, k_cache, v_cache, k_new, v_new, seq_lens)
    if checks.readable(seq_lens) and seq_lens.numel():
        checks.in_range("window_attention", "seq_lens", seq_lens, 0, k_cache.shape[2] - q.shape[1])
    _check_numbers(scale, window, softcap)
    if not checks.traced(q):  # a model calls this for every layer: the registry costs more
        return _append_and_attend(q, k_cache, v_cache, k_new, v_new, seq_lens, scale, window, softcap, backend)
    if k_new is None or v_new is None:
        out: Tensor = torch.ops.pearl.window_attention.default(
            q, k_cache, v_cache, seq_lens, scale, window, softcap, backend
        )
        return out
    appended: Tensor = torch.ops.pearl.window_attention_.default(
        q, k_cache, v_cache, k_new, v_new, seq_lens, scale, window, softcap, backend
    )
    return appended


def _check(*arguments: Any) -> None:
    """Refuse what does not fit. All layers of a model bring the like, which is looked at closely once."""
    if torch.compiler.is_compiling() or not all(x is None or isinstance(x, Tensor) for x in arguments):
        _check_each(*arguments)
        return
    likeness = tuple([None if x is None else (x.shape, x.stride(), x.dtype, x.device) for x in arguments])
    if likeness not in _GOOD:
        _check_each(*arguments)
        if len(_GOOD) >= _MOST_GOOD:
            _GOOD.clear()
        _GOOD.add(likeness)


def _check_each(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k_new: Tensor | None, v_new: Tensor | None, seq_lens: Tensor
) -> None:
    op = "window_attention"
    checks.logits(op, "q", q, ("batch", "width", "heads", "head_dim"))
    checks.logits(op, "k_cache", k_cache, ("batch", "kv_heads", "capacity", "head_dim"))
    (batch, width, heads, dim), (kv_heads, capacity) = q.shape, k_cache.shape[1:3]
    if dim > MAX_HEAD_DIM:
        raise ValueError(f"{op}: q must have a head_dim of at most {MAX_HEAD_DIM}, got {dim}")
    if heads % kv_heads:
        raise ValueError(f"{op}: q must have a multiple of k_cache's kv_heads={kv_heads} heads, got {heads}")
    cache = (("batch", batch), ("kv_heads", kv_heads), ("capacity", capacity), ("head_dim", dim))
    wanted = [("k_cache", k_cache, cache), ("v_cache", v_cache, cache)]
    if (k_new is None) != (v_new is None):
        raise ValueError(f"{op}: k_new and v_new must both be given or both be None")
    if k_new is not None and v_new is not None:
        new = (("batch", batch), ("width", width), ("kv_heads", kv_heads), ("head_dim", dim))
        wanted += [("k_new", k_new, new), ("v_new", v_new, new)]
    for name, value, sizes in wanted:
        checks.tensor(op, name, value, sizes, q.dtype, q.device)
        if value.stride(-1) != 1 and dim > 1:
            raise ValueError(f"{op}: {name} must have a contiguous last dimension, got strides {value.stride()}")
    if width > capacity:
        raise ValueError(f"{op}: k_cache must have a capacity of at least width={width}, got {capacity}")
    kind = torch.int32 if getattr(seq_lens, "dtype", None) is torch.int32 else torch.int64
    checks.tensor(op, "seq_lens", seq_lens, (("batch", batch),), kind, q.device)


def _check_numbers(scale: float, window: int | None, softcap: float | None) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"window_attention: scale must be a finite number, got {scale!r}")
    if window is not None and window < 1:
        raise ValueError(f"window_attention: window must be None or at least 1, got {window!r}")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"window_attention: softcap must be None or a positive number, got {softcap!r}")


def _append_and_attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_new: Tensor | None,
    v_new: Tensor | None,
    seq_lens: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    backend: str | None,
) -> Tensor:
    if q.shape[0] == 0:
        return _fake(q)
    takes = {"flash": flash_takes(q), "triton": triton_takes(q, k_new)}
    run = choose("window_attention", q.device, backend, tuple(name for name, fits in takes.items() if not fits))
    out: Tensor = run(q, k_cache, v_cache, k_new, v_new, seq_lens.contiguous(), scale, window, softcap)
    return out


def flash_takes(q: Tensor) -> bool:
    """Whether flash-attn has a kernel for these queries."""
    return q.dtype is not torch.float32 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def triton_takes(q: Tensor, k_new: Tensor | None) -> bool:
    """Whether the Triton kernel holds as many new entries at once, if there are any."""
    return k_new is None or q.shape[1] <= MOST_TRITON_WIDTH


def _attend(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any) -> Tensor:
    return _append_and_attend(q, k_cache, v_cache, None, None, *rest)


def _fake(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


define(f"window_attention(Tensor q, Tensor k_cache, Tensor v_cache, {_ARGUMENTS}) -> Tensor", _attend, _fake)
define(
    "window_attention_(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k_new, Tensor v_new, "
    f"{_ARGUMENTS}) -> Tensor",
    _append_and_attend,
    _fake,
)
