"""What a model's config says of it before it runs: whether it can decode windows, and how long its texts may be."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel

from pearl_decode.attention import ATTENTION_NAME

LOGGER = logging.getLogger(__name__)
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
    if any(getattr(module, "is_decoder", None) is False for module in model.modules()):
        raise ValueError(
            f"{role}: tokens must look at those before them alone, got is_decoder=False in {type(text_config).__name__}"
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


def longest_text(role: str, config: Any) -> int | None:
    """How many positions a text may have, prompt and answer together; None where the config sets no limit.

    Those up to which frequencies stay as they are: rows of a batch differ in length, and windows run past their ends.
    Of "longrope" that is the original length, which a warning says of a target; of "dynamic" what the config allows.
    """
    longest: int | None = getattr(config, "max_position_embeddings", None)
    for rope in _ropes(config):
        original = rope.get("original_max_position_embeddings")
        if longest is None or original is None:
            continue
        if rope["rope_type"] == "longrope" and original < longest:
            if role == "target":
                LOGGER.warning("target: texts are of %d tokens at most, not %d: longrope turns longer ones otherwise, "
                               "from their first token on", original, longest)  # fmt: skip
            longest = original
        elif rope["rope_type"] == "yarn":
            # Qwen says to lengthen its models by a config whose max_position_embeddings stays the original.
            longest = max(longest, int(original * (rope.get("factor") or 1)))
    return longest


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """The parameters of each rotary embedding: a model has one, or one for each type of its layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *parameters.values()):
        if isinstance(rope, dict) and "rope_type" in rope:
            yield rope
