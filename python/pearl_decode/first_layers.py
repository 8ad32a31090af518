"""Drafts made of a target's own first layers."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from pearl_decode.trials import run_windows_like


def first_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """A draft made of the target's own first `count` decoder layers; weights are shared, not copied.

    Raises ValueError for a count that leaves no layer out, or a target that is no model without its last layers.
    """
    total = model.config.get_text_config().num_hidden_layers
    if not 1 <= count < total:
        raise ValueError(f"draft: first-layers:N needs N from 1 to {total - 1} for this target, got {count}")
    try:
        draft = _cut_short(model, count)
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"draft: first-layers:N cannot be made of a {type(model).__name__}: {error}") from error
    draft.generation_config = model.generation_config
    draft.set_attn_implementation(model.config._attn_implementation)
    run_windows_like(draft, model)
    draft.eval()  # type: ignore[no-untyped-call]
    return draft


def _cut_short(model: PreTrainedModel, count: int) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    text_config = config.get_text_config()
    text_config.num_hidden_layers = count
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = text_config.layer_types[:count]
    with torch.device("meta"):
        draft = type(model)(config)
    shared = model.state_dict()
    draft.load_state_dict({name: shared[name] for name in draft.state_dict()}, assign=True)
    draft.tie_weights()
    adopt_buffers(draft, model)
    return draft


def adopt_buffers(draft: PreTrainedModel, model: PreTrainedModel) -> None:
    """Take the buffers no state dict carries (rotary frequencies) from the target: copies, as transformers may write
    other frequencies into them, and both models run at once."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, buffer in draft.named_buffers():
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            setattr(draft.get_submodule(owner), leaf, buffers[name].clone())
