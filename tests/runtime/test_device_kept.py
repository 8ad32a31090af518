"""What a batch leaves to the next of its size, whatever came between, and gives back where memory is short."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import nullcontext

import pytest
import torch

from pearl_decode import SamplingParams, memory
from pearl_decode.attention import use_window_attention
from pearl_decode.cache import WindowCache
from pearl_decode.device.engine import DeviceOptions
from pearl_decode.device.kept import MOST_KEPT
from pearl_decode.lanes import graph
from pearl_kernels.captures import turn
from tests.runtime.device import DeviceDecoder, DynamicDecoder, TapeLane
from tests.runtime.scripted import sequence_model
from tests.runtime.test_device_ends import failing
from tests.runtime.test_ends import LINE, PROMPT, VOCAB
from tests.runtime.tiny import build

PARAMS = SamplingParams(temperature=0.8, max_tokens=12, seed=1)


@pytest.fixture
def decoder(llama, near_llama):
    plan = {"gamma": 3, "rule": "coupled", "device_lanes": (TapeLane(), TapeLane())}
    with DeviceDecoder(llama, near_llama, options=DeviceOptions(bucket=64), **plan) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def wanted(llama, near_llama, prompts):
    """The texts of prompts[:n], which are of any batch as they are of each alone."""
    with DynamicDecoder(llama, near_llama, gamma=3, rule="coupled", strategy="pearl") as dynamic:
        return [[r.token_ids for r in dynamic.generate(each, PARAMS)] for each in (prompts, prompts[::-1])]


def captures(decoder) -> list[int]:
    return [lane.captures for lane in decoder.runner.lanes]


@torch.inference_mode()
def poison(rounds) -> None:
    """Leave NaN in the caches of both models."""
    for cache in (rounds.batch.cache, rounds.batch.draft.cache):
        for layer in cache.layers:
            layer.keys.fill_(math.nan)
            layer.values.fill_(math.nan)


def ids(results) -> list[list[int]]:
    return [result.token_ids for result in results]


def test_weights_are_read_where_they_are_when_a_batch_begins(near_llama, prompts):
    """And a batch that ran while the target's weights were replaced leaves nothing to those that begin after that."""
    model, plan = build("llama"), {"gamma": 3, "rule": "coupled"}
    with DeviceDecoder(model, near_llama, **plan, device_lanes=(TapeLane(), TapeLane())) as decoder:
        decoder.generate(prompts[:1], PARAMS)
        _, running = decoder.start(prompts[:1], PARAMS)
        next(running)
        model.load_state_dict({name: 1.5 * value for name, value in model.state_dict().items()}, assign=True)
        got = [ids(decoder.generate(prompts[:1], PARAMS))]
        running.close()
        got += [ids(decoder.generate(prompts[:1], PARAMS))]
    with DynamicDecoder(model, near_llama, **plan, strategy="pearl") as dynamic:
        assert got == [ids(dynamic.generate(prompts[:1], PARAMS))] * 2


def test_a_draft_whose_weights_moved_is_captured_again(llama, prompts):
    draft = build("llama")
    with DeviceDecoder(llama, draft, gamma=3, rule="coupled", device_lanes=(TapeLane(), TapeLane())) as decoder:
        decoder.generate(prompts[:1], PARAMS)
        before = captures(decoder)
        draft.lm_head.weight.data = draft.lm_head.weight.clone()
        decoder.generate(prompts[:1], PARAMS)
        assert captures(decoder) == [2 * count for count in before]


@pytest.fixture
def made(monkeypatch):
    """Keys and values of all caches, as long as they are there, without a collector that would come to it some time."""
    made, update = [], WindowCache.update

    def noted(self, *args, **kwargs):
        before = len(self.layers)
        out = update(self, *args, **kwargs)
        made.extend(weakref.ref(self.layers[-1].keys) for _ in range(before, len(self.layers)))
        return out

    monkeypatch.setattr(WindowCache, "update", noted)
    gc.collect()
    gc.disable()
    yield lambda: sum(keys() is not None for keys in made)
    gc.enable()


def test_rounds_of_the_batch_before_are_used_again(decoder, prompts, wanted):
    """Captured once; and what the batch before left in the caches, NaN even, is not there any more."""
    assert ids(decoder.generate(prompts, PARAMS)) == wanted[0]
    before = captures(decoder)
    [rounds] = decoder.runner.kept.rounds
    poison(rounds)
    assert ids(decoder.generate(prompts[::-1], PARAMS)) == wanted[1]
    assert captures(decoder) == before


def test_what_attention_does_not_look_at_is_not_cleared(near_llama, prompts, wanted, monkeypatch):
    """Neither for the next batch, nor for a request that takes a row; it may be NaN."""
    models = build("llama"), copy.deepcopy(near_llama)
    for model in models:
        use_window_attention(model)
    monkeypatch.setattr(WindowCache, "clear", lambda *_: pytest.fail("cleared"))
    with DeviceDecoder(*models, gamma=3, rule="coupled", max_batch=2) as decoder:
        decoder.generate(prompts[:2], PARAMS)
        [rounds] = decoder.runner.kept.rounds
        poison(rounds)
        assert ids(decoder.generate(prompts, PARAMS)) == wanted[0]


def test_batches_of_sizes_that_take_turns_are_captured_once_each(decoder, prompts, wanted):
    def captured(size) -> bool:
        before = captures(decoder)
        assert ids(decoder.generate(prompts[:size], PARAMS)) == wanted[0][:size]
        return captures(decoder) != before

    sizes = range(1, MOST_KEPT + 1)
    assert all(captured(size) for size in sizes)
    assert not any(captured(size) for size in sizes)
    assert captured(MOST_KEPT + 1)
    assert len(decoder.runner.kept.rounds) == MOST_KEPT
    assert not captured(MOST_KEPT)
    assert captured(1), "of the size that was not used for longest"


def test_rounds_of_longer_batches_serve_shorter_ones(llama, prompts, wanted):
    """The shortest of those that are long enough."""
    lane = TapeLane()
    with DeviceDecoder(llama, rule="coupled", device_lanes=(lane, lane), options=DeviceOptions(bucket=8)) as decoder:
        for index in (2, 0, 1):
            assert ids(decoder.generate([prompts[index]], PARAMS)) == [wanted[0][index]]
        assert capacities(decoder) == [40]
        decoder.generate([prompts[2]], SamplingParams(max_tokens=30))
        before = lane.captures
        assert capacities(decoder) == [40, 56]
        assert ids(decoder.generate([prompts[0]], PARAMS)) == [wanted[0][0]]
        assert capacities(decoder) == [56, 40]
        assert lane.captures == before > 0


def capacities(decoder) -> list[int]:
    return [rounds.capacity for rounds in decoder.runner.kept.rounds]


def test_kept_rounds_are_let_go_before_a_batch_is_refused(decoder, llama, prompts, wanted, made, monkeypatch):
    decoder.generate(prompts[:1], PARAMS)
    decoder.generate(prompts[:2], PARAMS)
    layers, capacity = len(llama.model.layers), decoder.runner.kept.rounds[0].batch.cache.capacity
    assert made() == 2 * 2 * layers
    pair_bytes = 2 * memory.cache_bytes(decoder.target, 1, capacity)

    def free(device):
        """As if there were 5 rows of both models in all."""
        return (5 - sum(len(rounds.batch.state.tokens) for rounds in decoder.runner.kept.rounds)) * pair_bytes

    monkeypatch.setattr(memory, "free_bytes", free)
    assert ids(decoder.generate(prompts[:4], PARAMS)) == wanted[0][:4]
    assert len(decoder.runner.kept.rounds) == 1
    assert made() == 2 * layers, "memory is given back at once"


def test_what_is_let_go_is_given_back_to_the_devices(decoder, prompts, monkeypatch):
    """Or torch would go on holding what only graphs could use that are gone."""
    decoder.generate(prompts[:1], PARAMS)
    [rounds], released = decoder.runner.kept.rounds, []
    for lane in decoder.runner.lanes:
        monkeypatch.setattr(lane, "release", lambda lane=lane: released.append((lane, len(rounds.rounds))))
    decoder.runner.kept.clear()
    assert released == [(lane, 0) for lane in decoder.runner.lanes]


def test_memory_is_given_back_when_no_other_thread_captures(monkeypatch):
    happened = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: happened.append("emptied"))
    with ThreadPoolExecutor(1) as pool:
        with turn:
            graph.give_back(torch.device("cuda", 0))  # as garbage does that this thread collects
            other = pool.submit(graph.give_back, torch.device("cuda", 0))
            with pytest.raises(TimeoutError):
                other.result(0.1)
            happened.append("captured")
        other.result(10)
    assert happened == ["emptied", "captured", "emptied"]


def test_where_memory_is_plenty_nothing_is_let_go(decoder, prompts, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * memory.GIB)
    for size in (1, 2):
        decoder.generate(prompts[:size], PARAMS)
    assert len(decoder.runner.kept.rounds) == 2
    monkeypatch.setattr(memory, "free_bytes", lambda device: memory.GIB)
    decoder.generate(prompts[:3], PARAMS)
    assert len(decoder.runner.kept.rounds) == 1


def test_a_draft_that_fails_gives_its_cache_back_at_once(decoder, near_llama, llama, prompts, made):
    calls = iter(range(100))

    def fail(module, args, kwargs):
        if next(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = near_llama.register_forward_pre_hook(fail, with_kwargs=True)
    requests, rounds = decoder.start(prompts[:1], PARAMS)
    with pytest.warns(RuntimeWarning, match="the draft failed, the target goes on alone"):
        list(rounds)
    hook.remove()
    assert made() == 0
    assert requests[0].error is None
    assert decoder.runner.kept.rounds == []


def test_what_there_was_no_memory_to_capture_is_captured_in_the_next_batch(llama, prompts, wanted, caplog):
    class Short(TapeLane):
        """Without memory for its first graph."""

        def capture(self, work):
            replay = super().capture(work)
            if self.captures == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return replay

    lane = Short()
    with DeviceDecoder(llama, rule="coupled", device_lanes=(lane, lane), options=DeviceOptions(bucket=64)) as decoder:
        for captures in (1, 2, 2):
            assert ids(decoder.generate(prompts[:1], PARAMS)) == wanted[0][:1]
            assert lane.captures == captures
    assert caplog.text.count("queued call by call, as it cannot be captured") == 1


def test_a_target_out_of_memory_finds_more_the_next_time():
    target = failing(sequence_model(LINE, VOCAB), 30, torch.OutOfMemoryError("CUDA out of memory"))
    params = SamplingParams(max_tokens=20)
    with DeviceDecoder(target) as decoder:
        decoder.generate([PROMPT], params)
        assert len(decoder.runner.kept.rounds) == 1
        failed = decoder.generate([PROMPT] * 2, params)
        assert "CUDA out of memory" in failed[0].error
        assert decoder.runner.kept.rounds == []
        [again] = decoder.generate([PROMPT], params)
    assert again.token_ids == LINE[3:23]


def test_texts_that_are_greedy_under_any_rule_are_judged_by_rule_greedy(llama, near_llama, prompts):
    with DeviceDecoder(llama, near_llama, gamma=3, rule="block") as decoder:
        for temperatures, rule in (((0.0, 0.0), "greedy"), ((0.0, 0.8), "block")):
            decoder.generate(prompts[:2], [SamplingParams(temperature=t, max_tokens=4) for t in temperatures])
            assert decoder.runner.kept.rounds[-1].batch.rule == rule
