"""Devices that are not there: tensors that say where they are, hold their numbers on the CPU, and meet no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# What may be given tensors of several devices; of indices those on the CPU.
COPIES = ("aten::_to_copy", "aten::copy_")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Elsewhere(Tensor):
    """A tensor of the device `meta:place`. `here`: the same on the CPU."""

    here: Tensor
    place: int

    @staticmethod
    def __new__(cls, here: Tensor, place: int) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=torch.device("meta"),
        )  # fmt: skip
        made.here, made.place = here, place
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None) -> Any:
        return run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return torch.device("meta", self.place)

    def tolist(self) -> Any:
        return self.here.tolist()

    def item(self) -> Any:
        return self.here.item()

    def cpu(self) -> Tensor:
        return self.here.clone()


def place_of(tensor: Tensor) -> int | None:
    return tensor.place if isinstance(tensor, Elsewhere) else None


def place_on(device: Any, otherwise: int = 0) -> int | None:
    """otherwise: where the device is `meta` alone"""
    device = torch.device(device)
    if device.type == "cpu":
        return None
    return otherwise if device.index is None else device.index


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation, where its tensors are. Raises RuntimeError if that is at several places."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    name, away = func._schema.name, {tensor.place for tensor in tensors if isinstance(tensor, Elsewhere)}
    at_home = name not in INDEXED and any(tensor.ndim for tensor in tensors if not isinstance(tensor, Elsewhere))
    if name not in COPIES and len(away) + (at_home and bool(away)) > 1:
        raise RuntimeError(f"{func} of tensors on different devices: {[(t.device, tuple(t.shape)) for t in tensors]}")
    if name == "aten::copy_":
        place = place_of(args[0])
    elif kwargs.get("device") is not None:
        place = place_on(kwargs["device"], next(iter(away), 0))
    else:
        place = next(iter(away), None)

    def bring(value: Any) -> Any:
        if isinstance(value, Elsewhere):
            return value.here
        return torch.device("cpu") if isinstance(value, torch.device) else value

    out = func(*tree_map(bring, args), **tree_map(bring, kwargs))
    known = {id(tensor.here): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}

    def send(value: Any) -> Any:
        if not isinstance(value, Tensor) or place is None:
            return value
        return known[id(value)] if id(value) in known else Elsewhere(value, place)

    return tree_map(send, out)


class _Devices(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        return run(func, args, kwargs or {})


@contextmanager
def devices() -> Iterator[None]:
    """Within, there are `meta:0` and `meta:1`."""
    move = Tensor.to

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to`, for which all of `meta` is one device."""
        place, dtype = place_of(tensor), tensor.dtype
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                place, dtype = place_of(value), value.dtype
            elif isinstance(value, (str, torch.device)):
                place = place_on(value)
            elif isinstance(value, torch.dtype):
                dtype = value
        if place == place_of(tensor):
            return move(tensor, dtype)
        here = tensor.here if isinstance(tensor, Elsewhere) else tensor
        here = move(here.detach().clone(), dtype)
        return here if place is None else Elsewhere(here, place)

    def made(make: Any) -> Any:
        def make_there(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            return to(make(*args, **kwargs), device or "cpu")

        return make_there

    with pytest.MonkeyPatch.context() as patch, _Devices():
        patch.setattr(Tensor, "to", to)
        # A parameter is replaced where a module moves: it would not take the place of another.
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, made(getattr(torch, name)))
        yield
