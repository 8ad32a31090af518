"""transformers' own hook: model.generate(custom_generate=pearl_decode.generate, draft_model=...)."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import pearl_decode
from tests.runtime.tiny import build


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.put_ids: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.put_ids.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def _inputs(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def test_greedy_output_equals_plain_generate_for_a_left_padded_batch(llama, near_llama, prompts):
    inputs = _inputs(prompts)
    plain = llama.generate(**inputs, max_new_tokens=25, do_sample=False, pad_token_id=0)
    ours = llama.generate(
        **inputs, max_new_tokens=25, do_sample=False, pad_token_id=0,
        custom_generate=pearl_decode.generate, draft_model=near_llama,
    )  # fmt: skip
    assert torch.equal(ours, plain)


def test_end_tokens_and_dict_outputs_are_as_in_plain_generate(llama, near_llama, prompts):
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    inputs = _inputs(prompts[:2])
    free = llama.generate(**inputs, **options).sequences
    options["eos_token_id"] = [int(free[0, -5]), int(free[1, -11])]
    plain = llama.generate(**inputs, **options)
    ours = llama.generate(**inputs, **options, custom_generate=pearl_decode.generate, draft_model=near_llama)
    assert torch.equal(ours.sequences, plain.sequences)
    assert plain.sequences.shape[1] < free.shape[1] or (plain.sequences == 0).any()


def test_minus_one_is_no_end_token_as_in_plain_generate(llama, near_llama, prompts):
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    plain = llama.generate(**_inputs(prompts), **options)
    options |= {"custom_generate": pearl_decode.generate, "draft_model": near_llama}
    assert torch.equal(llama.generate(**_inputs(prompts), **options), plain)


@pytest.mark.parametrize("pad", [None, 7])
def test_rows_that_end_early_are_padded_as_in_plain_generate(llama, near_llama, prompts, pad):
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": pad}
    inputs = _inputs(prompts[:2])
    free = llama.generate(**inputs, **options)
    options["eos_token_id"] = [int(free[1, -11]), 0]
    plain = llama.generate(**inputs, **options)
    ours = llama.generate(**inputs, **options, custom_generate=pearl_decode.generate, draft_model=near_llama)
    assert torch.equal(ours, plain)
    assert plain[1, -1] == (options["eos_token_id"][0] if pad is None else pad)


@pytest.mark.parametrize("form", [int, lambda end: [end], torch.tensor, lambda end: torch.tensor([end])])
def test_end_tokens_may_come_in_any_form_that_plain_generate_takes(llama, near_llama, prompts, form):
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    inputs = _inputs(prompts[:1])
    free = llama.generate(**inputs, **options)
    options["eos_token_id"] = form(int(free[0, -8]))
    plain = llama.generate(**inputs, **options)
    ours = llama.generate(**inputs, **options, custom_generate=pearl_decode.generate, draft_model=near_llama)
    assert torch.equal(ours, plain)
    assert plain.shape[1] < free.shape[1]


def test_streamer_gets_prompt_and_every_new_token(llama, near_llama, prompts):
    streamer = Recorder()
    output = llama.generate(
        **_inputs(prompts[:1]), max_new_tokens=15, do_sample=False, pad_token_id=0, streamer=streamer,
        custom_generate=pearl_decode.generate, draft_model=near_llama, gamma=3,
    )  # fmt: skip
    assert streamer.put_ids[0] == prompts[0]
    assert list(chain.from_iterable(streamer.put_ids)) == output[0].tolist()
    assert len(streamer.put_ids) > 3
    assert streamer.ended


def test_streamer_is_found_from_a_function_around_ours(llama, near_llama, prompts):
    def decode(*args: Any, **kwargs: Any) -> torch.Tensor:
        return pearl_decode.generate(*args, draft_model=near_llama, **kwargs)

    streamer = Recorder()
    output = llama.generate(
        **_inputs(prompts[:1]), max_new_tokens=15, do_sample=False, streamer=streamer, custom_generate=decode
    )
    assert list(chain.from_iterable(streamer.put_ids)) == output[0].tolist()
    assert streamer.ended


def test_sampling_follows_torchs_seed(llama, near_llama, prompts):
    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return llama.generate(
            **_inputs(prompts[:1]), max_new_tokens=20, do_sample=True, temperature=1.5, top_k=40, pad_token_id=0,
            custom_generate=pearl_decode.generate, draft_model=near_llama,
        ).tolist()  # fmt: skip

    assert sample(1) == sample(1) != sample(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_model": None}, "draft_model: expected the draft"),
        ({"repetition_penalty": 1.3}, "logits_processor: expected only .* got \\['RepetitionPenalty"),
        ({"max_time": 3.0}, "stopping_criteria: expected only .* got \\['MaxTimeCriteria"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores: this decoder returns token ids"),
        ({"num_beams": 2}, "num_beams must be 1, got 2"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha must be 0, got 0.6"),
        ({"dola_layers": "low"}, "dola_layers must be None, got 'low'"),
        ({"position_ids": torch.arange(5, 11)[None]}, "position_ids: expected .* got tensor\\(\\[\\[ 5,  6,"),
        ({"inputs_embeds": torch.zeros(1, 6, 48)}, "inputs_embeds: expected None, .* got \\(1, 6, 48\\)"),
        ({"gamma": 0}, "gamma must be an integer >= 1 or 'auto', got 0"),
    ],
)
def test_what_would_be_ignored_is_refused(llama, near_llama, prompts, options, message):
    call = {"draft_model": near_llama, "max_new_tokens": 5, "pad_token_id": 0} | options
    with pytest.raises(ValueError, match=message):
        llama.generate(**_inputs(prompts[:1]), custom_generate=pearl_decode.generate, **call)


def test_inputs_embeds_without_ids_are_refused_by_name(llama, near_llama):
    with pytest.raises(ValueError, match="inputs_embeds: expected None"):
        llama.generate(
            inputs_embeds=torch.zeros(1, 6, 48), max_new_tokens=5,
            custom_generate=pearl_decode.generate, draft_model=near_llama,
        )  # fmt: skip


def test_what_models_take_beside_tokens_is_refused_by_name():
    """Which would be images, too."""
    model, ids = build("gpt2"), torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match="token_type_ids: expected None, as models are given tokens alone, got Tensor"):
        model.generate(
            ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.full_like(ids, 3), max_new_tokens=5,
            pad_token_id=0, custom_generate=pearl_decode.generate, draft_model=model,
        )  # fmt: skip


@pytest.mark.parametrize("nothing", [None, False, {}])
def test_nothing_beside_tokens_is_nothing_to_refuse(llama, nothing):
    ids, config = torch.tensor([[5, 6, 7]]), GenerationConfig(max_length=5)
    none = LogitsProcessorList(), StoppingCriteriaList()
    assert pearl_decode.generate(llama, ids, *none, config, llama, images=nothing).shape == (1, 5)


@pytest.mark.parametrize("planes", [(), (3,)])
@pytest.mark.parametrize("at_padding", [0, 1])
def test_positions_may_be_those_that_the_attention_mask_gives(llama, near_llama, prompts, at_padding, planes):
    inputs = _inputs(prompts[:3])
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, at_padding).expand(*planes, *mask.shape)
    options = {"max_new_tokens": 10, "do_sample": False}
    plain = llama.generate(**inputs, **options)
    ours = llama.generate(
        **inputs, **options, position_ids=positions, custom_generate=pearl_decode.generate, draft_model=near_llama
    )
    assert torch.equal(ours, plain)


@pytest.mark.parametrize(
    ("processor", "options", "message"),
    [
        (TopKLogitsWarper(1), {"do_sample": True}, "expected TopKLogitsWarper with the config's top_k=50, got 1"),
        (TemperatureLogitsWarper(1e-3), {"do_sample": True}, "with the config's temperature=1.0, got 0.001"),
        (TopPLogitsWarper(0.5), {"do_sample": True, "top_p": 0.5}, "expected one of each, got .*TopP.*TopK.*TopP"),
        (TopKLogitsWarper(50), {"do_sample": False}, "expected none with do_sample=False, got 1"),
        (type("TopKLogitsWarper", (TopKLogitsWarper,), {})(50), {"do_sample": True}, "expected only .*, got"),
    ],
)
def test_callers_own_processors_are_refused_where_they_are_not_the_configs(
    llama, near_llama, prompts, processor, options, message
):
    with pytest.raises(ValueError, match=f"logits_processor: .*{message}"):
        llama.generate(
            **_inputs(prompts[:1]), max_new_tokens=5, **options, logits_processor=LogitsProcessorList([processor]),
            custom_generate=pearl_decode.generate, draft_model=near_llama,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (MaxLengthCriteria(9), "expected MaxLengthCriteria with the config's max_length=11, got 9"),
        (EosTokenCriteria([5]), "expected EosTokenCriteria with the config's eos_token_id=\\[3, 4\\], got \\[5\\]"),
    ],
)
def test_callers_own_criteria_are_refused_where_they_are_not_the_configs(
    llama, near_llama, prompts, criterion, message
):
    with pytest.raises(ValueError, match=f"stopping_criteria: {message}"):
        llama.generate(
            **_inputs(prompts[:1]), max_new_tokens=5, eos_token_id=[3, 4],
            stopping_criteria=StoppingCriteriaList([criterion]),
            custom_generate=pearl_decode.generate, draft_model=near_llama,
        )  # fmt: skip


def test_callers_own_criteria_may_say_what_the_config_says(llama, near_llama, prompts):
    output = llama.generate(
        **_inputs(prompts[:1]), max_new_tokens=5, do_sample=True, temperature=0.7, top_p=0.9, min_p=0.1,
        eos_token_id=[3, 4], stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(11), EosTokenCriteria([4, 3])]),
        custom_generate=pearl_decode.generate, draft_model=near_llama,
    )  # fmt: skip
    assert output.shape[1] <= 11


def test_streamer_takes_a_batch_of_one_only(llama, near_llama, prompts):
    with pytest.raises(ValueError, match="streamer: expected a batch of 1, got 2"):
        llama.generate(
            **_inputs(prompts[:2]), max_new_tokens=5, pad_token_id=0, streamer=Recorder(),
            custom_generate=pearl_decode.generate, draft_model=near_llama,
        )  # fmt: skip


def test_models_stay_in_the_mode_that_they_were_in(prompts):
    target, draft = build("llama"), build("llama", seed=2)
    for model in (target, draft):
        model.train()
        model.model.norm.eval()
    ids = torch.tensor([prompts[0]])
    target.generate(ids, custom_generate=pearl_decode.generate, draft_model=draft, max_new_tokens=3)
    for model in (target, draft):
        assert [module for module in model.modules() if not module.training] == [model.model.norm]
