"""Loading a pair: which models, and on which devices."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pearl_decode.checkpoints import check_same_tokens, default_device, load_model, load_tokenizer, resolve
from pearl_decode.drafts import draft_directory, load_draft
from pearl_decode.first_layers import first_layers
from pearl_decode.limits import check_decodes_windows
from pearl_decode.linear import uses_window_linear
from pearl_decode.storage import pack_weights, store_in_int8

LOGGER = logging.getLogger(__name__)
FIRST_LAYERS = "first-layers:"
SPREAD = "auto"
TOKENIZER_FILES = ("*token*", "*vocab*", "*.model", "tekken.json")
Spec = str | os.PathLike[str] | PreTrainedModel


@dataclass(frozen=True)
class Pair:
    """What a decoder is made of."""

    target: PreTrainedModel
    draft: PreTrainedModel | None
    tokenizer: Any | None


def load_pair(
    target: Spec,
    draft: Spec | None,
    tokenizer: Any | None,
    dtype: torch.dtype | None,
    *,
    target_device: torch.device | str | None = None,
    draft_device: torch.device | str | None = None,
    device_map: Any | None = None,
) -> Pair:
    """As `PearlDecoder.from_pretrained` says of its arguments, and with its errors."""
    for role, model in (("target", target), *([] if draft is None else [("draft", draft)])):
        if not isinstance(model, (str, os.PathLike)):
            check_loaded(role, model)
    if draft is None and draft_device is not None:
        raise ValueError(f"draft_device: expected None where there is no draft, got {draft_device!r}")
    for name, value, spec in (
        ("target_device", target_device, target),
        ("device_map", device_map, target),
        ("draft_device", draft_device, draft),
    ):
        if value is not None and not isinstance(spec, (str, os.PathLike)):
            raise ValueError(f"{name}: expected None, as a loaded model stays where it is, got {value!r}")
    if device_map is not None and target_device is not None:
        raise ValueError(f"device_map: expected None where target_device is given, got {device_map!r}")
    if target_device == SPREAD:
        target_device, device_map = None, SPREAD
    target_model = load_model("target", target, dtype, find_device("target_device", target_device), device_map)
    check_decodes_windows("target", target_model)  # before a draft is made of it
    device = target_model.device if draft_device is None else find_device("draft_device", draft_device)
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = load_tokenizer("tokenizer", tokenizer)
    elif tokenizer is None and isinstance(target, (str, os.PathLike)):
        tokenizer = _own_tokenizer("target", target, "prompts are token ids, and answers have no text")
    draft_model = None if draft is None else _load_draft(draft, target_model, tokenizer, dtype, device)
    pairs = ((target_model, target), (draft_model, draft))
    pack_weights(*(model for model, spec in pairs if model is not None and model is not spec))
    return Pair(target_model, draft_model, tokenizer)


def _load_draft(
    draft: Spec, target: PreTrainedModel, tokenizer: Any | None, dtype: torch.dtype | None, device: torch.device
) -> PreTrainedModel:
    if not isinstance(draft, (str, os.PathLike)):
        return draft
    if isinstance(draft, str) and draft.startswith(FIRST_LAYERS):
        model = _moved(first_layers(target, _layer_count(draft)), device)
    elif (directory := draft_directory(draft)) is not None:
        model = _moved(load_draft(directory, target), device)
    else:
        model = load_model("draft", draft, dtype, device)
        own = _own_tokenizer("draft", draft, "its ids are taken for the target's") if tokenizer is not None else None
        if own is not None:
            check_same_tokens(tokenizer, own)
    if dtype is None and device.type == "cpu" and uses_window_linear(model):
        store_in_int8(model)
    return model


def check_loaded(role: str, model: Any) -> None:
    """Raise ValueError for what is no model."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise ValueError(
            f"{role}: expected a causal model of transformers, or for PearlDecoder.from_pretrained a path or hub id, "
            f"got {model!r}"
        )


def _own_tokenizer(role: str, spec: str | os.PathLike[str], otherwise: str) -> Any | None:
    """The tokenizer that belongs to a model; None, and a warning, for a directory that was saved without one."""
    directory = Path(resolve(role, spec))
    # transformers does not say so: for some models it makes up an empty tokenizer.
    if directory.is_dir() and not any(found for pattern in TOKENIZER_FILES for found in directory.glob(pattern)):
        LOGGER.warning("%s: no tokenizer in %s: %s", role, directory, otherwise)
        return None
    return load_tokenizer(role, spec)


def _moved(draft: Any, device: torch.device) -> PreTrainedModel:
    """A draft that shares weights with its target, on another device: with copies of them."""
    moved: PreTrainedModel = draft.to(device)
    return moved


def find_device(name: str, wanted: torch.device | str | None) -> torch.device:
    """A device that is there; None: the GPU if there is one. Raises ValueError naming the option for any other."""
    if wanted is None:
        return default_device()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{index}" for index in range(gpus))]
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        device = None
    if device is None or (device.type in ("cpu", "cuda") and str(device) not in (*there, "cpu:0")):
        raise ValueError(f"{name} must be one of {there} here, got {str(wanted)!r}")
    return device


def _layer_count(draft: str) -> int:
    count = draft.removeprefix(FIRST_LAYERS)
    if not count.isdecimal():
        raise ValueError(f"draft: expected {FIRST_LAYERS}N with a number of layers N, got {draft!r}")
    return int(count)
