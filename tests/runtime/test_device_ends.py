"""Ends, late reads and failures in static rounds: nothing past an end is shown or counted, no request is lost."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch

from pearl_decode import SamplingParams
from pearl_decode.cache import WindowCache
from pearl_decode.device.engine import DeviceOptions
from pearl_decode.device.rounds import StaticRounds
from pearl_decode.device.runner import lanes_of
from pearl_decode.lanes.queue import InlineLane
from pearl_decode.models import CausalModel
from pearl_decode.ring import Ring
from tests.runtime.device import DeviceDecoder, DynamicDecoder, TapeLane
from tests.runtime.scripted import ScriptedModel, one_hot, sequence_model
from tests.runtime.test_ends import EOS, GAMMA, LINE, PROMPT, VOCAB

STRATEGIES = ("autoregressive", "sequential", "pearl")


@pytest.mark.parametrize("agrees", [True, False], ids=["accepted", "corrected"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_eos_ends_the_text_at_every_index_of_a_chain(strategy, agrees):
    for index in range(2 * GAMMA + 1):
        at = len(PROMPT) + index
        target = sequence_model([*LINE[:at], EOS, *LINE[at:]], VOCAB)
        draft = target if agrees else sequence_model(LINE, VOCAB)
        with DeviceDecoder(target, draft, gamma=GAMMA, strategy=strategy) as decoder:
            [result] = decoder.generate([PROMPT], SamplingParams(max_tokens=40, stop_token_ids=(EOS,)))
        assert result.token_ids == [*LINE[len(PROMPT) : at], EOS]
        assert result.finish_reason == "stop"
        assert result.stats.emitted_tokens == index + 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_max_tokens_ends_the_text_at_every_offset_of_a_window(strategy):
    target = sequence_model(LINE, VOCAB)
    for wrong_at in (None, 5):
        line = [token + (i == wrong_at) for i, token in enumerate(LINE)]
        with DeviceDecoder(target, sequence_model(line, VOCAB), gamma=GAMMA, strategy=strategy) as decoder:
            for count in range(1, 3 * GAMMA):
                [result] = decoder.generate([PROMPT], SamplingParams(max_tokens=count))
                assert result.token_ids == LINE[len(PROMPT) : len(PROMPT) + count]
                assert result.finish_reason == "length"
                assert result.stats.emitted_tokens == count


class Letters:
    """A tokenizer of one letter per id."""

    eos_token_id = None

    def __call__(self, text):
        return {"input_ids": [ord(letter) - 97 for letter in text]}

    def decode(self, ids, **_):
        return "".join(chr(97 + i) for i in ids)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lateness", [0, 1, 2])
def test_stop_string_ends_its_row_alone_however_late_it_is_seen(strategy, lateness):
    alphabet = sequence_model(list(range(26)), 26)
    options = DeviceOptions(lateness=lateness, bucket=16)
    plan = {"gamma": 4, "strategy": strategy, "options": options}
    with DeviceDecoder(alphabet, alphabet, Letters(), **plan) as decoder:
        params = [SamplingParams(max_tokens=20, stop=("ij",)), SamplingParams(max_tokens=20)]
        stopped, whole = decoder.generate(["ab", "ab"], params)
        assert (stopped.text, stopped.finish_reason) == ("cdefgh", "stop")
        assert stopped.stats.emitted_tokens == len(stopped.token_ids) == len("cdefghij")
        assert (whole.text, whole.finish_reason) == ("cdefghijklmnopqrstuv", "length")
        with decoder.stream("ab", params[0]) as stream:
            assert "".join(stream) == "cdefgh"


@pytest.mark.parametrize("lateness", [0, 1, 2])
def test_no_round_is_queued_that_no_row_can_need(lateness, monkeypatch):
    """Whoever has a row: the third request takes the one of the first."""
    played, play = [], StaticRounds.play
    monkeypatch.setattr(StaticRounds, "play", lambda self, *args: played.append(1) or play(self, *args))
    options = DeviceOptions(lateness=lateness, bucket=64)
    with DeviceDecoder(sequence_model(LINE, VOCAB), max_batch=2, options=options) as decoder:
        params = [SamplingParams(max_tokens=count) for count in (4, 9, 20)]
        results = decoder.generate([PROMPT] * 3, params)
    assert [result.token_ids for result in results] == [LINE[3 : 3 + count] for count in (4, 9, 20)]
    assert len(played) == 4 + lateness + 20, "the rounds on their way when a row is given on are another's"


def test_rows_that_have_ended_stand_still():
    """One row ends at once, the other goes on for many rounds; what is behind the first one's end is never shown."""
    target = sequence_model(LINE, VOCAB)
    with DeviceDecoder(target, target, gamma=4) as decoder:
        short, long = decoder.generate([PROMPT, PROMPT], [SamplingParams(max_tokens=1), SamplingParams(max_tokens=60)])
    assert (short.token_ids, short.stats.rounds) == (LINE[3:4], 1)
    assert long.token_ids == LINE[3:63]


def test_cancelled_stream_keeps_what_was_shown():
    target = sequence_model(LINE, VOCAB)
    with DeviceDecoder(target, target, gamma=2) as decoder:
        requests, rounds = decoder.start([PROMPT], SamplingParams(max_tokens=60))
        shown = [token for _, updates in zip(range(3), rounds, strict=False) for u in updates for token in u.token_ids]
        rounds = None
        result = requests[0].result()
        assert (result.finish_reason, result.token_ids) == ("cancelled", LINE[3 : 3 + len(shown)])
        [again] = decoder.generate([PROMPT], SamplingParams(max_tokens=5))
    assert again.token_ids == LINE[3:8]


def failing(model: ScriptedModel, at: int, error: Exception) -> ScriptedModel:
    """The model, but its forward number `at` raises."""
    calls = iter(range(1000))

    def script(positions, ids):
        if next(calls) == at:
            raise error
        return model.script(positions, ids)

    return ScriptedModel(model.config.vocab_size, script)


def test_what_a_dropped_draft_did_is_timed():
    """Or no round after it would be, and strategy auto learnt nothing more."""

    class Late(InlineLane):
        """Whose times are known when they are asked for."""

        def __init__(self):
            super().__init__()
            self.waiting = []

        def finish(self, work):
            with torch.inference_mode():
                work()
            self.waiting.append((0.0, 0.001))

        def settle(self):
            while self.waiting:
                self.times.add(*self.waiting.pop())

    lanes = Late(), Late()
    draft = failing(sequence_model(LINE, VOCAB), 9, MemoryError("device lost"))
    with DeviceDecoder(sequence_model(LINE, VOCAB), draft, strategy="pearl", gamma=4, device_lanes=lanes) as decoder:
        requests, rounds = decoder.start([[0]], SamplingParams(max_tokens=40))
        with pytest.warns(RuntimeWarning, match="the draft failed"):
            timed = [lanes[1].times.count == lanes[1].queued for _ in rounds]
    assert requests[0].error is None
    assert timed[-1]


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("rule", ["token", "coupled"])
@pytest.mark.parametrize("lane", [InlineLane, TapeLane])
def test_draft_that_fails_midway_costs_a_warning_not_a_token(strategy, rule, lane):
    target = sequence_model(LINE, VOCAB)
    for at in range(12 if lane is InlineLane else 8):
        error = MemoryError("device lost") if at % 2 else torch.OutOfMemoryError("device lost")
        draft = failing(sequence_model(LINE, VOCAB), at, error)
        plan = {"gamma": 4, "strategy": strategy, "rule": rule, "device_lanes": (lane(), lane())}
        with DeviceDecoder(target, draft, **plan) as decoder:
            params = SamplingParams(temperature=0.5, max_tokens=40, seed=1)
            with pytest.warns(RuntimeWarning, match="the draft failed, the target goes on alone.*device lost"):
                [result] = decoder.generate([PROMPT], params)
        assert result.token_ids == LINE[3:43]
        assert result.error is None


def test_memory_of_a_failed_draft_is_freed_while_the_target_goes_on(llama, near_llama, prompts, monkeypatch):
    caches, released = [], []
    make = WindowCache.__init__

    def noted(self, capacity):
        make(self, capacity)
        caches.append(weakref.ref(self))

    monkeypatch.setattr(WindowCache, "__init__", noted)
    lanes = (InlineLane(), InlineLane())
    monkeypatch.setattr(lanes[1], "release", lambda: released.append(True))
    with DynamicDecoder(llama) as alone:
        [wanted] = alone.generate(prompts[:1], SamplingParams(max_tokens=30))
    caches.clear()
    calls = iter(range(100))

    def fail(module, args, kwargs):
        if next(calls) == 9:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = near_llama.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        with DeviceDecoder(llama, near_llama, device_lanes=lanes, gamma=3) as decoder:
            requests, rounds = decoder.start(prompts[:1], SamplingParams(max_tokens=30))
            with pytest.warns(RuntimeWarning, match="the draft failed, the target goes on alone"):
                next(_ for _ in rounds if released)
            gc.collect()
            assert sum(cache() is not None for cache in caches) == 1, "the draft's cache is still there"
            for _ in rounds:
                pass
    finally:
        hook.remove()
    assert requests[0].result().token_ids == wanted.token_ids


def test_draft_with_nan_logits_is_refused_not_believed():
    target = sequence_model(LINE, VOCAB)
    draft = ScriptedModel(VOCAB, lambda positions, ids: torch.full((*ids.shape, VOCAB), math.nan))
    with DeviceDecoder(target, draft) as decoder:
        for temperature in (0.0, 0.7):
            [result] = decoder.generate([PROMPT], SamplingParams(temperature=temperature, max_tokens=30))
            assert (result.token_ids, result.stats.accepted_tokens) == (LINE[3:33], 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nan_target_row_fails_that_request_alone(strategy):
    def script(positions, ids):
        logits = one_hot((ids + 1) % 64, 64)
        return logits.masked_fill(((ids < 32) & (positions == 20))[..., None], math.nan)

    target = ScriptedModel(64, script)
    with DeviceDecoder(target, target, strategy=strategy) as decoder:
        bad, good = decoder.generate([[40, 0, 1], [33]], SamplingParams(max_tokens=30, temperature=0.3))
    assert (good.finish_reason, good.token_ids) == ("length", [(33 + i) % 64 for i in range(1, 31)])
    assert bad.finish_reason == "error"
    assert "NaN" in bad.error
    assert bad.token_ids == list(range(2, 2 + len(bad.token_ids)))


def test_target_that_raises_midway_keeps_what_there_was(caplog):
    target = failing(sequence_model(LINE, VOCAB), 8, MemoryError("device lost"))
    with DeviceDecoder(target, sequence_model(LINE, VOCAB), gamma=2) as decoder:
        first, second = decoder.generate([PROMPT, PROMPT], SamplingParams(max_tokens=30))
        [after] = decoder.generate([PROMPT], SamplingParams(max_tokens=30))
    assert first.finish_reason == second.finish_reason == "error"
    assert "device lost" in first.error
    assert first.token_ids == LINE[3 : 3 + len(first.token_ids)] != []
    assert "the target failed" in caplog.text
    assert after.token_ids == LINE[3:33]


def test_prompt_and_answer_may_fill_the_context(llama, near_llama, greedy_reference):
    prompt = list(range(1, 41))
    with DeviceDecoder(llama, near_llama, gamma=8) as decoder:
        [result] = decoder.generate([prompt], SamplingParams(max_tokens=120))
    assert result.token_ids == greedy_reference(llama, prompt, 120)


def test_ring_hands_out_in_order_and_never_what_came_later():
    ring, source = Ring(6, 3, InlineLane()), torch.zeros(1, 2, dtype=torch.int64)
    seen = []
    for i in range(20):
        source.fill_(i)
        ring.push(source)
        if len(ring) == 3:
            seen.append(ring.read())
    assert seen == [[[i, i]] for i in range(18)]
    ring.push(source)
    with pytest.raises(AssertionError, match="3 unread rounds and no more"):
        ring.push(source)


def test_a_second_stream_does_not_take_the_firsts_memory(llama, near_llama, prompts, greedy_reference):
    with DeviceDecoder(llama, near_llama, gamma=3) as decoder:
        both = [decoder.start([prompt], SamplingParams(max_tokens=16)) for prompt in (prompts[0], prompts[0][::-1])]
        for _ in zip(*(rounds for _, rounds in both), strict=False):
            pass
        for _, rounds in both:
            list(rounds)
    for (request,), _ in both:
        assert request.token_ids == greedy_reference(llama, request.prompt_ids, 16)


def test_a_pair_on_different_kinds_of_devices_is_refused(llama):
    target, draft = CausalModel(llama), CausalModel(llama)
    monkey = type("OnGpu", (CausalModel,), {"device": torch.device("cuda:0")})
    target.__class__ = monkey
    with pytest.raises(ValueError, match="draft must be on the target's kind of device, cuda, got cpu"):
        lanes_of(target, draft)
