"""What runs on GPUs keeps the tensors of its devices apart."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from accelerate import dispatch_model

from pearl_decode import SamplingParams
from pearl_decode.distill import distill
from pearl_decode.drafts import new_draft
from tests.cli.conftest import make_model, make_tokenizer
from tests.runtime.device import DeviceDecoder
from tests.runtime.elsewhere import devices
from tests.runtime.tiny import VOCAB


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch):
    """As other backends read memory, where numbers are not."""
    monkeypatch.setenv("PEARL_BACKEND", "reference")


def test_tensors_of_different_devices_do_not_meet():
    with devices():
        first, second = (torch.ones(2, device=torch.device("meta", place)) for place in range(2))
        for others in ((first, second), (first, torch.ones(2)), (second, torch.arange(2))):
            with pytest.raises(RuntimeError, match="of tensors on different devices"):
                torch.add(*others)
        assert (first + second.to(first.device)).tolist() == [2, 2]
        assert second.new_zeros(1).device.index == 1
        assert first[torch.tensor([1])].tolist() == [1]


def answers(target, draft, strategy: str, rule: str) -> list[list[int]]:
    params = [SamplingParams(0.9, max_tokens=6 + n, seed=n) for n in range(3)]
    gamma = "auto" if strategy in ("auto", "lookup") else 3
    with DeviceDecoder(target, draft, strategy=strategy, rule=rule, gamma=gamma, max_batch=2) as decoder:
        results = decoder.generate([[3, 5, 7, 9], [4], [8, 9, 8, 9]], params)
    assert [result.error for result in results] == [None] * 3
    return [result.token_ids for result in results]


def draft_of(target):
    draft = new_draft(target, [0, 2, 3], torch.arange(0, VOCAB, 2))
    draft.induction = torch.ones(3)
    return draft


@pytest.mark.parametrize("places", [(0, 0), (0, 1)], ids=["one device", "two devices"])
@pytest.mark.parametrize(("strategy", "rule"), [("sequential", "token"), ("pearl", "block"), ("auto", "coupled")])
def test_static_rounds_keep_devices_apart(strategy, rule, places, llama, near_llama):
    models = copy.deepcopy(llama), draft_of(near_llama)
    wanted = answers(*models, strategy, rule)
    with devices():
        for model, place in zip(models, places, strict=True):
            model.to(torch.device("meta", place))
        assert answers(*models, strategy, rule) == wanted


@pytest.mark.parametrize("place", [1, 2], ids=["the last one", "one of its own"])
@pytest.mark.parametrize(("strategy", "rule"), [("pearl", "token"), ("sequential", "block"), ("lookup", "token")])
def test_a_target_that_is_spread_over_devices_gives_the_same_texts(strategy, rule, place, llama):
    """As `device_map` spreads it. place: of the draft that is made of it"""
    target = copy.deepcopy(llama)
    wanted = answers(target, draft_of(target), strategy, rule)
    parts = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    parts |= {f"model.layers.{index}": int(index > 1) for index in range(len(target.model.layers))}
    with devices():
        dispatch_model(target, {name: torch.device("meta", index) for name, index in parts.items()})
        draft = draft_of(target).to(torch.device("meta", place))
        on = [{weight.device.index for weight in model.parameters()} for model in (target, draft)]
        assert on == [{0, 1}, {place}]
        assert answers(target, draft, strategy, rule) == wanted


def test_a_draft_is_distilled_on_its_targets_device(tmp_path):
    target, path = make_model(), tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"word {i * i}"}) + "\n" for i in range(12)))
    options = {"draft_vocab": 200, "answers": 1, "answer_tokens": 8, "batch_tokens": 128, "tokens": 300}
    options |= {"tokenizer": make_tokenizer(), "own_prompts": 4}
    wanted = distill(target, path, tmp_path / "here", **options)
    with devices():
        target.to("meta:0")
        there = distill(target, path, tmp_path / "there", **options)
    assert there.acceptance == pytest.approx(wanted.acceptance, abs=0.01)
