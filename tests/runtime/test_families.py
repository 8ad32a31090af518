"""Any causal model: the families of transformers, each as a tiny random model."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from pearl_decode import PearlDecoder, SamplingParams, decoder
from pearl_decode.trials import try_window_attention
from tests.runtime.tiny import SIZES

GPT = {"n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 160, "n_inner": 96}
OPT = {"ffn_dim": 96, "word_embed_proj_dim": 48, "ffn_hidden_size": 96, "d_model": 48, "num_layers": 4}
OPT |= {"decoder_layers": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 96, "num_heads": 4, "rotary_dim": 8}
EXPERTS = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts_per_tok": 2}
EXPERTS |= dict.fromkeys(["num_local_experts", "num_experts", "n_routed_experts"], 4)
EXPERTS |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
OTHERS = {"sliding_window": 8, "kv_channels": 12, "query_pre_attn_scalar": 12}
OTHERS |= {"vocab_size_per_layer_input": SIZES["vocab_size"], "hidden_size_per_layer_input": 8}
SMALL = SIZES | GPT | OPT | EXPERTS | OTHERS  # of these each family takes what it knows

LATENT = {"num_key_value_heads": 4, "head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 12}
LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
SHARED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2, "laurel_rank": 4}
SHARED |= {"altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4}
FAMILIES = {
    name: own
    for own, names in [
        (
            {},
            "afmoe apertus arcee aria_text biogpt bitnet codegen cohere cohere2 ctrl diffllama ernie4_5 "
            "ernie4_5_moe exaone4 falcon flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt-sw3 gpt2 "
            "gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoeshared helium "
            "hunyuan_v1_dense hunyuan_v1_moe jetmoe llama llama4_text minimax_m2 ministral mistral mixtral "
            "moshi nanochat nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 "
            "qwen3_moe seed_oss smollm3 starcoder2 vaultgemma xglm",
        ),
        (LATENT, "deepseek_v2 deepseek_v3 glm4_moe_lite longcat_flash minicpm3 youtu"),
        (SHARED, "gemma3n_text gemma4_text"),
        ({"is_decoder": True}, "bert bert-generation camembert electra ernie roberta xlm-roberta"),
    ]
    for name in names.split()
}
PROMPTS = [[5, 6, 7, 8, 9, 3], [9, 1], [4] * 20]
PARAMS = SamplingParams(max_tokens=16)


def _model(family):
    if family not in CONFIG_MAPPING:
        pytest.skip("not in this transformers")
    kind = CONFIG_MAPPING[family]
    known = {*inspect.signature(kind).parameters, *getattr(kind, "__dataclass_fields__", ()), *kind.attribute_map}
    sizes = {name: value for name, value in SMALL.items() if name in known}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**(sizes | FAMILIES[family]))).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15)
    return model


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_decodes_its_own_text_and_accepts_all_of_a_draft_that_is_its_equal(
    family, greedy_reference, monkeypatch
):
    """First with the attention it comes with, then with ours wherever that may be."""
    model = _model(family)
    draft = copy.deepcopy(model)
    wanted = [greedy_reference(model, prompt, PARAMS.max_tokens) for prompt in PROMPTS]
    for strategy, static in (("pearl", False), ("sequential", False), ("pearl", True)):
        monkeypatch.setattr(decoder, "has_static_rounds", lambda target, static=static: static)
        with PearlDecoder(model, draft, strategy=strategy, gamma=3) as pair:
            results = pair.generate(PROMPTS, PARAMS)
        assert [result.token_ids for result in results] == wanted
        assert [result.stats.acceptance for result in results] == [1.0] * len(PROMPTS)
        for each in (model, draft):
            try_window_attention(each, within=1e-3)
