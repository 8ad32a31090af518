"""Logits are made for the tokens they are wanted of, and for all of these at once."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pearl_decode.attention import use_window_attention
from pearl_decode.cache import WindowCache
from pearl_decode.models import CausalModel
from tests.runtime.tiny import SIZES, VOCAB, gemma4

ROWS, WIDTH = 3, 6


def _forward(model, keep):
    """Logits of the last tokens of some windows, the head's input, those of the whole windows by transformers alone."""
    ids, seen = torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH), []
    wanted = model(ids).logits[:, WIDTH - keep :]
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    use_window_attention(model)
    got = CausalModel(model).forward(ids, [0] * ROWS, WindowCache(WIDTH), keep)
    hook.remove()
    return got, seen, wanted


@pytest.mark.parametrize("keep", [0, 1, 2, WIDTH])
@torch.inference_mode()
def test_the_head_multiplies_what_is_kept_and_densely(keep: int) -> None:
    """What is not dense torch's linear multiplies row by row, on a CPU with a copy of the head for each."""
    torch.manual_seed(0)
    got, seen, wanted = _forward(LlamaForCausalLM(LlamaConfig(**SIZES)).eval(), keep)
    assert [tuple(hidden.shape) for hidden in seen] == [(ROWS, keep, SIZES["hidden_size"])]
    assert seen[0].is_contiguous()
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keep", [1, 2, WIDTH])
@torch.inference_mode()
def test_layers_that_share_a_cache_attend_from_all_tokens(keep: int) -> None:
    """Gemma 4 leaves other tokens out where it is told a number, after which the rest stand at wrong positions."""
    torch.manual_seed(0)
    got, _, wanted = _forward(gemma4(num_kv_shared_layers=2).eval(), keep)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_reading_leaves_layers_out_where_a_model_can() -> None:
    got, seen, _ = _forward(gemma4(num_kv_shared_layers=2).eval(), 0)
    assert got.shape == (ROWS, 0, VOCAB)
    assert [hidden.shape[1] for hidden in seen] == [1]
