"""Prompt lookup: what it guesses, from a text on the host and from a batch on a device."""

from __future__ import annotations

import random

import pytest
import torch

from pearl_decode import SamplingParams
from pearl_decode.auto import Timing
from pearl_decode.device.engine import DeviceOptions
from pearl_decode.device.flight import Flight
from pearl_decode.lookup import NGRAMS, PromptLookup, look_up
from pearl_decode.state import PLACEHOLDER
from tests.runtime.device import DeviceDecoder, DynamicDecoder, Tape
from tests.runtime.scripted import ScriptedModel, one_hot, sequence_model
from tests.runtime.test_device_ends import Letters


def test_lookup_goes_by_as_much_of_the_text_as_came_before():
    lookup = PromptLookup([5, 2, 3, 4, 10, 6, 2, 3, 4, 20])
    assert lookup.matched == 0
    lookup.extend([2, 3])
    assert (lookup.matched, lookup.continuation(2)) == (2, [4, 20])
    lookup.extend([4])
    assert (lookup.matched, lookup.continuation(1)) == (3, [20])
    again = PromptLookup([5, 2, 3, 4, 10, 6, 2, 3, 4, 20, 5, 2, 3, 4])
    assert (again.matched, again.continuation(2)) == (4, [10, 6])


def test_lookup_repeats_what_came_after_the_same_words():
    lookup = PromptLookup([1, 2, 3, 4, 5, 9, 2, 3])
    assert lookup.continuation(3) == [4, 5, 9]
    lookup.extend([4, 7])
    assert lookup.continuation(2) == []
    lookup.extend([8, 7, 8, 7])
    assert lookup.continuation(5) == [8, 7, 8, 7, 8]


def _batch(texts, length):
    """Texts in a buffer with something else behind them."""
    tokens = torch.randint(0, 3, (len(texts), length), generator=torch.Generator().manual_seed(0))
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    return tokens, torch.tensor([len(text) for text in texts])


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_finds_what_each_text_does(seed):
    dice = random.Random(seed)
    texts = [[dice.randrange(2 + seed) for _ in range(dice.randrange(1, 40))] for _ in range(200)]
    texts += [text * 3 for text in texts[:40]]
    tokens, committed = _batch(texts, 130)
    seen = set()
    for count in (1, 3, 7, 15):
        got = look_up(tokens, committed, count).tolist()
        for text, guesses in zip(texts, got, strict=True):
            lookup = PromptLookup(text)
            assert guesses == (lookup.continuation(count) or [PLACEHOLDER] * count)
            seen.add(lookup.matched)
    assert seen == {0, *NGRAMS}


def test_a_text_may_fill_its_row():
    tokens, committed = _batch([[1, 2, 5, 1, 2], [1, 2, 3, 4, 5]], 5)
    assert look_up(tokens, committed, 4).tolist() == [[5, 1, 2, 5], [PLACEHOLDER] * 4]


def test_texts_shorter_than_a_match_have_none():
    tokens, committed = _batch([[1], [1, 1], [1, 1, 1]], 12)
    assert look_up(tokens, committed, 2).tolist() == [[PLACEHOLDER] * 2, [PLACEHOLDER] * 2, [1, 1]]


def test_a_lookup_is_few_kernels():
    """On a GPU each takes a few microseconds, whatever it does."""
    tokens, committed = _batch([[1, 2, 3] * 8] * 4, 64)
    with Tape() as tape:
        look_up(tokens, committed, 4)
    views = ("unfold", "slice", "select", "unsqueeze", "alias", "detach")
    assert sum(func.overloadpacket.__name__ not in views for func, *_ in tape.calls) <= 32


@pytest.mark.parametrize("gamma", [1, 3, "auto"])
def test_without_a_draft_a_device_repeats_what_the_text_says_again(gamma):
    """A text of period 7: after one period every token is known."""
    model = sequence_model([2 + i % 7 for i in range(80)], 64)
    params = SamplingParams(max_tokens=56)
    with DeviceDecoder(model, strategy="lookup", gamma=gamma) as static, DynamicDecoder(model) as alone:
        [result], [wanted] = static.generate([[2]], params), alone.generate([[2]], params, strategy="autoregressive")
    assert result.token_ids == wanted.token_ids
    assert result.stats.draft_forwards == 0
    assert result.stats.judged_tokens - result.stats.accepted_tokens <= 1
    assert result.stats.accepted_tokens > 20


@pytest.mark.parametrize("lateness", [0, 1])
def test_a_row_that_a_stop_string_ended_may_run_past_what_is_looked_at(lateness):
    """It repeats itself five tokens a round, and the other row none."""

    def script(positions, ids):
        return one_hot(torch.where(ids < 5, (ids + 1) % 5, 6 + positions), 140)

    params = [SamplingParams(max_tokens=400, stop=("eab",)), SamplingParams(max_tokens=100)]
    options = DeviceOptions(lateness=lateness, bucket=16)
    plan = {"strategy": "lookup", "gamma": 4, "rule": "greedy", "options": options}
    with DeviceDecoder(ScriptedModel(140, script), None, Letters(), **plan) as decoder:
        stopped, whole = decoder.generate(["abcdeabcde", "g"], params)
    assert (stopped.text, stopped.finish_reason) == ("abcd", "stop")
    assert whole.token_ids == [6 + position for position in range(100)]


@pytest.fixture
def set_times(monkeypatch):
    """Rounds take what their windows are wide, whatever they took."""

    def timing(self, lanes):
        seconds = 0.010 + 0.001 * self.shape.width
        return Timing(self.shape.width, seconds, seconds, [])

    monkeypatch.setattr(Flight, "timing", timing)


@pytest.mark.usefixtures("set_times")
@pytest.mark.parametrize(
    ("text", "share"),
    [
        ([2 + i % 7 for i in range(400)], (0.8, 1.0)),
        (list(range(2, 402)), (0.0, 0.0)),
        # Whenever the host knows of a match, the device is a new token further, and finds none.
        ([token for i in range(130) for token in (2, 3, 4 + i)], (0.01, 0.1)),
    ],
    ids=["repeating", "new", "new whenever it is looked up"],
)
def test_auto_on_a_device_looks_up_where_that_pays(text, share):
    with DeviceDecoder(sequence_model(text, 512), strategy="auto", gamma=4) as decoder:
        [result] = decoder.generate([[2]], SamplingParams(max_tokens=300))
    assert share[0] <= result.stats.choices.get("lookup 4", 0) / result.stats.rounds <= share[1]
