"""The target's own answers: resumed, in parts where memory ends, and the decoder's where they are greedy."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.distill import answers, attention
from pearl_decode.distill.answers import plan_jobs, read_answers, write_answers
from pearl_decode.distill.prompts import Prompt
from pearl_decode.models import CausalModel
from tests.cli.conftest import make_model


@pytest.fixture(scope="module")
def target():
    return make_model()


def test_answers_are_resumed_past_a_line_cut_off(target, tmp_path):
    prompts = [Prompt(str(i), list(range(3, 5 + i))) for i in range(6)]
    jobs = plan_jobs(prompts, 2, seed=3)
    causal = CausalModel(target, "target")
    whole = write_answers(causal, jobs, tmp_path / "whole.jsonl", max_tokens=8, batch=4, eos_ids=[0])
    content = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "part.jsonl").write_bytes(content[: len(content) // 2])
    seen = []
    again = write_answers(causal, jobs, tmp_path / "part.jsonl", max_tokens=8, batch=3, eos_ids=[0], report=seen.append)
    key = lambda answer: (answer.key, answer.round)  # noqa: E731
    assert sorted(again, key=key) == sorted(whole, key=key) == sorted(seen, key=key)
    assert sorted(read_answers(tmp_path / "part.jsonl"), key=key) == sorted(whole, key=key)
    assert {answer.temperature for answer in whole} == {0.0, 0.7, 1.0}


def test_only_answers_that_were_asked_for_are_reported(target, tmp_path):
    jobs = plan_jobs([Prompt(str(i), [3, 4 + i]) for i in range(4)], 1, seed=3)
    causal, options = CausalModel(target, "target"), {"max_tokens": 4, "batch": 4, "eos_ids": [0]}
    write_answers(causal, jobs, tmp_path / "a.jsonl", **options)
    seen = []
    assert len(write_answers(causal, jobs[:3], tmp_path / "a.jsonl", **options, report=seen.append)) == 4
    assert {answer.key for answer in seen} == {job.prompt.key for job in jobs[:3]}


def test_a_batch_that_does_not_fit_into_memory_is_answered_in_parts(target, tmp_path, monkeypatch, caplog):
    jobs = plan_jobs([Prompt(str(i), [3] * (i + 1)) for i in range(7)], 1, seed=3)
    causal, options = CausalModel(target, "target"), {"max_tokens": 8, "batch": 7, "eos_ids": [0]}
    whole = write_answers(causal, jobs, tmp_path / "whole.jsonl", **options)
    forward = answers._forward

    def small(target, inputs, *rest):
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(target, inputs, *rest)

    monkeypatch.setattr(answers, "_forward", small)
    parts = write_answers(causal, jobs, tmp_path / "parts.jsonl", **options)
    assert sorted(parts, key=lambda answer: answer.key) == sorted(whole, key=lambda answer: answer.key)
    assert "7 answers at once do not fit into memory: 7 are left, in two halves" in caplog.text
    monkeypatch.setattr(answers, "_forward", lambda *_: small(target, [0] * 3))
    with pytest.raises(torch.OutOfMemoryError):
        write_answers(causal, jobs, tmp_path / "none.jsonl", **options)


def test_the_last_of_a_batch_is_answered_by_itself_where_memory_ended(target, tmp_path, monkeypatch):
    jobs = plan_jobs([Prompt(str(i), [3] * (i + 1)) for i in range(3)], 1, seed=3)
    causal, options = CausalModel(target, "target"), {"max_tokens": 40, "batch": 3, "eos_ids": range(0, 259, 8)}
    whole = write_answers(causal, jobs, tmp_path / "whole.jsonl", **options)
    forward, widest = answers._forward, 0

    def small(target, inputs, *rest):
        nonlocal widest
        widest = max(widest, len(inputs))
        if len(inputs) == 1 < widest:
            widest = 0
            raise torch.OutOfMemoryError("out of memory")
        return forward(target, inputs, *rest)

    monkeypatch.setattr(answers, "_forward", small)
    assert write_answers(causal, jobs, tmp_path / "again.jsonl", **options) == whole


def test_padding_that_sees_nothing_spoils_no_answer(target, tmp_path, monkeypatch):
    """Some kernels of a GPU make NaN of rows of which all is masked."""
    jobs = plan_jobs([Prompt(str(i), [3] * (2 * i + 1)) for i in range(4)], 1, seed=3)
    causal, options = CausalModel(target, "target"), {"max_tokens": 6, "batch": 4, "eos_ids": [0]}
    whole = write_answers(causal, jobs, tmp_path / "whole.jsonl", **options)
    forward, seen = attention.sdpa_attention_forward, []

    def strict(module, query, key, value, mask, **kwargs):
        found, weights = forward(module, query, key, value, mask, **kwargs)
        seen.append(mask)
        return found.masked_fill(~mask.any(-1).transpose(1, 2)[..., None], torch.nan), weights

    monkeypatch.setattr(attention, "sdpa_attention_forward", strict)
    assert write_answers(causal, jobs, tmp_path / "strict.jsonl", **options) == whole
    assert seen


@pytest.mark.parametrize("size", [1, 6, 12])
def test_prompts_are_read_a_few_at_a_time(target, tmp_path, monkeypatch, size):
    jobs = plan_jobs([Prompt(str(i), [3] * (i + 1)) for i in range(5)], 1, seed=3)
    causal, options = CausalModel(target, "target"), {"max_tokens": 6, "batch": 5, "eos_ids": [0]}
    whole = write_answers(causal, jobs, tmp_path / "whole.jsonl", **options)
    forward, read = answers._forward, []

    def counted(target, inputs, *rest):
        read.append(inputs.shape)
        return forward(target, inputs, *rest)

    monkeypatch.setattr(answers, "_forward", counted)
    monkeypatch.setattr(answers, "READ_ON_CPU", size)
    assert write_answers(causal, jobs, tmp_path / "parts.jsonl", **options) == whole
    parts = {1: [(1, i) for i in (1, 2, 3, 4, 5)], 6: [(2, 2), (1, 3), (1, 4), (1, 5)], 12: [(3, 3), (2, 5)]}[size]
    assert read[: len(parts)] == parts


def test_logits_that_are_no_numbers_are_no_answer(tmp_path):
    target = make_model()
    target.get_output_embeddings().weight.data[5] = torch.nan
    jobs = plan_jobs([Prompt("a", [3, 4])], 1, seed=3)
    with pytest.raises(ValueError, match=r"target: after 0 tokens of an answer to 'a' its logits are .*TARGET_INVALID"):
        write_answers(CausalModel(target), jobs, tmp_path / "a.jsonl", max_tokens=4, batch=4, eos_ids=[0])
    assert not read_answers(tmp_path / "a.jsonl")


def test_greedy_answers_are_the_decoders(target, tmp_path):
    prompts = [Prompt(str(i), list(range(3, 5 + 2 * i))) for i in range(5)]
    answers = write_answers(
        CausalModel(target, "target"),
        plan_jobs(prompts, 1, 0),
        tmp_path / "a.jsonl",
        max_tokens=10,
        batch=5,
        eos_ids=[0],
    )
    with PearlDecoder(target) as decoder:
        for answer in answers:
            params = SamplingParams(temperature=answer.temperature, max_tokens=10)
            if answer.temperature == 0:
                assert decoder.generate([answer.prompt_ids], params)[0].token_ids == answer.answer_ids


def test_a_mask_for_each_head_is_kept_as_it_is():
    """As Doge has; most models have one for all heads."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, width, 8, generator=generator) for heads, width in ((4, 1), (2, 5), (2, 5))
    )
    mask = torch.randn(2, 4, 1, 5, generator=generator)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    got, _ = attention._attention(module, query, key, value, mask)
    wanted = scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    torch.testing.assert_close(got, wanted.transpose(1, 2))
