"""What caches need, and whether a device has it, before a request starts."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pearl_decode.linear import uses_window_linear
from pearl_decode.models import CausalModel
from pearl_decode.placement import layer_devices

GIB = 1 << 30
SHARED_POOL = (0, 0)  # of torch's memory on a GPU, beside those that graphs have
MEMINFO = Path("/proc/meminfo")
# Where a container's own limit shows: limit, use, and the statistics that say how much of it is files.
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class NoRoomError(MemoryError):
    """A batch does not fit on its device."""


def cache_bytes(model: CausalModel, batch: int, capacity: int) -> int:
    """Of the keys and values of `batch` rows of `capacity` positions, by the model's config; 0 if that has no heads."""
    return sum(_bytes_by_layer(model, batch, capacity))


def cache_bytes_by_device(model: CausalModel, batch: int, capacity: int) -> dict[torch.device, int]:
    """The same on each device: a layer's keys and values are made where the layer is."""
    needed: Counter[torch.device] = Counter()
    if any(layers := _bytes_by_layer(model, batch, capacity)):
        for device, size_bytes in zip(layer_devices(model.model), layers, strict=True):
            needed[device] += size_bytes
    return dict(needed)


def _bytes_by_layer(model: CausalModel, batch: int, capacity: int) -> list[int]:
    config = model.config.get_text_config()
    numbers = [_numbers_per_position(layer) for layer in getattr(config, "per_layer_config", ())]
    # The last layers of some models keep nothing: they look at what others keep.
    own = len(numbers) - (getattr(config, "num_kv_shared_layers", None) or 0)
    dtype = torch.float32 if uses_window_linear(model.model) else model.model.dtype  # whose rows are wider than weights
    size_bytes = batch * capacity * int(dtype.itemsize)
    return [count * size_bytes if index < own else 0 for index, count in enumerate(numbers)]


def _numbers_per_position(layer: Any) -> int:
    """Of a layer's keys and values, by the config of this layer."""
    heads: int = getattr(layer, "num_attention_heads", None) or 0
    if not heads:
        return 0
    kv_heads: int = getattr(layer, "num_key_value_heads", None) or heads
    head_dim: int = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return 2 * kv_heads * head_dim


def free_bytes(device: torch.device) -> int | None:
    """What a device has for more tensors; None where nobody keeps count.

    On a GPU also what torch holds without using it. On a CPU what the machine can give without swapping, or the rest of
    the limit of the container where that is less.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + _unused(device)
    if device.type != "cpu":
        return None
    known = [left for left in (_available(), *map(_left, CGROUPS)) if left is not None]
    return min(known, default=None)


def _unused(device: torch.device) -> int:
    """What torch holds of a GPU for whoever asks: what is free between a captured graph's tensors is not."""
    if torch.cuda.get_allocator_backend() != "native":  # CUDA's own, which makes no list of what it holds
        return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        if (segment["device"], segment["segment_pool_id"]) == (index, SHARED_POOL)
    )


def has_plenty(models: Sequence[CausalModel], batch: int, capacity: int) -> bool:
    """Whether there is room for the caches of these models twice over, and more: prompts that are read and rounds that
    are captured take memory too.
    """
    needed: Counter[torch.device] = Counter()
    for model in models:
        needed.update(cache_bytes_by_device(model, batch, capacity))
    free = {device: free_bytes(device) for device in needed}
    return all(left is None or left >= 2 * needed[device] + GIB for device, left in free.items())


def check_room(target: CausalModel, batch: int, capacity: int) -> None:
    """Raise NoRoomError where the target's cache does not fit, with what is missing and what lowers it."""
    problem = _problem("target", target, batch, capacity, {})
    if problem is not None:
        raise NoRoomError(f"{problem}; {_lowers(batch)}")


def has_room(draft: CausalModel, batch: int, capacity: int, beside: CausalModel | None = None) -> bool:
    """Whether the draft's cache fits too, and a warning where it does not: the target goes on alone.

    beside: the target, where its cache has yet to be made
    """
    reserved = {} if beside is None else cache_bytes_by_device(beside, batch, capacity)
    problem = _problem("draft", draft, batch, capacity, reserved)
    if problem is not None:
        warnings.warn(f"{problem}; the target goes on alone; {_lowers(batch)}", RuntimeWarning, stacklevel=2)
    return problem is None


def _lowers(batch: int) -> str:
    return f"lower {'max_batch, ' if batch > 1 else ''}max_tokens or gamma, or shorten the prompts"


def _problem(role: str, model: CausalModel, batch: int, capacity: int, reserved: dict[torch.device, int]) -> str | None:
    for device, needed in cache_bytes_by_device(model, batch, capacity).items():
        free = free_bytes(device)
        if free is None:
            continue
        free = max(0, free - reserved.get(device, 0))
        if needed > free:
            return (
                f"the {role}'s cache of {batch} x {capacity} positions needs {needed / GIB:.1f} GiB on {device}, where "
                f"{free / GIB:.1f} GiB are free: {(needed - free) / GIB:.1f} GiB are missing"
            )
    return None


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _left(cgroup: tuple[Path, str, str, str]) -> int | None:
    """Of the limit set at the mount, which is a container's own; None without one."""
    root, limit, usage, files = cgroup
    try:
        most, used = (root / limit).read_text(), int((root / usage).read_text())
        fields = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # What only caches files is given back before anything is refused.
    return None if most.strip() == "max" else max(0, int(most) - used + int(fields.get(files, 0)))
