"""Drafts on a CPU whose matrices are rounded to 8 bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.bench.peer_models import plain
from pearl_decode.first_layers import first_layers
from pearl_decode.linear import WindowLinear
from pearl_decode.storage import store_in_int8
from pearl_kernels import quantized
from tests.runtime.test_layer import WHOLE as CONFIGS
from tests.runtime.test_layer import load, windows

PARAMS = SamplingParams(max_tokens=24)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def matrices(model) -> dict[str, torch.Tensor]:
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.fixture(params=["first-layers:2", "path"])
def decoder(request, tmp_path):
    target = load(CONFIGS["llama"], tmp_path)
    spec = tmp_path if request.param == "path" else request.param
    with PearlDecoder.from_pretrained(target, spec, gamma=3) as made:
        yield made


def test_a_draft_is_rounded_and_its_target_is_not(decoder):
    draft, target = decoder.draft.model, decoder.target.model
    assert {weight.dtype for weight in matrices(draft).values()} == {torch.int8}
    assert {weight.dtype for weight in matrices(target).values()} == {torch.bfloat16}
    assert draft.get_input_embeddings().weight.dtype is torch.bfloat16
    name = "model.layers.1.mlp.down_proj"
    assert torch.equal(draft.get_submodule(name).rows, quantized(matrices(target)[name])[0])


def test_a_rounded_draft_guesses_for_the_same_text(decoder):
    texts = [
        [result.token_ids for result in decoder.generate([[5, 6, 7], [9]], PARAMS, strategy=strategy)]
        for strategy in ("autoregressive", "sequential", "pearl")
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_whole_model_as_its_own_draft_is_nearly_always_right(tmp_path):
    with PearlDecoder.from_pretrained(load(CONFIGS["llama"], tmp_path), tmp_path, gamma=4) as made:
        [result] = made.generate([[5, 6, 7]], SamplingParams(max_tokens=60), strategy="sequential")
    assert result.stats.accepted_tokens > 0.8 * result.stats.judged_tokens


def test_windows_of_every_width_and_a_copy_in_plain_torch_say_the_same(tmp_path):
    draft = first_layers(load(CONFIGS["llama with biases"], tmp_path), 3)
    exact = windows(draft)
    store_in_int8(draft)
    rounded = windows(draft)
    assert (rounded[0] - exact[0]).abs().max() < 0.1 * exact[0].abs().max()
    assert not torch.equal(rounded[0], exact[0])
    for ours, theirs in zip(rounded, windows(plain(draft)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    few = torch.arange(60)[None]
    with torch.inference_mode():
        many = draft(input_ids=few.expand(3, -1)).logits
        torch.testing.assert_close(draft(input_ids=few).logits, many[:1], rtol=1e-4, atol=1e-4)


def test_a_draft_that_is_loaded_already_or_of_a_given_type_stays_as_it_is(tmp_path):
    model = load(CONFIGS["llama"], tmp_path)
    draft = first_layers(model, 2)
    with PearlDecoder.from_pretrained(model, draft) as made:
        assert {weight.dtype for weight in matrices(made.draft.model).values()} == {torch.bfloat16}
    with PearlDecoder.from_pretrained(tmp_path, "first-layers:2", dtype=torch.float32) as made:
        assert {weight.dtype for weight in matrices(made.draft.model).values()} == {torch.float32}


def test_a_module_that_shares_the_weight_keeps_it():
    layer = nn.Linear(8, 4)
    layer.__class__ = WindowLinear
    shared = layer.weight
    layer.store_in_int8()
    assert shared.dtype is torch.float32
    layer.widen()
    assert (layer.weight - shared).abs().max() <= shared.abs().max() / 254 + 1e-6
