"""Bad input and failing parts: a clear error or a warning, and nothing else is lost."""

from __future__ import annotations

import math
from itertools import count

import numpy as np
import pytest
import torch

import pearl_decode
from pearl_decode import PearlDecoder, SamplingParams, engine
from pearl_decode.auto import Chooser
from pearl_decode.lanes.draft import DraftLane
from tests.runtime.device import DynamicDecoder
from tests.runtime.scripted import ScriptedModel, one_hot, scripted_pair, sequence_model
from tests.runtime.test_device_ends import Letters
from tests.runtime.tiny import VOCAB, build

LINE = [(7 * i) % 40 + 10 for i in range(120)]
PROMPT = LINE[:3]


def failing(model: ScriptedModel, at: int) -> ScriptedModel:
    """The model, but its forward number `at` raises."""
    calls = iter(range(1000))

    def script(positions, ids):
        if next(calls) == at:
            raise MemoryError("device lost")
        return model.script(positions, ids)

    return ScriptedModel(model.config.vocab_size, script)


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("rule", ["token", "coupled"])
def test_draft_that_raises_midway_costs_a_warning_not_a_token(strategy, rule):
    target = sequence_model(LINE, 64)
    for at in range(12):
        draft = failing(sequence_model(LINE, 64), at)
        with PearlDecoder(target, draft, gamma=4, strategy=strategy, rule=rule) as decoder:
            params = SamplingParams(temperature=0.5, max_tokens=40, seed=1)
            with pytest.warns(RuntimeWarning, match="the draft failed, the target goes on alone.*device lost"):
                [result] = decoder.generate([PROMPT], params)
        assert result.token_ids == LINE[3:43]
        assert result.error is None


def test_draft_with_nan_logits_is_refused_not_believed():
    target = sequence_model(LINE, 64)
    draft = ScriptedModel(64, lambda positions, ids: torch.full((*ids.shape, 64), math.nan))
    with PearlDecoder(target, draft) as decoder:
        for temperature in (0.0, 0.7):
            params = SamplingParams(temperature=temperature, max_tokens=30)
            [result] = decoder.generate([PROMPT], params)
            assert result.token_ids == LINE[3:33]
            assert result.stats.accepted_tokens == 0


@pytest.mark.parametrize("strategy", ["autoregressive", "sequential", "pearl"])
def test_nan_target_row_fails_that_request_alone(strategy):
    bad_after = 20

    def script(positions, ids):
        logits = one_hot((ids + 1) % 64, 64)
        return logits.masked_fill(((ids < 32) & (positions == bad_after))[..., None], math.nan)

    target = ScriptedModel(64, script)
    with PearlDecoder(target, target, strategy=strategy) as decoder:
        bad, good = decoder.generate([[40, 0, 1], [33]], SamplingParams(max_tokens=30, temperature=0.3))
    assert (good.finish_reason, good.token_ids) == ("length", [(33 + i) % 64 for i in range(1, 31)])
    assert bad.finish_reason == "error"
    assert "NaN" in bad.error
    assert bad.token_ids == list(range(2, 2 + len(bad.token_ids)))


def test_nan_weights_fail_the_requests_that_need_them():
    model = build("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = math.nan
    with PearlDecoder(model, build("llama", seed=2)) as decoder:
        results = decoder.generate([[7, 1, 2], [1, 2, 3]], SamplingParams(max_tokens=3))
        alone = decoder.generate([[1, 2, 3]], SamplingParams(max_tokens=3))
    assert [r.finish_reason for r in results] == ["error", "length"]
    assert results[0].error == "the target model gave NaN or infinite logits at position 3"
    assert results[1].token_ids == alone[0].token_ids


def test_target_that_raises_midway_keeps_what_there_was(caplog):
    target = failing(sequence_model(LINE, 64), at=6)
    with PearlDecoder(target, sequence_model(LINE, 64), gamma=2) as decoder:
        first, second = decoder.generate([PROMPT, PROMPT], SamplingParams(max_tokens=30))
        [after] = decoder.generate([PROMPT], SamplingParams(max_tokens=30))
    assert first.finish_reason == second.finish_reason == "error"
    assert "device lost" in first.error
    assert first.token_ids == LINE[3 : 3 + len(first.token_ids)] != []
    assert "the target failed" in caplog.text
    assert after.token_ids == LINE[3:33]


def test_bad_prompt_in_a_list_is_an_error_result_and_the_others_go_on(llama, near_llama):
    prompts = [[1, 2], [], [3, VOCAB], [4] * 155, [5]]
    with PearlDecoder(llama, near_llama) as decoder:
        results = decoder.generate(prompts, SamplingParams(max_tokens=6))
        [expected] = decoder.generate([[5]], SamplingParams(max_tokens=6))
    assert [r.finish_reason for r in results] == ["length", "error", "error", "error", "length"]
    assert results[4].token_ids == expected.token_ids
    assert results[1].error == "prompt must hold at least one token, got none"
    assert results[2].error == f"prompt ids must be in [0, {VOCAB}), got {VOCAB}"
    assert "context of 160 tokens, got 155 + 6" in results[3].error


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        ("\ud800 lone", r"text that is UTF-8, got '\ud800' at character 0"),
        (None, "got None"),
        (3, "got 3"),
        (object(), "got <object objec"),
        (b"abc", "got b'abc'"),
        ({1: 2}, "got {1: 2}"),
        ({1, 2}, "got {1, 2}"),
        ([[1, 2]], "got [1, 2] for an id"),
        ([1.5, 2.0], "got 1.5 for an id"),
        (["1", "2"], "got '1' for an id"),
        ([True], "got True for an id"),
        (torch.tensor([True]), "got True for an id"),
        (torch.tensor([1.0]), "got 1.0 for an id"),
        (np.array([[1, 2]]), "got [1, 2] for an id"),
    ],
)
def test_prompt_that_is_none_is_an_error_result_and_the_others_go_on(bad, got):
    alphabet = sequence_model(list(range(26)), 26)
    with DynamicDecoder(alphabet, tokenizer=Letters()) as decoder:
        first, refused, last = decoder.generate(["ab", bad, [0, 1]], SamplingParams(max_tokens=2))
        with pytest.raises(ValueError, match="prompt: expected"):
            decoder.stream(bad)
    assert (first.text, refused.finish_reason, last.text) == ("cd", "error", "cd")
    assert refused.error.startswith("prompt: expected ")
    assert got in refused.error


def test_ids_are_integers_of_any_kind_and_prompts_any_iterable(llama):
    kinds = [[np.int64(7)], [torch.tensor(7)], torch.tensor([7]), np.array([7], np.int32), range(7, 8), iter([7])]
    with DynamicDecoder(llama) as decoder:
        [expected] = decoder.generate([[7]], SamplingParams(max_tokens=4))
        results = decoder.generate((prompt for prompt in kinds), SamplingParams(max_tokens=4))
        results += decoder.generate(torch.tensor([[7], [7]]), SamplingParams(max_tokens=4))
    assert [result.token_ids for result in results] == [expected.token_ids] * 8


@pytest.mark.parametrize("prompts", [None, 5, b"ab", {"a": 1}, {"a"}])
def test_what_is_no_list_of_prompts_is_named(prompts):
    with DynamicDecoder(sequence_model([1, 2], 8)) as decoder:
        with pytest.raises(ValueError, match="prompts: expected a string or a list of prompts, got"):
            decoder.generate(prompts)
        with pytest.raises(ValueError, match="prompts: expected a string or a list of prompts, got 'abc'"):
            decoder.start("abc")


@pytest.mark.parametrize(
    ("params", "got"),
    [
        (5, "5"),
        ([None, SamplingParams()], "None"),
        ([{"max_tokens": 4}, SamplingParams()], "{'max_tokens': 4}"),
        ({"max_tokens": 4}, "{'max_tokens': 4}"),
        ([SamplingParams()], "1"),
    ],
)
def test_what_is_no_sampling_params_is_named(params, got):
    with DynamicDecoder(sequence_model([1, 2], 8)) as decoder:
        with pytest.raises(ValueError, match=f"params must be .* one for each of 2 prompts, got {got}"):
            decoder.generate([[1], [1]], params)
        with pytest.raises(ValueError, match="params: one prompt takes one SamplingParams, got"):
            decoder.stream([1], params)


def test_stop_string_without_a_tokenizer_is_refused():
    params = SamplingParams(stop=["a"], max_tokens=2)
    with DynamicDecoder(sequence_model([1, 2, 3, 4], 8)) as decoder:
        refused, good = decoder.generate([[1], [1]], [params, SamplingParams(max_tokens=2)])
        with pytest.raises(ValueError, match=r"stop: a decoder without a tokenizer .* got \('a',\)"):
            decoder.stream([1], params)
    assert refused.error.startswith("stop: a decoder without a tokenizer")
    assert good.token_ids == [2, 3]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": (2 - 2**-23) * 2.0**127},
        {"temperature": 1e-5},
        {"top_k": 2**31 - 1},
        {"top_p": 2.0**-126},
        {"min_p": 2.0**-126},
        {"stop_token_ids": (2**63 - 1,)},
        {"seed": 2**64 - 1},
        {"seed": -(2**63)},
    ],
    ids=repr,
)
def test_the_widest_parameters_are_decoded(values):
    params = SamplingParams(**({"temperature": 1.0, "max_tokens": 4} | values))
    with DynamicDecoder(sequence_model(LINE, 64)) as decoder:
        results = decoder.generate([PROMPT, PROMPT], [params, SamplingParams(max_tokens=4)])
    assert [result.error for result in results] == [None, None]
    assert results[1].token_ids == LINE[3:7]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a finite number >= 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be a finite number >= 0, got nan"),
        ({"temperature": 1e-30}, r"temperature must be 0 \(greedy\) or at least 1e-05, got 1e-30"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"min_p": -1}, r"min_p must be in \[0, 1\], got -1"),
        ({"top_k": -1}, "top_k must be an integer >= 0"),
        ({"max_tokens": 0}, "max_tokens must be an integer >= 1, got 0"),
        ({"seed": 2**64}, "seed must be None or a 64-bit integer"),
        ({"stop": ("",)}, "stop must hold non-empty strings"),
        ({"stop_token_ids": (-3,)}, "stop_token_ids must be token ids >= 0, got -3"),
        ({"temperature": math.inf}, "temperature must be a finite number >= 0, got inf"),
        ({"temperature": 10**400}, "temperature must be a finite number >= 0, got 1000"),
        ({"temperature": 1e308}, r"temperature must be a number that float32 holds, got 1e\+308"),
        ({"top_p": 1e-50}, "top_p must be a number that float32 holds, got 1e-50"),
        ({"top_k": 2**40}, "top_k must be at most 2147483647, got 1099511627776"),
        ({"max_tokens": 2**31}, "max_tokens must be at most 2147483647, got 2147483648"),
        ({"seed": True}, "seed must be None or a 64-bit integer, got True"),
        ({"stop": 5}, "stop must be a string or a list of strings, got 5"),
        ({"stop": {"a": 1}}, "stop must be a string or a list of strings, got {'a': 1}"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a list of token ids, got 5"),
        ({"stop_token_ids": "12"}, "stop_token_ids must be a list of token ids, got '12'"),
        ({"stop_token_ids": [2**70]}, "stop_token_ids must be at most 9223372036854775807, got 1180591620717411303424"),
        ({"ignore_eos": "no"}, "ignore_eos must be true or false, got 'no'"),
    ],
)
def test_bad_sampling_params_name_the_field(values, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**values)


def test_no_stops_may_be_said_as_json_does():
    assert SamplingParams(stop=None, stop_token_ids=None) == SamplingParams()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "path"}, "target: expected a causal model of transformers, or .*from_pretrained.*, got 'path'"),
        ({"target": None}, "target: expected a causal model .*, got None"),
        ({"target": torch.nn.Identity()}, r"target: expected a causal model .*, got Identity\(\)"),
        ({"draft": "first-layers:1"}, "draft: expected a causal model .*, got 'first-layers:1'"),
        ({"max_batch": 0}, "max_batch must be an integer >= 1, got 0"),
        ({"max_batch": 1.5}, "max_batch must be an integer >= 1, got 1.5"),
        ({"max_batch": "2"}, "max_batch must be an integer >= 1, got '2'"),
        ({"max_batch": None}, "max_batch must be an integer >= 1, got None"),
        ({"max_batch": True}, "max_batch must be an integer >= 1, got True"),
        ({"reproducible": "no"}, "reproducible must be True or False, got 'no'"),
        ({"compile": "no"}, "compile must be True, False or None, got 'no'"),
        ({"tokenizer": "gpt2"}, "tokenizer must be a loaded tokenizer or None, got 'gpt2'"),
        ({"lanes": 3}, "lanes must be None or two of CpuLane, got 3"),
        ({"lanes": (3, 4)}, r"lanes must be None or two of CpuLane, got \(3, 4\)"),
    ],
)
def test_bad_parts_of_a_decoder_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PearlDecoder(**({"target": sequence_model([1, 2], 8)} | options))


def test_draft_of_the_hook_that_is_no_model_is_named(llama):
    with pytest.raises(ValueError, match=r"draft: expected a causal model .*, got 'first-layers:1'"):
        llama.generate(
            torch.tensor([[1, 2]]),
            custom_generate=pearl_decode.generate,
            draft_model="first-layers:1",
            max_new_tokens=2,
        )


def test_bad_plans_name_the_field():
    target, draft = scripted_pair(0.5, 1)
    for bad in ({"gamma": 0}, {"gamma": 2.0}, {"strategy": "fast"}, {"rule": "lenient"}):
        [(name, value)] = bad.items()
        with pytest.raises(ValueError, match=f"{name} must be .*got {value!r}"):
            PearlDecoder(target, draft, **bad)
        with PearlDecoder(target, draft) as decoder, pytest.raises(ValueError, match=f"{name} must be"):
            decoder.generate([[0]], **bad)
    with PearlDecoder(target) as decoder:
        with pytest.raises(ValueError, match="'pearl' needs a draft model, got draft=None"):
            decoder.generate([[0]], strategy="pearl")
        with pytest.raises(ValueError, match="expected strategy, gamma or rule, got \\['gama'\\]"):
            decoder.generate([[0]], gama=3)
        with pytest.raises(ValueError, match="one for each of 2 prompts, got 1"):
            decoder.generate([[0], [1]], [SamplingParams()])
        with pytest.raises(ValueError, match="a decoder without a tokenizer takes token ids"):
            decoder.generate("hello")


def test_a_draft_that_cannot_read_prompts_when_it_is_first_asked_is_left(llama, monkeypatch):
    """As it reads those late where rounds began without it."""
    turns = count()

    def choose(self, *_):
        strategy = "autoregressive" if next(turns) < 3 else "sequential"
        self._present = next(index for index, choice in enumerate(self.choices) if choice.strategy == strategy)
        return self.present

    def fail(*_):
        raise MemoryError("no memory for prompts")

    monkeypatch.setattr(Chooser, "choose", choose)
    with PearlDecoder(llama, llama, gamma=4) as decoder:
        monkeypatch.setattr(decoder.draft, "read", fail)
        with pytest.warns(RuntimeWarning, match="the draft failed, the target goes on alone.*no memory for prompts"):
            results = decoder.generate([LINE[:9], LINE[:17]], SamplingParams(max_tokens=20))
    assert all(len(result.token_ids) == 20 and result.error is None for result in results)


def test_a_draft_that_is_left_leaves_no_cache(llama, monkeypatch):
    caches = []

    class Noted(DraftLane):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            caches.append(self.cache)

    monkeypatch.setattr(engine, "DraftLane", Noted)
    with PearlDecoder(llama, llama, gamma=2, strategy="sequential") as decoder:
        _, rounds = decoder.start([PROMPT], SamplingParams(max_tokens=30))
        next(rounds)
        [cache] = caches
        assert cache.layers[0].keys is not None
        monkeypatch.setattr(decoder.draft, "forward", None)
        with pytest.warns(RuntimeWarning, match="the draft failed"):
            next(rounds)
        next(rounds)
        assert not cache.layers
        rounds.close()
