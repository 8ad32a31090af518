"""Where a model's parts are, by the device_map it was loaded with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

Map = dict[str, Any]  # of a module's name, "" the whole model: the number or name of a device


def is_spread(model: PreTrainedModel) -> bool:
    """Whether a model's parts are on several devices."""
    return len(set(_map_of(model).values())) > 1


def layer_devices(model: PreTrainedModel) -> list[torch.device]:
    """Where each decoder layer attends: on the model's own device, unless a device_map put it on another GPU.

    What is offloaded to the CPU or a disk still computes on the model's own device.
    """
    own: torch.device = model.device
    config: Any = model.config.get_text_config()
    placed, count = _map_of(model), int(config.num_hidden_layers)
    layers = _layers_name(model, count) if placed else None
    if layers is None:
        return [own] * count
    devices = [_entry(placed, f"{layers}.{index}") for index in range(count)]
    return [own if str(device) in ("None", "cpu", "disk") else _device(device) for device in devices]


def _map_of(model: PreTrainedModel) -> Map:
    placed: Map = getattr(model, "hf_device_map", None) or {}
    return placed


def _layers_name(model: PreTrainedModel, count: int) -> str | None:
    """Of the list of decoder layers."""
    whole: Any = model
    within = {id(module) for module in whole.get_decoder().modules()}
    lists: dict[str, Any] = {name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList)}
    return next((name for name, each in lists.items() if id(each) in within and len(each) == count), None)


def _entry(placed: Map, layer: str) -> Any:
    """What a map says of a layer: of its attention where it is in parts, or of the least that holds all of it."""
    parts = [name for name in placed if name.startswith(f"{layer}.")]
    if parts:
        return placed[next((name for name in parts if "attn" in name or "attention" in name), parts[0])]
    holders = [name for name in placed if not name or f"{layer}.".startswith(f"{name}.")]
    return placed[max(holders, key=len)] if holders else None


def _device(device: Any) -> torch.device:
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
