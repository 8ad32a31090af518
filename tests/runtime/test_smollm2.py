"""Real weights, real prompts: the built-in target decodes exactly as transformers does."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.first_layers import first_layers
from tests.runtime.scripted import sequence_model

COUNT = 16
QUESTIONS = [
    "Write a Python function that returns the n-th Fibonacci number.",
    "A baker sells 14 loaves in the morning and twice as many in the afternoon. How many in all?",
    "Pourquoi le ciel est-il bleu ?",
    "Name three rivers in Africa.",
    "Hi!",
]


@pytest.fixture(scope="module")
def model(smollm2):
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True).input_ids
        for question in QUESTIONS
    ]


@pytest.fixture(scope="module")
def expected(model, prompts):
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False)
        answers.append(output[0, len(prompt) :].tolist())
    return answers


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("gamma", [1, 2, 4, 8])
def test_one_prompt_with_a_draft_that_is_mostly_right(model, prompts, expected, strategy, gamma):
    """Windows are accepted and refused at every depth: the draft is wrong at every fifth position."""
    line = prompts[0] + expected[0]
    guessed = [token if i % 5 else 11 for i, token in enumerate(line)]
    draft = sequence_model(guessed, model.config.vocab_size)
    with PearlDecoder(model, draft, strategy=strategy, gamma=gamma) as decoder:
        [result] = decoder.generate([prompts[0]], SamplingParams(max_tokens=COUNT))
    assert result.token_ids == expected[0]
    assert result.stats.accepted_tokens > 0


@pytest.mark.parametrize("strategy", ["autoregressive", "sequential", "pearl"])
def test_ragged_batch_with_its_own_first_layers_as_draft(model, prompts, expected, strategy):
    with PearlDecoder(model, first_layers(model, 2), strategy=strategy, gamma=4) as decoder:
        results = decoder.generate(prompts, SamplingParams(max_tokens=COUNT))
    assert [result.token_ids for result in results] == expected


def test_coupled_sampling_repeats_autoregressive_text(model, prompts):
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=COUNT, seed=7)
    with PearlDecoder(model, first_layers(model, 2), rule="coupled", gamma=2) as decoder:
        ours = decoder.generate(prompts[:2], params)
        plain = decoder.generate(prompts[:2], params, strategy="autoregressive")
    assert [r.token_ids for r in ours] == [r.token_ids for r in plain]
