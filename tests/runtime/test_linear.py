"""Models on a CPU whose weights stay in 16 bits."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.linear import WindowLinear, use_window_linear, uses_window_linear
from pearl_decode.models import first_layers, load_model

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = {
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES, attention_bias=True),
    "qwen2": Qwen2Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=16),
}
IDS = torch.tensor([[1, 2, 3, 4, 5, 6]])


@pytest.fixture(params=CONFIGS)
def directory(request, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(input_ids=ids).logits


def test_computes_in_float32_with_the_checkpoints_own_weights(directory):
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = load_model("target", directory, None)
    layers = {name: module for name, module in ours.named_modules() if isinstance(module, WindowLinear)}
    assert {layer.weight.dtype for name, layer in layers.items() if "proj" in name} == {torch.bfloat16}
    assert all(weight.dtype is torch.float32 for name, weight in ours.named_parameters() if "norm" in name)
    assert logits(ours).dtype is torch.float32
    torch.testing.assert_close(logits(ours), logits(plain), rtol=1e-5, atol=1e-5)
    many = IDS.repeat(40, 1)  # more rows than a window has
    torch.testing.assert_close(logits(ours, many), logits(plain, many), rtol=1e-5, atol=1e-5)


def test_a_stated_dtype_is_kept(directory):
    wide = load_model("target", directory, torch.float32)
    assert {weight.dtype for weight in wide.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(wide), logits(load_model("target", directory, None)), rtol=1e-5, atol=1e-5)
    narrow = load_model("target", directory, torch.bfloat16)
    assert not uses_window_linear(narrow)
    assert logits(narrow).dtype is torch.bfloat16


def test_a_loaded_model_is_left_as_it_is(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    assert load_model("target", model, None) is model
    assert not uses_window_linear(model)


def test_gradients_are_those_of_a_plain_model(directory):
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ours = load_model("target", directory, torch.float32)
    for model in (plain, ours):
        model(input_ids=IDS, labels=IDS).loss.backward()
    for expected, got in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
def test_decodes_with_a_draft_of_its_own_layers(directory, strategy):
    target = load_model("target", directory, None)
    draft = first_layers(target, 1)
    assert uses_window_linear(draft)
    with PearlDecoder(target, draft, gamma=3, strategy=strategy) as decoder:
        params = SamplingParams(max_tokens=40, ignore_eos=True)
        prompts = [IDS[0].tolist(), [7, 8]]
        results = decoder.generate(prompts, params)
        alone = decoder.generate(prompts, params, strategy="autoregressive")
    assert [result.token_ids for result in results] == [result.token_ids for result in alone]


def test_a_model_that_looks_at_the_type_of_its_weights_becomes_float32():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).to(torch.bfloat16)
    head = model.lm_head

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ head.weight.T

    head.forward = forward
    use_window_linear(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert logits(model).dtype is torch.float32
