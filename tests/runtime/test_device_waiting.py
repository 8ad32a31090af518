"""Requests that wait take the rows of those that ended, in static rounds: beside what is on its way, without a wait."""

from __future__ import annotations

import math
import time
from itertools import cycle

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.auto import Chooser
from pearl_decode.device.draft import StaticDraft
from pearl_decode.device.engine import DeviceEngine, DeviceOptions
from pearl_decode.device.rounds import StaticRounds
from tests.runtime.device import DeviceDecoder, DynamicDecoder, Schedule, TapeLane, no_host_reads
from tests.runtime.scripted import ScriptedModel, one_hot, sequence_model
from tests.runtime.test_device_ends import Letters
from tests.runtime.test_device_rounds import STRATEGIES, answers
from tests.runtime.test_ends import LINE
from tests.runtime.test_waiting import jobs
from tests.runtime.tiny import build

ONE, TWO = ("cpu", "cpu"), ("cpu", "cpu:0")
DEVICES = pytest.mark.parametrize("devices", [ONE, TWO], ids=["one device", "two devices"])


@pytest.fixture
def engines(monkeypatch):
    """How many requests each engine began with."""
    found, init = [], DeviceEngine.__init__

    def noted(self, requests, *args):
        found.append(len(requests))
        init(self, requests, *args)

    monkeypatch.setattr(DeviceEngine, "__init__", noted)
    return found


def alone(target, draft, prompts, params, **plan):
    """What each request gets by itself, in rounds that are not static."""
    with DynamicDecoder(target, draft, **plan) as dynamic:
        return [answers(dynamic, [prompt], p)[0] for prompt, p in zip(prompts, params, strict=True)]


@pytest.mark.parametrize("rule", ["greedy", "token", "block", "coupled"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_text_is_what_it_is_alone(strategy, rule, llama, near_llama, engines):
    plan = {"strategy": strategy, "gamma": 3, "rule": rule}
    wanted = alone(llama, near_llama, *jobs(rule), **plan)
    for lateness in (0, 2):
        options = DeviceOptions(lateness=lateness, bucket=64)
        with DeviceDecoder(llama, near_llama, options=options, max_batch=3, **plan) as static:
            assert answers(static, *jobs(rule)) == wanted
    assert engines == [3, 3]


@pytest.mark.parametrize("strategy", ["autoregressive", "pearl"])
def test_any_models_texts_are_too(strategy, target, engines):
    plan = {"strategy": strategy, "gamma": 3, "rule": "block"}
    wanted = alone(target, target, *jobs("block"), **plan)
    with DeviceDecoder(target, target, options=DeviceOptions(bucket=64), max_batch=3, **plan) as static:
        assert answers(static, *jobs("block")) == wanted
    assert engines == [3]


@DEVICES
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_graphs_go_on_with_them(devices, strategy, llama, near_llama, engines):
    plan = {"strategy": strategy, "gamma": 3, "rule": "block"}
    wanted = alone(llama, near_llama, *jobs("block"), **plan)
    lanes = tuple(map(TapeLane, devices))
    options = DeviceOptions(bucket=128)
    with DeviceDecoder(llama, near_llama, device_lanes=lanes, options=options, max_batch=3, **plan) as static:
        assert answers(static, *jobs("block")) == wanted
    assert engines == [3]
    assert lanes[0].captures <= 2, "what was captured before is replayed"


@DEVICES
@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
def test_events_alone_keep_the_lanes_in_order(devices, strategy, llama, near_llama):
    plan = {"strategy": strategy, "gamma": 3, "rule": "token"}
    wanted = alone(llama, near_llama, *jobs("token"), **plan)
    options = DeviceOptions(lateness=2, bucket=64)
    for seed in range(3):
        lanes = Schedule(seed, devices).lanes
        with DeviceDecoder(llama, near_llama, device_lanes=lanes, options=options, max_batch=3, **plan) as static:
            assert answers(static, *jobs("token")) == wanted


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_host_waits_for_nothing(strategy, llama, near_llama, monkeypatch):
    plan = {"strategy": strategy, "gamma": 3, "rule": "block"}
    replace, guarded = StaticRounds.replace, []
    with DeviceDecoder(llama, near_llama, options=DeviceOptions(bucket=64), max_batch=3, **plan) as static:
        wanted = answers(static, *jobs("block"))

        def noted(self, *args, **named):
            guarded.append(args[0])
            replace(self, *args, **named)

        monkeypatch.setattr(StaticRounds, "replace", noted)
        with no_host_reads(monkeypatch):
            assert answers(static, *jobs("block")) == wanted
    assert guarded


@pytest.mark.parametrize("lateness", [0, 1, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_on_its_way_is_the_old_requests(strategy, lateness):
    """A stop string is seen late, while the device goes on with the text that it ends."""
    alphabet = sequence_model(list(range(26)), 26)
    options = DeviceOptions(lateness=lateness, bucket=32)
    with DeviceDecoder(
        alphabet, alphabet, Letters(), gamma=4, strategy=strategy, options=options, max_batch=2
    ) as decoder:
        params = [SamplingParams(max_tokens=20, stop=stop) for stop in (("ij",), (), ("pq",), ("f",), ())]
        results = decoder.generate(["ab", "ab", "abcdefghijk", "a", "abc"], params)
    texts = ["cdefgh", "cdefghijklmnopqrstuv", "lmno", "bcde", "defghijklmnopqrstuvw"]
    assert [result.text for result in results] == texts
    assert [result.finish_reason for result in results] == ["stop", "length", "stop", "stop", "length"]


def test_a_draft_that_was_away_reads_them_when_it_comes_back(llama, monkeypatch, engines):
    """All of them: one that is the target's equal is never refused."""
    turns = cycle([("sequential", 3)] * 3 + [("autoregressive", 1)] * 6 + [("pearl", 4)] * 3 + [("autoregressive", 1)])
    reads, read, turn_over = [], StaticDraft.read, DeviceEngine._turn_over

    def choose(self, *_):
        turn = next(turns)
        return next(choice for choice in self.choices if (choice.strategy, choice.gamma) == turn)

    def noted(self, tokens, start, lengths):
        reads.append(start)
        read(self, tokens, start, lengths)

    def checked(self, rounds):
        before = list(self.requests)
        turn_over(self, rounds)
        for row, (request, lookup) in enumerate(zip(self.requests, self._lookups, strict=True)):
            assert lookup._tokens[: len(request.prompt_ids)] == request.prompt_ids
            if self._behind and request is not before[row]:
                assert not any(layer.keys[row].any() for layer in rounds.batch.draft.cache.layers), "read too early"

    monkeypatch.setattr(Chooser, "choose", choose)
    monkeypatch.setattr(StaticDraft, "read", noted)
    monkeypatch.setattr(DeviceEngine, "_turn_over", checked)
    plan = {"rule": "coupled", "strategy": "auto", "gamma": "auto"}
    prompts, params = jobs("coupled", 20)
    wanted = [text for text, *_ in alone(llama, None, prompts, params, strategy="autoregressive", rule="coupled")]
    options = DeviceOptions(bucket=64, widths=(4,))
    with DeviceDecoder(llama, llama, options=options, max_batch=3, **plan) as static:
        results = static.generate(prompts, params)
    assert [result.token_ids for result in results] == wanted
    assert sum(result.stats.judged_tokens for result in results) > 20
    for stats in [result.stats for result in results]:
        assert stats.accepted_tokens == stats.judged_tokens
    assert engines == [3]
    assert 0 in reads[1:]


def test_a_longer_text_than_there_is_room_for_waits_for_the_next_batch(engines, llama):
    prompts = [[1] * 10, [2] * 10, [3] * 90, [4] * 12]
    params = [SamplingParams(max_tokens=8)] * 4
    wanted = alone(llama, None, prompts, params, strategy="autoregressive")
    with DeviceDecoder(llama, options=DeviceOptions(bucket=32), max_batch=2) as static:
        assert answers(static, prompts, params) == wanted
    assert engines == [2, 1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nan_that_a_request_left_behind_reaches_no_other(strategy):
    target = build("gpt2")
    with torch.no_grad():
        target.get_input_embeddings().weight[7] = math.nan
    prompts = [[7, 1, 2, 3, 4, 5, 6, 8], [1, 2, 3], [4, 5], [6]]
    params = [SamplingParams(max_tokens=n) for n in (5, 12, 6, 4)]
    plan = {"strategy": strategy, "gamma": 2}
    wanted = alone(target, target, prompts[1:], params[1:], **plan)
    with DeviceDecoder(target, target, options=DeviceOptions(bucket=64), max_batch=2, **plan) as static:
        bad, *others = answers(static, prompts, params)
    assert bad[1] == "error"
    assert others == wanted


def test_a_prompt_that_cannot_be_read_ends_its_own_request_alone(caplog):
    def script(positions, ids):
        if ids.shape[1] > 1 and bool((ids == 1).any()):
            raise MemoryError("too long")
        return one_hot(torch.tensor(LINE)[positions + 1], 64)

    prompts = [LINE[:3], LINE[:3], [1, 1, 1, 1], LINE[:3]]
    params = [SamplingParams(max_tokens=n) for n in (20, 5, 5, 5)]
    with DeviceDecoder(ScriptedModel(64, script), options=DeviceOptions(bucket=64), max_batch=2) as decoder:
        results = decoder.generate(prompts, params)
    assert [result.finish_reason for result in results] == ["length", "length", "error", "length"]
    assert "too long" in results[2].error
    assert "the target failed" in caplog.text
    assert [result.token_ids for result in results] == [LINE[3:23], LINE[3:8], [], LINE[3:8]]


def test_a_draft_that_fails_at_a_new_prompt_costs_a_warning_not_a_token():
    target = sequence_model(LINE, 64)

    def script(positions, ids):
        if bool((ids == 1).any()):
            raise MemoryError("device lost")
        return target.script(positions, ids)

    prompts, params = [LINE[:3], LINE[:3], [1, *LINE[1:4]], LINE[:3]], SamplingParams(max_tokens=9)
    warned = pytest.warns(RuntimeWarning, match="the draft failed, the target goes on alone.*device lost")
    options = DeviceOptions(bucket=64)
    with DeviceDecoder(target, ScriptedModel(64, script), options=options, max_batch=2) as decoder, warned:
        results = decoder.generate(prompts, params)
    assert [result.token_ids for result in results] == [LINE[len(prompt) : len(prompt) + 9] for prompt in prompts]


def test_times_and_counts_are_of_the_time_a_request_ran(llama, near_llama):
    with DeviceDecoder(llama, near_llama, options=DeviceOptions(bucket=64), max_batch=2) as decoder:
        begin = time.perf_counter()
        results = decoder.generate([[1, 2, 3]] * 8, SamplingParams(max_tokens=12))
        seconds = time.perf_counter() - begin
    for stats in [result.stats for result in results]:
        assert (stats.rounds, stats.emitted_tokens) == (results[0].stats.rounds, 12)
        assert stats.prefill_s > 0
        assert 0 < stats.target_busy_s < stats.decode_s
        assert 0 < stats.draft_busy_s < stats.decode_s
    assert sum(result.stats.prefill_s + result.stats.decode_s for result in results[::2]) < seconds


def test_what_the_request_before_had_accepted_is_not_believed_of_the_next(llama, monkeypatch):
    rows, replace = [], Chooser.replace

    def noted(self, replaced):
        rows.append(replaced)
        replace(self, replaced)

    monkeypatch.setattr(Chooser, "replace", noted)
    params = [SamplingParams(max_tokens=n) for n in (4, 12, 12, 4)]
    with DeviceDecoder(llama, options=DeviceOptions(bucket=64), max_batch=2) as decoder:
        decoder.generate([[1, 2, 3]] * 4, params)
    assert rows == [[0], [1]]


def test_the_public_decoder_gives_rows_on(static, llama, prompts, engines):
    with PearlDecoder(llama, strategy="autoregressive", max_batch=2) as decoder:
        decoder.generate(prompts, SamplingParams(max_tokens=4))
    assert engines == [2]
