"""Argument checks shared by the doors: each raises ValueError naming argument, expected and got.

Shapes and dtypes are always checked. Values are read only from CPU tensors, where that is not a
synchronisation.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from pearl_kernels.types import DecodeState, Finished, Purpose, RowStats, SamplingTensors

RULES = ("greedy", "token", "block", "coupled")
LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW = 64
Sizes = tuple[tuple[str, int], ...]

# What `params` found good and need not look at again: a request brings the same ones for every token.
_GOOD: WeakKeyDictionary[SamplingTensors, tuple[Any, ...]] = WeakKeyDictionary()


def tensor(op: str, name: str, value: Any, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse `value` unless it is a tensor of these named sizes, this dtype, on this device."""
    if (
        isinstance(value, Tensor)
        and value.dtype is dtype
        and value.device == device
        and value.shape == tuple([size for _, size in sizes])
    ):
        return
    raise ValueError(f"{op}: {name} must be {_sizes(sizes)} {_dtype(dtype)} on {device}, got {_describe(value)}")


def updatable(op: str, name: str, value: Any, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
    """As `tensor`, for a tensor the operation writes to: it must be contiguous too."""
    tensor(op, name, value, sizes, dtype, device)
    if not value.is_contiguous():
        raise ValueError(f"{op}: {name} must be contiguous, got strides {tuple(value.stride())}")


def logits(op: str, name: str, value: Any, axes: tuple[str, ...]) -> None:
    """Refuse `value` unless it is a tensor of logits with these axes, none empty, the last one contiguous."""
    wanted = f"{op}: {name} must be ({', '.join(axes)}) float32, bfloat16 or float16"
    if not isinstance(value, Tensor) or value.dtype not in LOGIT_DTYPES or value.dim() != len(axes):
        raise ValueError(f"{wanted}, got {_describe(value)}")
    if 0 in value.shape[1:]:
        raise ValueError(f"{wanted}, none of them 0, got {_describe(value)}")
    if value.stride(-1) != 1 and value.shape[-1] > 1:
        raise ValueError(
            f"{op}: {name} must have a contiguous last dimension, got strides {tuple(value.stride())}; "
            "call .contiguous() on it"
        )


def params(op: str, value: Any, batch: int, device: torch.device) -> None:
    """Refuse `value` unless it is a SamplingTensors for this batch with parameters in range."""
    if not isinstance(value, SamplingTensors):
        raise ValueError(f"{op}: params must be SamplingTensors, got {_describe(value)}")
    if not torch.compiler.is_compiling() and value in _GOOD and _GOOD[value] == (batch, device, *_versions(value)):
        return
    sizes = (("batch", batch),)
    tensor(op, "params.temperature", value.temperature, sizes, torch.float32, device)
    tensor(op, "params.top_k", value.top_k, sizes, torch.int32, device)
    tensor(op, "params.top_p", value.top_p, sizes, torch.float32, device)
    tensor(op, "params.min_p", value.min_p, sizes, torch.float32, device)
    tensor(op, "params.seed", value.seed, sizes, torch.int64, device)
    if readable(value.temperature):
        in_range(op, "params.temperature", value.temperature, 0.0, torch.finfo(torch.float32).max)
        in_range(op, "params.top_k", value.top_k, 0, torch.iinfo(torch.int32).max)
        in_range(op, "params.top_p", value.top_p, 0.0, 1.0, open_below=True)
        in_range(op, "params.min_p", value.min_p, 0.0, 1.0)
        _GOOD[value] = (batch, device, *_versions(value))


def noise(op: str, purpose: Any, epochs: Any, batch: int, device: torch.device) -> None:
    """Refuse what does not say which noise to draw with."""
    if not isinstance(purpose, Purpose):
        raise ValueError(f"{op}: purpose must be a Purpose, got {purpose!r}")
    if epochs is not None:
        tensor(op, "epochs", epochs, (("batch", batch),), torch.int64, device)


def draft(
    op: str,
    draft_logits: Any,
    draft_stats: Any,
    d2t: Any,
    batch: int,
    width: int,
    vocab: int,
    device: torch.device,
) -> None:
    """Refuse a draft that does not go with target logits of (batch, width, vocab)."""
    if draft_logits is None:
        for name, value in (("draft_stats", draft_stats), ("d2t", d2t)):
            if value is not None:
                raise ValueError(f"{op}: {name} must be None when draft_logits is None, got {_describe(value)}")
        return
    logits(op, "draft_logits", draft_logits, ("batch", "width", "draft_vocab"))
    if draft_logits.shape[:2] != (batch, width) or draft_logits.device != device:
        raise ValueError(
            f"{op}: draft_logits must be (batch={batch}, width={width}, draft_vocab) on {device}, "
            f"got {_describe(draft_logits)}"
        )
    draft_vocab = draft_logits.shape[2]
    if draft_vocab > vocab:
        raise ValueError(
            f"{op}: draft_logits must have a vocabulary of at most vocab={vocab}, got {draft_vocab}; "
            "slice the draft's logits to the target's vocabulary BEFORE sampling from them"
        )
    if draft_stats is not None:
        _draft_stats(op, draft_stats, (("batch", batch), ("width", width)), device)
    if d2t is not None:
        ids(op, d2t, draft_vocab, vocab, device)


def ids(op: str, value: Any, draft_vocab: int, vocab: int, device: torch.device) -> None:
    """Refuse a d2t that does not say a target id, of `vocab`, for each of the draft's columns."""
    tensor(op, "d2t", value, (("draft_vocab", draft_vocab),), torch.int64, device)
    if not readable(value):
        return
    if not bool((value[1:] > value[:-1]).all()):
        raise ValueError(f"{op}: d2t must be strictly increasing target ids, got {_describe(value)} that is not")
    in_range(op, "d2t", value, 0, vocab - 1)


def state(op: str, value: Any, batch: int, width: int, device: torch.device) -> None:
    """Refuse `value` unless it is a DecodeState for this batch, its windows within width and tokens."""
    if not isinstance(value, DecodeState):
        raise ValueError(f"{op}: state must be DecodeState, got {_describe(value)}")
    row = (("batch", batch),)
    length = value.tokens.shape[-1] if isinstance(value.tokens, Tensor) and value.tokens.dim() else 0
    ids = value.eos_ids.shape[-1] if isinstance(value.eos_ids, Tensor) and value.eos_ids.dim() else 0
    updatable(op, "state.tokens", value.tokens, (*row, ("length", length)), torch.int64, device)
    updatable(op, "state.committed", value.committed, row, torch.int64, device)
    updatable(op, "state.window", value.window, row, torch.int32, device)
    tensor(op, "state.max_len", value.max_len, row, torch.int64, device)
    tensor(op, "state.eos_ids", value.eos_ids, (*row, ("ids", max(ids, 1))), torch.int64, device)
    updatable(op, "state.finished", value.finished, row, torch.int32, device)
    updatable(op, "state.status", value.status, row, torch.int32, device)
    if readable(value.window):
        rows = zip(value.finished.tolist(), value.window.tolist(), value.committed.tolist(), strict=True)
        running = [(window, committed) for finished, window, committed in rows if finished == Finished.RUNNING]
        within(op, "state.window", [window for window, _ in running], 0, width - 1)
        within(op, "state.committed", [committed for _, committed in running], 0, length)
        within(op, "state.committed + window + 1", [committed + window + 1 for window, committed in running], 1, length)


def rule(op: str, value: Any) -> None:
    """Refuse an unknown rule of acceptance."""
    if value not in RULES:
        raise ValueError(f"{op}: rule must be one of {', '.join(RULES)}, got {value!r}")


def in_range(op: str, name: str, value: Tensor, low: float, high: float, *, open_below: bool = False) -> None:
    """Refuse values outside [low, high], or (low, high] if open_below; NaN is outside."""
    # For a few numbers Python is quicker than a reduction. NaN comes through both, and compares false.
    bounds = value if value.numel() <= FEW else torch.stack(torch.aminmax(value))
    within(op, name, bounds.tolist(), low, high, open_below=open_below)


def within(op: str, name: str, values: list[Any], low: float, high: float, *, open_below: bool = False) -> None:
    """`in_range` for numbers in a list."""
    if not all(low <= x <= high and (x != low or not open_below) for x in values):
        bracket = "(" if open_below else "["
        least, most = torch.tensor(values, dtype=torch.float64, device="cpu").aminmax()
        raise ValueError(f"{op}: {name} must be in {bracket}{low:g}, {high:g}], got values from {least:g} to {most:g}")


def traced(value: Tensor) -> bool:
    """Whether torch only asks what would be done: it traces a graph, or the tensor has no memory."""
    return torch.compiler.is_compiling() or isinstance(value, FakeTensor)


def readable(value: Tensor) -> bool:
    """Whether the values may be read here: on the CPU, and not where they are only traced."""
    return value.device.type == "cpu" and not traced(value)


def _versions(value: SamplingTensors) -> list[object]:
    """What changes whenever a tensor of `value` is written to; inference tensors keep no count of that."""
    tensors = (value.temperature, value.top_k, value.top_p, value.min_p, value.seed)
    return [object() if t.is_inference() else t._version for t in tensors]


def _draft_stats(op: str, value: Any, sizes: Sizes, device: torch.device) -> None:
    if not isinstance(value, RowStats):
        raise ValueError(f"{op}: draft_stats must be RowStats, got {_describe(value)}")
    tensor(op, "draft_stats.threshold", value.threshold, sizes, torch.float32, device)
    tensor(op, "draft_stats.lse", value.lse, sizes, torch.float32, device)


def _sizes(sizes: Sizes) -> str:
    named = ", ".join(f"{label}={size}" for label, size in sizes)
    return f"({named},)" if len(sizes) == 1 else f"({named})"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {_dtype(value.dtype)} on {value.device}"
    return type(value).__name__
