"""Decoder layers that run as one call: which do, that they say the same, and when they are left as they are written."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from pearl_decode import PearlDecoder, SamplingParams, trials
from pearl_decode import layer as layers
from pearl_decode.cache import WindowCache
from pearl_decode.checkpoints import load_model
from pearl_decode.drafts import new_draft
from pearl_decode.first_layers import first_layers
from pearl_decode.layer import WindowDecoderLayer
from pearl_decode.models import CausalModel

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
WHOLE = {
    "llama": LlamaConfig(**SIZES),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
}
# Configs, and how many of the four layers are `window_layer`.
OTHERS = {
    "mistral with a window": (MistralConfig(**SIZES, sliding_window=16), 0),
    "gemma2": (Gemma2Config(**SIZES, head_dim=8, sliding_window=16), 0),
    "llama of another activation": (LlamaConfig(**SIZES, hidden_act="gelu"), 0),
    "smollm3, its fourth layer without positions": (SmolLM3Config(**SIZES, use_sliding_window=False), 3),
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch):
    """Layers are called by the model's own code, as where it is no `WindowModel`."""

    def refuse(model):
        raise ValueError("one by one")

    monkeypatch.setattr(trials, "WindowModel", refuse)


def load(config, tmp_path):
    """A model of random weights, its norms and biases too, as it is loaded from a checkpoint of 16 bits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.normal_(1.0, 0.2)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    return load_model("target", tmp_path, None)


def whole_layers(model) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, WindowDecoderLayer)]


@torch.inference_mode()
def windows(model) -> list[torch.Tensor]:
    """Logits of ragged windows after a prompt, one row wide and three."""
    causal, cache = CausalModel(model), WindowCache(64)
    ids = torch.arange(80).view(2, 40) * 7 % 96
    causal.forward(ids[:, :30], [0, 0], cache, keep=1)
    return [
        causal.forward(ids[:, 30:31], [30, 25], cache, keep=1),
        causal.forward(ids[:, 31:34], [31, 26], cache, keep=3),
        causal.forward(ids[:, 34:36], [31, 29], cache, keep=2),
    ]


def count_calls(monkeypatch, module, name: str) -> list[int]:
    """A list that grows with each call of a module's function from here on."""
    count = []
    run = getattr(module, name)

    def counted(*args, **named):
        count.append(1)
        return run(*args, **named)

    monkeypatch.setattr(module, name, counted)
    return count


@pytest.fixture
def calls(monkeypatch):
    """How often a layer ran as one call."""
    return count_calls(monkeypatch, layers, "window_layer")


@pytest.mark.parametrize("name", WHOLE)
def test_a_layer_in_one_call_says_what_its_own_code_says(name, tmp_path, calls):
    ours = load(WHOLE[name], tmp_path)
    assert len(whole_layers(ours)) == 4
    calls.clear()
    got = windows(ours)
    assert len(calls) == 4 * 4, "the prompt, and each window"
    for module in whole_layers(ours):
        module.__class__ = type(module).__mro__[2]
    calls.clear()
    for mine, theirs in zip(got, windows(ours), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert not calls


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_stay_as_they_are_written(name, tmp_path):
    config, count = OTHERS[name]
    assert len(whole_layers(load(config, tmp_path))) == count


def test_a_layer_that_says_something_else_is_found_out(tmp_path, monkeypatch):
    """As one that is written otherwise under a known name."""
    monkeypatch.setattr(layers, "window_layer", lambda x, *_, **__: 1.001 * x)
    assert not whole_layers(load(WHOLE["llama"], tmp_path))


def test_drafts_made_of_a_model_run_as_it_does(tmp_path, calls):
    model = load(WHOLE["llama"], tmp_path)
    for draft in (first_layers(model, 2), new_draft(model, [0, 3], torch.arange(0, 96, 2))):
        assert len(whole_layers(draft)) == 2
        calls.clear()
        windows(draft)
        assert len(calls) == 4 * 2


def test_a_layer_that_was_changed_runs_as_it_is_written(tmp_path, calls):
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)

    model = load(WHOLE["llama"], tmp_path)
    plain = windows(model)
    mlp = model.model.layers[1].mlp
    mlp.down_proj = Doubled(mlp.down_proj)
    calls.clear()
    changed = windows(model)
    assert len(calls) == 4 * 3
    assert (changed[0] - plain[0]).abs().max() > 1e-3
    mlp.down_proj = mlp.down_proj.inner
    calls.clear()
    assert torch.equal(windows(model)[0], plain[0])
    assert len(calls) == 4 * 4


def test_weights_are_read_where_they_are_now(tmp_path):
    model = load(WHOLE["llama"], tmp_path)
    before = windows(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.model.layers[2].parameters():
            parameter.data = parameter.data.float() * 1.5
    assert (windows(model)[0] - before[0]).abs().max() > 1e-3
    assert torch.equal(windows(other)[0], before[0])


def test_gradients_go_through_the_layers_own_code(tmp_path, calls):
    model = load(WHOLE["llama"], tmp_path).requires_grad_(True)
    calls.clear()
    model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits.sum().backward()
    assert not calls
    assert model.model.layers[0].mlp.down_proj.weight.grad is not None


def test_every_strategy_gives_the_same_text(tmp_path, calls):
    model = load(WHOLE["qwen3"], tmp_path)
    draft = first_layers(model, 1)
    calls.clear()
    with PearlDecoder.from_pretrained(model, draft, gamma=3) as decoder:
        params = SamplingParams(max_tokens=20)
        texts = [
            [result.token_ids for result in decoder.generate([[5, 6, 7], [9]], params, strategy=strategy)]
            for strategy in ("autoregressive", "sequential", "pearl")
        ]
    assert texts[0] == texts[1] == texts[2]
    assert calls
