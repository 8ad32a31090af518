"""What a model runs in place of its own code, as far as trials give the same logits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from pearl_decode.attention import ATTENTION_NAME, use_window_attention
from pearl_decode.cache import WindowCache
from pearl_decode.layer import Found, agree, find_window_layers, switch_layers
from pearl_decode.linear import use_window_linear, uses_window_linear
from pearl_decode.models import CausalModel
from pearl_decode.window_model import WHOLE, WindowModel

LOGGER = logging.getLogger(__name__)


def attend_to_windows(model: PreTrainedModel) -> None:
    """Let a model on a CPU run `window_attention`, unless it cannot, or then says something else."""
    before = model.config._attn_implementation
    if before not in ("sdpa", "eager"):
        return
    refusal = try_window_attention(model, within=1e-3)
    if refusal is None:
        _run_whole_windows(model)
    else:
        LOGGER.info("%s attends with %s: %s", type(model).__name__, before, refusal)


@contextmanager
def window_attention_tried(model: PreTrainedModel) -> Iterator[None]:
    """Within: a model that runs sdpa runs `window_attention`, if nothing speaks against it."""
    before = model.config._attn_implementation
    if before == "sdpa":
        try_window_attention(model)
    try:
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def try_window_attention(model: PreTrainedModel, within: float | None = None) -> str | None:
    """Let a model run `window_attention`. Returns what speaks against it, if anything does: it is then as it was.

    within: how much of its logits rounding may change; None is by their type. In 16 bits it changes one or two percent,
            and of another attention than the model's, logits have nothing in common
    """
    if within is None:
        within = max(1e-3, 25 * torch.finfo(model.dtype).eps)
    before = model.config._attn_implementation
    refusal: str | None = f"with {ATTENTION_NAME!r} its logits would be others"
    try:
        wanted = _ragged_logits(model)
        use_window_attention(model)
        if (_ragged_logits(model) - wanted).norm() <= within * wanted.norm():
            refusal = None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of compilers too, which have errors of their own
        refusal = f"{type(error).__name__}: {error}"
    finally:
        if refusal is not None:
            model.set_attn_implementation(before)
    return refusal


def run_windows_like(draft: PreTrainedModel, model: PreTrainedModel) -> None:
    """Let a draft made of a model's parts run windows on a CPU as that model does, whose attention it has already."""
    if uses_window_linear(model):
        use_window_linear(draft)
        if draft.config._attn_implementation == ATTENTION_NAME:
            _run_whole_windows(draft)


def _run_whole_windows(model: PreTrainedModel) -> None:
    """Let decoder layers run as `window_layer`, and all of them in one call, as far as trials give the same."""
    switch_layers(agreeing_layers(model))
    run_as_one(model)


def run_as_one(model: PreTrainedModel) -> WindowModel | None:
    """Let a model whose layers run as `window_layer` run as one call, if a trial gives the same. Returns what does."""
    try:
        whole = WindowModel(model)
    except (AttributeError, KeyError, ValueError) as error:
        LOGGER.info("%s runs as it is written: %s", type(model).__name__, error)
        return None
    wanted, agrees = _ragged_logits(model), False
    setattr(model, WHOLE, whole)
    try:
        agrees = agree(_ragged_logits(model), wanted)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of compilers too, which have errors of their own
        LOGGER.warning("%s runs layer by layer: %s: %s", type(model).__name__, type(error).__name__, error)
    finally:
        if not agrees:
            delattr(model, WHOLE)
    return whole if agrees else None


def agreeing_layers(model: PreTrainedModel) -> Found:
    """The decoder layers of a model that give the same as `window_layer`."""
    return find_window_layers(model, lambda: _ragged_logits(model))


@torch.inference_mode()
def _ragged_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of a window over rows of different length."""
    windows, cache = CausalModel(model), WindowCache(16)
    ids = torch.arange(32, device=model.device).view(2, 16) % windows.vocab_size
    windows.forward(ids[:, :12], [0, 0], cache, keep=1)
    return windows.forward(ids[:, 12:15], [12, 9], cache, keep=3)
