"""What caches need, and whether a device has it, before a request starts."""

from __future__ import annotations

import torch

from pearl_decode.models import CausalModel

GIB = 1 << 30


class NoRoomError(MemoryError):
    """A batch does not fit on its device."""


def cache_bytes(model: CausalModel, batch: int, capacity: int) -> int:
    """Of the keys and values of `batch` rows of `capacity` positions, by the model's config."""
    config = model.config.get_text_config()
    heads: int = config.num_attention_heads
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers: int = config.num_hidden_layers
    return 2 * layers * kv_heads * head_dim * batch * capacity * int(model.model.dtype.itemsize)


def free_bytes(device: torch.device) -> int | None:
    """What is free, and what torch holds without using it; None where nobody keeps count."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check_room(target: CausalModel, batch: int, capacity: int) -> None:
    """Raise NoRoomError where the target's cache does not fit, with what is missing and what lowers it."""
    free = free_bytes(target.device)
    if free is None or (needed := cache_bytes(target, batch, capacity)) <= free:
        return
    raise NoRoomError(
        f"the target's cache of {batch} x {capacity} positions needs {needed / GIB:.1f} GiB on {target.device}, where "
        f"{free / GIB:.1f} GiB are free: {(needed - free) / GIB:.1f} GiB are missing; lower max_batch or max_tokens, "
        "or shorten the prompts"
    )
