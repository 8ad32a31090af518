"""What is refused of a target, and that all it is not refused is its own text: up to the last position."""

from __future__ import annotations

import pytest
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from pearl_decode import PearlDecoder
from pearl_decode.models import CausalModel
from tests.runtime.tiny import SIZES, VOCAB

GPT_SIZES = {"vocab_size": VOCAB, "hidden_size": 48, "bos_token_id": None, "eos_token_id": None}


def _gpt_neo():
    kinds = [[["global", "local"], 2]]
    return GPTNeoForCausalLM(GPTNeoConfig(**GPT_SIZES, num_layers=4, num_heads=4, attention_types=kinds, window_size=8))


def _falcon():
    return FalconForCausalLM(FalconConfig(**GPT_SIZES, num_hidden_layers=4, num_attention_heads=4, alibi=True))


def _mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_mamba, r"target: MambaForCausalLM.forward must take position_ids and cache or past_key_values, got \["),
        (_gpt_neo, r"target: every layer must be one of .*, got \['global', 'local'\]"),
        (_falcon, "target: positions must be taken from position_ids, got alibi=True in FalconConfig"),
    ],
)
@pytest.mark.parametrize("draft", [None, "first-layers:2"])
def test_models_whose_rows_cannot_differ_in_length_are_refused(build, message, draft):
    with pytest.raises(ValueError, match=message):
        PearlDecoder.from_pretrained(build(), draft)


@pytest.mark.parametrize("kind", ["linear_attention", "indexed_attention", "hybrid_sliding"])
def test_layers_of_other_types_are_refused_by_what_is_not_known_of_them(kind):
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.config.layer_types = [kind, "full_attention"] * 2
    with pytest.raises(
        ValueError, match=rf"got \['{kind}'\]: of these it is not known how to take refused tokens back"
    ):
        CausalModel(model)


def _gemma4_with_inputs_per_layer():
    own = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
    inputs = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
    return Gemma4ForCausalLM(Gemma4TextConfig(**SIZES, **own, **inputs))


def _gemma3n():
    """Whose last two layers have no keys of their own."""
    own = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8, "num_kv_shared_layers": 2}
    inputs = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "laurel_rank": 4}
    altup = {"altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4}
    return Gemma3nForCausalLM(Gemma3nTextConfig(**SIZES, **own, **inputs, **altup))


def _japanese_neox():
    """Whose last layer alone has a bias."""
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_multiple_size": 2}
    return GPTNeoXJapaneseForCausalLM(GPTNeoXJapaneseConfig(**GPT_SIZES, **sizes))


@pytest.mark.parametrize("build", [_gemma4_with_inputs_per_layer, _gemma3n, _japanese_neox])
def test_targets_that_are_no_model_without_their_last_layers_make_no_draft(build):
    model = build()
    with pytest.raises(ValueError, match=f"draft: first-layers:N cannot be made of a {type(model).__name__}: "):
        PearlDecoder.from_pretrained(model, "first-layers:2")
    PearlDecoder.from_pretrained(model).close()
