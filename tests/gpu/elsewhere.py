"""Tensors on another device, laid out in memory as they were, and operations that run there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


class Elsewhere:
    """Copies on `device`. Whole storages are copied: strides, what lies between rows, and what shares memory stay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._storages: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def copy(self, value: Any) -> Any:
        """`value`, with copies of the tensors that are anywhere in it."""
        if isinstance(value, Tensor):
            key = value.untyped_storage().data_ptr(), value.dtype
            if key not in self._storages:
                flat = torch.empty(0, dtype=value.dtype, device=value.device).set_(value.untyped_storage())
                self._storages[key] = flat, flat.to(self._device, copy=True)
            return self._storages[key][1].as_strided(value.shape, value.stride(), value.storage_offset())
        if is_dataclass(value) and not isinstance(value, type):
            return type(value)(**{f.name: self.copy(getattr(value, f.name)) for f in fields(value)})
        if isinstance(value, dict):
            return {key: self.copy(each) for key, each in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.copy, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.copy, value))
        return value

    def bring_back(self) -> None:
        """Write what has become of the copies into the tensors they were made of."""
        for original, copy in self._storages.values():
            original.copy_(copy)


def moved(value: Any, device: torch.device) -> Any:
    """A copy of `value` on `device`."""
    return Elsewhere(device).copy(value)


def run_on(device: torch.device, door: Callable[..., Any], backends: tuple[str, ...]) -> Callable[..., Any]:
    """`door` for tensors of the CPU that are copied to `device`, and back: also those that should not have changed."""

    @functools.wraps(door)
    def call(*arguments: Any, backend: str | None = None, **keywords: Any) -> Any:
        if backend not in backends:
            return door(*arguments, backend=backend, **keywords)
        there = Elsewhere(device)
        arguments_there, keywords_there = there.copy((arguments, keywords))
        result = door(*arguments_there, backend=backend, **keywords_there)
        there.bring_back()
        return keywords["out"] if keywords.get("out") is not None else moved(result, CPU)

    return call
