"""What is refused of a target, and that all it is not refused is its own text: up to the last position."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    FalconConfig,
    FalconForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.first_layers import first_layers
from pearl_decode.models import CausalModel
from tests.runtime.tiny import SIZES, VOCAB, enlarged, gemma4

LIMIT = 64
LONGROPE = {
    "rope_theta": 1e4, "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": LIMIT,
    "short_factor": [1.0] * 8, "long_factor": [1.5 + i for i in range(8)],
}  # fmt: skip
DYNAMIC = {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0}
YARN = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LIMIT}
GPT_SIZES = {"vocab_size": VOCAB, "hidden_size": 48, "bos_token_id": None, "eos_token_id": None}


def _config(kind, rope, longest=4 * LIMIT):
    if kind is Phi3Config:  # it keeps the original length beside
        kind = partial(kind, original_max_position_embeddings=LIMIT)
    own = {"hidden_size": 64, "head_dim": 16, "max_position_embeddings": longest, "rope_parameters": dict(rope)}
    return kind(**(SIZES | own))


def _longrope_phi3():
    return enlarged(lambda: Phi3ForCausalLM(_config(Phi3Config, LONGROPE)))


def _longrope_llama():
    return enlarged(lambda: LlamaForCausalLM(_config(LlamaConfig, LONGROPE)))


def _dynamic_llama():
    return enlarged(lambda: LlamaForCausalLM(_config(LlamaConfig, DYNAMIC, LIMIT)))


def _prompts(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("build", [_longrope_phi3, _longrope_llama, _dynamic_llama])
@pytest.mark.parametrize("strategy", ["autoregressive", "pearl"])
def test_frequencies_that_change_with_the_length_end_the_context(runtime, build, strategy, greedy_reference):
    """Texts that end with the last position they hold for are exact, beside shorter ones and with windows that run
    past it; a longer text is refused."""
    model, prompts = build(), _prompts(LIMIT - 9, 5, LIMIT - 30)
    params = [SamplingParams(max_tokens=count) for count in (9, 30, 30)]
    wanted = [greedy_reference(model, prompt, p.max_tokens) for prompt, p in zip(prompts, params, strict=True)]
    with PearlDecoder(model, first_layers(model, 2), strategy=strategy, gamma=7) as decoder:
        results = decoder.generate(prompts, params)
        [longer] = decoder.generate([prompts[0]], SamplingParams(max_tokens=10))
    assert [r.token_ids for r in results] == wanted
    assert f"must fit the target's context of {LIMIT} tokens, got {LIMIT - 9} + 10" in longer.error


def test_a_context_that_is_shorter_than_the_config_says_is_said_once(caplog):
    model = _longrope_llama()
    with caplog.at_level(logging.WARNING, "pearl_decode"), PearlDecoder(model, first_layers(model, 2)):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        f"target: texts are of {LIMIT} tokens at most, not {4 * LIMIT}: longrope turns longer ones otherwise, from "
        "their first token on"
    ]


def test_yarn_lengthens_a_context_that_is_the_original_one(runtime, greedy_reference):
    model = enlarged(lambda: LlamaForCausalLM(_config(LlamaConfig, YARN, LIMIT)))
    prompts = _prompts(LIMIT + 9, 5)
    assert CausalModel(model).context == 4 * LIMIT
    assert CausalModel(LlamaForCausalLM(_config(LlamaConfig, YARN, 5 * LIMIT))).context == 5 * LIMIT
    with PearlDecoder(model, first_layers(model, 2), strategy="sequential", gamma=4) as decoder:
        results = decoder.generate(prompts, SamplingParams(max_tokens=30))
    assert [r.token_ids for r in results] == [greedy_reference(model, prompt, 30) for prompt in prompts]


def test_a_draft_of_the_targets_layers_has_frequencies_of_its_own():
    """transformers writes them in place, and both run at once."""
    model = _longrope_llama()
    shared = {buffer.data_ptr() for buffer in model.buffers()} & {
        buffer.data_ptr() for buffer in first_layers(model, 2).buffers()
    }
    assert not shared


def _gpt_neo():
    kinds = [[["global", "local"], 2]]
    return GPTNeoForCausalLM(GPTNeoConfig(**GPT_SIZES, num_layers=4, num_heads=4, attention_types=kinds, window_size=8))


def _falcon():
    return FalconForCausalLM(FalconConfig(**GPT_SIZES, num_hidden_layers=4, num_attention_heads=4, alibi=True))


def _mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=4))


def _bert(is_decoder=False):
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    return BertLMHeadModel(BertConfig(vocab_size=VOCAB, **sizes, is_decoder=is_decoder))


def test_an_encoder_that_is_made_a_decoder_is_a_target(runtime, greedy_reference):
    model, prompts = enlarged(partial(_bert, is_decoder=True)), _prompts(20, 5)
    with PearlDecoder(model, model, gamma=3, strategy="sequential") as decoder:
        results = decoder.generate(prompts, SamplingParams(max_tokens=12))
    assert [r.token_ids for r in results] == [greedy_reference(model, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_bert, "target: tokens must look at those before them alone, got is_decoder=False in BertConfig"),
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


@pytest.mark.parametrize("build", [gemma4, _gemma3n, _japanese_neox])
def test_targets_that_are_no_model_without_their_last_layers_make_no_draft(build):
    model = build()
    with pytest.raises(ValueError, match=f"draft: first-layers:N cannot be made of a {type(model).__name__}: "):
        PearlDecoder.from_pretrained(model, "first-layers:2")
    PearlDecoder.from_pretrained(model).close()
