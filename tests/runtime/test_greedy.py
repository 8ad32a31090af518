"""Greedy decoding emits exactly what the target alone would, for any draft, gamma, strategy and batch."""

from __future__ import annotations

import pytest

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.first_layers import first_layers

COUNT = 40
PARAMS = SamplingParams(max_tokens=COUNT)


@pytest.mark.parametrize("strategy", ["autoregressive", "sequential", "pearl"])
def test_greedy_output_equals_transformers_generate(target, prompts, greedy_reference, strategy):
    expected = [greedy_reference(target, prompt, COUNT) for prompt in prompts]
    assert all(len(set(ids)) > 3 for ids in expected), "the text must not settle on one token"
    with PearlDecoder(target, first_layers(target, 2)) as decoder:
        for gamma in (1, 2, 4, 8):
            together = decoder.generate(prompts, PARAMS, strategy=strategy, gamma=gamma)
            assert [result.token_ids for result in together] == expected
            [alone] = decoder.generate(prompts[:1], PARAMS, strategy=strategy, gamma=gamma)
            assert alone.token_ids == expected[0]


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
def test_good_draft_is_accepted_and_changes_nothing(llama, near_llama, prompts, greedy_reference, strategy):
    expected = [greedy_reference(llama, prompt, COUNT) for prompt in prompts]
    with PearlDecoder(llama, near_llama) as decoder:
        for gamma in (1, 2, 4, 8):
            results = decoder.generate(prompts, PARAMS, strategy=strategy, gamma=gamma)
            assert [result.token_ids for result in results] == expected
            if gamma > 1:
                assert all(result.stats.tokens_per_target_forward > 1.5 for result in results)


def test_eager_attention_decodes_the_same_ragged_batch(llama, near_llama, prompts, greedy_reference):
    expected = [greedy_reference(llama, prompt, COUNT) for prompt in prompts]
    llama.set_attn_implementation("eager")
    try:
        with PearlDecoder(llama, near_llama) as decoder:
            results = decoder.generate(prompts, PARAMS)
    finally:
        llama.set_attn_implementation("sdpa")
    assert [result.token_ids for result in results] == expected


def test_rows_leave_the_batch_as_they_end(llama, near_llama, prompts, greedy_reference):
    lengths = [5, 33, 1, 18, 9]
    params = [SamplingParams(max_tokens=length) for length in lengths]
    with PearlDecoder(llama, near_llama) as decoder:
        results = decoder.generate(prompts, params)
    for result, prompt, length in zip(results, prompts, lengths, strict=True):
        assert result.token_ids == greedy_reference(llama, prompt, length)
        assert result.finish_reason == "length"


def test_more_prompts_than_a_batch_holds_are_taken_in_turn(llama, near_llama, prompts, greedy_reference):
    with PearlDecoder(llama, near_llama, max_batch=2) as decoder:
        results = decoder.generate(prompts, SamplingParams(max_tokens=9))
    assert [r.token_ids for r in results] == [greedy_reference(llama, prompt, 9) for prompt in prompts]


def test_prompt_and_answer_may_fill_the_context(target, greedy_reference):
    prompt = list(range(1, 41))
    with PearlDecoder(target, first_layers(target, 2)) as decoder:
        [result] = decoder.generate([prompt], SamplingParams(max_tokens=120), gamma=8)
    assert result.token_ids == greedy_reference(target, prompt, 120)
