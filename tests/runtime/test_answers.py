"""The target's own answers: resumed, in parts where memory ends, and the decoder's where they are greedy."""

from __future__ import annotations

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams, trials
from pearl_decode.attention import ATTENTION_NAME, sdpa_replaced
from pearl_decode.distill import answers
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
    forward = CausalModel.forward

    def small(self, inputs, *rest, **options):
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, inputs, *rest, **options)

    monkeypatch.setattr(CausalModel, "forward", small)
    parts = write_answers(causal, jobs, tmp_path / "parts.jsonl", **options)
    assert sorted(parts, key=lambda answer: answer.key) == sorted(whole, key=lambda answer: answer.key)
    assert "7 answers at once do not fit into memory: 7 are left, in two halves" in caplog.text
    monkeypatch.setattr(CausalModel, "forward", lambda *_, **__: small(causal, [0] * 3))
    with pytest.raises(torch.OutOfMemoryError):
        write_answers(causal, jobs, tmp_path / "none.jsonl", **options)


def test_the_last_of_a_batch_is_answered_by_itself_where_memory_ended(target, tmp_path, monkeypatch):
    jobs = plan_jobs([Prompt(str(i), [3] * (i + 1)) for i in range(3)], 1, seed=3)
    causal, options = CausalModel(target, "target"), {"max_tokens": 40, "batch": 3, "eos_ids": range(0, 259, 8)}
    whole = write_answers(causal, jobs, tmp_path / "whole.jsonl", **options)
    forward, widest = CausalModel.forward, 0

    def small(self, inputs, *rest, **options):
        nonlocal widest
        widest = max(widest, len(inputs))
        if len(inputs) == 1 < widest:
            widest = 0
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, inputs, *rest, **options)

    monkeypatch.setattr(CausalModel, "forward", small)
    assert write_answers(causal, jobs, tmp_path / "again.jsonl", **options) == whole


@pytest.mark.parametrize("size", [1, 6, 12])
def test_prompts_are_read_a_few_at_a_time(target, tmp_path, monkeypatch, size):
    jobs = plan_jobs([Prompt(str(i), [3] * (i + 1)) for i in range(5)], 1, seed=3)
    causal, options = CausalModel(target, "target"), {"max_tokens": 6, "batch": 5, "eos_ids": [0]}
    whole = write_answers(causal, jobs, tmp_path / "whole.jsonl", **options)
    forward, read = CausalModel.read, []

    def counted(self, inputs, *rest):
        read.append(inputs.shape)
        return forward(self, inputs, *rest)

    monkeypatch.setattr(CausalModel, "read", counted)
    monkeypatch.setattr(answers, "READ_ON_CPU", size)
    assert write_answers(causal, jobs, tmp_path / "parts.jsonl", **options) == whole
    # Of prompts with 1 to 5 tokens all but the last.
    assert read == {1: [(1, i) for i in (1, 2, 3, 4)], 6: [(3, 2), (1, 3), (1, 4)], 12: [(4, 3), (1, 4)]}[size]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answers_are_the_same_where_attention_cannot_be_replaced(target, tmp_path, monkeypatch, attention):
    """And afterwards the model attends as it did before."""
    jobs = plan_jobs([Prompt(str(i), [3] * (2 * i + 1)) for i in range(4)], 1, seed=3)
    causal, options = CausalModel(target, "target"), {"max_tokens": 6, "batch": 4, "eos_ids": [0]}
    forward, seen = CausalModel.forward, set()

    def watched(self, *arguments, **named):
        seen.add(self.config._attn_implementation)
        return forward(self, *arguments, **named)

    monkeypatch.setattr(CausalModel, "forward", watched)
    whole = write_answers(causal, jobs, tmp_path / "whole.jsonl", **options)
    assert ATTENTION_NAME in seen
    assert target.config._attn_implementation == "sdpa"
    seen.clear()
    monkeypatch.setattr(trials, "try_window_attention", lambda model: "no")
    with sdpa_replaced(target, attention):
        assert write_answers(causal, jobs, tmp_path / "other.jsonl", **options) == whole
    assert seen == {attention}


def test_logits_that_are_no_numbers_are_no_answer(tmp_path):
    target = make_model()
    target.get_output_embeddings().weight.data[5] = torch.nan
    jobs = plan_jobs([Prompt("a", [3, 4])], 1, seed=3)
    with pytest.raises(ValueError, match=r"target: after 0 tokens of an answer to 'a' its logits are .*TARGET_INVALID"):
        write_answers(CausalModel(target), jobs, tmp_path / "a.jsonl", max_tokens=4, batch=4, eos_ids=[0])
    assert not read_answers(tmp_path / "a.jsonl")


def test_greedy_answers_are_the_decoders(target, tmp_path):
    prompts = [Prompt(str(i), list(range(3, 5 + 2 * i))) for i in (0, 1, 2, 50, 4)]
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
