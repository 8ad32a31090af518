"""PearlDecoder on models on a GPU, as a user has them: the target's own text, and no wait in a round."""

from __future__ import annotations

import random

import pytest
import torch

import pearl_decode
from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.attention import ATTENTION_NAME
from pearl_decode.auto import Chooser
from pearl_decode.device.runner import DeviceRunner
from tests.gpu.test_decoding_lanes import PROMPTS, guard, pair

pytestmark = pytest.mark.gpu

STRATEGIES = ("auto", "autoregressive", "lookup", "sequential", "pearl")
COUNTS = (24, 9, 1, 60, 17)
GREEDY = [SamplingParams(max_tokens=n) for n in COUNTS]
COUPLED = [SamplingParams(temperature=0.8, max_tokens=n, seed=n) for n in COUNTS]


@pytest.fixture(scope="module")
def models(gpu):
    return pair(gpu)


@pytest.fixture(scope="module")
def own_texts(models):
    """transformers' greedy texts of the target; read before its attention is switched."""
    texts = []
    for prompt, count in zip(PROMPTS, COUNTS, strict=True):
        ids = torch.tensor([prompt], device=models[0].device)
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
        texts.append(models[0].generate(ids, max_new_tokens=count, **options)[0, len(prompt) :].tolist())
    return texts


def ids(results):
    assert [result.error for result in results] == [None] * len(results)
    return [result.token_ids for result in results]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("max_batch", [8, 2])
def test_greedy_text_is_the_targets_own_and_no_round_waits(strategy, max_batch, models, own_texts, monkeypatch):
    with PearlDecoder(*models, strategy=strategy, max_batch=max_batch, compile=False) as decoder:
        assert isinstance(decoder.runner, DeviceRunner)
        assert ids(decoder.generate(PROMPTS, GREEDY)) == own_texts
        # What is captured waits once; auto may also choose something for the first time.
        played = guard(monkeypatch) if strategy != "auto" else []
        results = decoder.generate(PROMPTS, GREEDY)
        assert ids(results) == own_texts
    assert len(played) > 10 or strategy == "auto"
    if strategy == "auto":
        assert sum(results[3].stats.choices.values()) == results[3].stats.rounds


def test_models_are_left_as_they_were(gpu):
    target, draft = pair(gpu)
    before = [model.config._attn_implementation for model in (target, draft)]
    with PearlDecoder(target, draft, compile=False) as decoder:
        decoder.generate(PROMPTS[:1], GREEDY[:1])
        assert target.config._attn_implementation == ATTENTION_NAME
    assert [model.config._attn_implementation for model in (target, draft)] == before


@pytest.mark.parametrize("rule", ["coupled", "token", "block"])
def test_shapes_change_without_a_wait_and_cost_no_text(rule, models, monkeypatch):
    """Every round another choice, whatever it costs. Only a coupled text does not depend on it."""
    with PearlDecoder(*models, rule="coupled", strategy="autoregressive", compile=False) as decoder:
        wanted = ids(decoder.generate(PROMPTS, COUPLED))
    dice = random.Random(7)
    monkeypatch.setattr(Chooser, "choose", lambda self, *_: dice.choice(self.choices))
    with PearlDecoder(*models, rule=rule, compile=False) as decoder:
        for lane in decoder.runner.lanes:
            lane.can_capture = False  # to capture is to wait
        decoder.generate(PROMPTS, COUPLED)
        played = guard(monkeypatch)
        results = decoder.generate(PROMPTS, COUPLED)
    assert len(played) > 10
    assert ids(results) == wanted or rule != "coupled"
    assert [len(result.token_ids) for result in results] == list(COUNTS)


def test_captured_shapes_take_turns(models, monkeypatch):
    dice = random.Random(3)
    with PearlDecoder(*models, rule="coupled", strategy="autoregressive", compile=False) as decoder:
        wanted = ids(decoder.generate(PROMPTS, COUPLED))
    monkeypatch.setattr(Chooser, "choose", lambda self, *_: dice.choice([c for c in self.choices if c.gamma <= 4]))
    with PearlDecoder(*models, rule="coupled", compile=False) as decoder:
        for _ in range(6):
            assert ids(decoder.generate(PROMPTS, COUPLED)) == wanted


def test_auto_chooses_by_the_lanes_own_times(models):
    with PearlDecoder(*models, compile=False) as decoder:
        for _ in range(3):
            results = decoder.generate(PROMPTS[:1], SamplingParams(max_tokens=120))
        assert "expected tokens/s" in results[0].stats.reason
        window_s = decoder.costs.times(1, overlapping=False).window_s(1, decoder.costs.round)
    assert 1e-5 < window_s < 1.0
    assert 0.0 < results[0].stats.target_busy_s <= 1.01 * results[0].stats.decode_s


def test_streams_stop_strings_and_closing_early(models, own_texts):
    class Words:
        eos_token_id = None

        def __call__(self, text):
            raise AssertionError("prompts are ids already")

        def decode(self, token_ids, **_):
            return "".join(f"<{token}>" for token in token_ids)

    stop = f"<{own_texts[3][20]}>"
    at = next(i for i, token in enumerate(own_texts[3]) if f"<{token}>" == stop)
    with PearlDecoder(*models, Words(), strategy="pearl", gamma=4, compile=False) as decoder:
        with decoder.stream(PROMPTS[3], SamplingParams(max_tokens=60, stop=(stop,))) as stream:
            assert "".join(stream) == "".join(f"<{token}>" for token in own_texts[3][:at])
        with decoder.stream(PROMPTS[3], GREEDY[3]) as stream:
            next(iter(stream))
        assert stream.result.finish_reason == "cancelled"
        assert ids(decoder.generate(PROMPTS, GREEDY)) == own_texts


def test_the_hook_of_transformers_gives_its_own_text(models, own_texts):
    target, draft = models
    prompt = torch.tensor([PROMPTS[0]], device=target.device)
    out = target.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=COUNTS[0], do_sample=False, pad_token_id=0,
        custom_generate=pearl_decode.generate, draft_model=draft,
    )  # fmt: skip
    assert out[0, len(PROMPTS[0]) :].tolist() == own_texts[0]


def test_a_pair_on_gpu_and_cpu_is_refused(models, gpu):
    _, draft = pair(gpu, torch.device("cpu"))
    with pytest.raises(ValueError, match="draft must be on the target's kind of device, cuda, got cpu"):
        PearlDecoder(models[0], draft)
