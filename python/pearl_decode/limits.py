"""What a model says of itself before it runs: whether it can decode windows."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedModel

from pearl_decode.attention import ATTENTION_NAME

ATTENTION_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
CACHE_ARGUMENTS = ("cache", "past_key_values")  # transformers names it so from 5.24 on, and so before


def check_decodes_windows(role: str, model: PreTrainedModel) -> None:
    """Raise ValueError for a model whose rows cannot be of different length, or lose tokens that were refused."""
    config: Any = model.config
    text_config: Any = config.get_text_config()
    parameters = inspect.signature(model.forward).parameters
    if "position_ids" not in parameters or not set(CACHE_ARGUMENTS) & set(parameters):
        raise ValueError(
            f"{role}: {type(model).__name__}.forward must take position_ids and {' or '.join(CACHE_ARGUMENTS)}, "
            f"got {sorted(parameters)}"
        )
    if getattr(text_config, "alibi", False):
        raise ValueError(
            f"{role}: positions must be taken from position_ids, got alibi=True in {type(text_config).__name__}"
        )
    # GPT-Neo's name for them: it masks by tables of its own, as if all rows were as long as the longest.
    kinds = getattr(text_config, "layer_types", None) or getattr(text_config, "attention_layers", None)
    foreign = set(kinds or ()) - ATTENTION_TYPES
    if foreign:
        raise ValueError(
            f"{role}: every layer must be one of {sorted(ATTENTION_TYPES)}, got {sorted(foreign)}: of these it is not "
            "known how to take refused tokens back and to mask rows of different length"
        )
    if config._attn_implementation not in ("eager", "sdpa", ATTENTION_NAME):
        raise ValueError(
            f"{role}: attention must be 'sdpa' or 'eager', got {config._attn_implementation!r}; "
            "load it with attn_implementation='sdpa'"
        )
