"""Tiny random models of several architectures."""

from __future__ import annotations

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 120
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}


def _llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def _qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**SIZES))


def _gemma3():
    # Windows of 8 positions: every prompt and every draft window crosses one.
    kinds = ["sliding_attention", "full_attention"] * 2
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=8, layer_types=kinds, query_pre_attn_scalar=12))


def _gpt2():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_embd=48,
            n_layer=4,
            n_head=4,
            n_positions=160,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=False,
        )
    )


def gemma4(**own):
    """Which has inputs for each layer, and of heads what its config says in `own`."""
    kinds = ["sliding_attention", "full_attention"] * 2
    inputs = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
    return Gemma4ForCausalLM(Gemma4TextConfig(**SIZES, layer_types=kinds, sliding_window=8, **inputs, **own))


ARCHITECTURES = {"llama": _llama, "qwen3": _qwen3, "gemma3": _gemma3, "gpt2": _gpt2}


def build(name: str, seed: int = 0):
    """One of the architectures, `enlarged`."""
    return enlarged(ARCHITECTURES[name], seed)


def enlarged(make, seed: int = 0):
    """What `make` returns, with weights large enough that its greedy text does not settle on one token."""
    torch.manual_seed(seed)
    model = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(6.0)
    return model
