"""EOS, max_tokens and stop strings cut exactly, wherever in a chain they fall."""

from __future__ import annotations

import pytest

from pearl_decode import PearlDecoder, SamplingParams
from tests.runtime.scripted import sequence_model

VOCAB, EOS, GAMMA = 50, 9, 4
LINE = [(7 * i) % 40 + 10 for i in range(200)]  # holds no EOS
PROMPT = LINE[:3]


@pytest.mark.parametrize("agrees", [True, False], ids=["accepted", "corrected"])
@pytest.mark.parametrize("strategy", ["autoregressive", "sequential", "pearl"])
def test_eos_ends_the_text_at_every_index_of_a_chain(strategy, agrees):
    for index in range(3 * GAMMA):
        at = len(PROMPT) + index
        target = sequence_model([*LINE[:at], EOS, *LINE[at:]], VOCAB)
        draft = target if agrees else sequence_model(LINE, VOCAB)
        with PearlDecoder(target, draft, gamma=GAMMA, strategy=strategy) as decoder:
            [result] = decoder.generate([PROMPT], SamplingParams(max_tokens=100, stop_token_ids=(EOS,)))
        assert result.token_ids == [*LINE[len(PROMPT) : at], EOS]
        assert result.finish_reason == "stop"
        assert result.stats.emitted_tokens == index + 1


@pytest.mark.parametrize("strategy", ["autoregressive", "sequential", "pearl"])
def test_max_tokens_ends_the_text_at_every_offset_of_a_window(strategy):
    target = sequence_model(LINE, VOCAB)
    for wrong_at in (None, 5, 8):
        line = [token + (i == wrong_at) for i, token in enumerate(LINE)]
        with PearlDecoder(target, sequence_model(line, VOCAB), gamma=GAMMA, strategy=strategy) as decoder:
            for count in range(1, 4 * GAMMA):
                [result] = decoder.generate([PROMPT], SamplingParams(max_tokens=count))
                assert result.token_ids == LINE[len(PROMPT) : len(PROMPT) + count]
                assert result.finish_reason == "length"
                assert result.stats.emitted_tokens == count


def test_ending_token_on_the_last_allowed_place_is_a_stop():
    target = sequence_model([*LINE[:6], EOS], VOCAB)
    with PearlDecoder(target, target) as decoder:
        [result] = decoder.generate([PROMPT], SamplingParams(max_tokens=4, stop_token_ids=(EOS,)))
    assert (result.finish_reason, result.token_ids) == ("stop", [*LINE[3:6], EOS])


def test_ignore_eos_leaves_only_the_requests_own_stop_tokens():
    target = sequence_model([*LINE[:6], EOS, *LINE[6:20]], VOCAB)
    target.config.eos_token_id = EOS
    with PearlDecoder(target, target) as decoder:
        [stopped] = decoder.generate([PROMPT], SamplingParams(max_tokens=10))
        [went_on] = decoder.generate([PROMPT], SamplingParams(max_tokens=10, ignore_eos=True))
        [own] = decoder.generate([PROMPT], SamplingParams(max_tokens=10, ignore_eos=True, stop_token_ids=(LINE[7],)))
    assert stopped.token_ids == [*LINE[3:6], EOS]
    assert went_on.token_ids == [*LINE[3:6], EOS, *LINE[6:12]]
    assert own.token_ids == [*LINE[3:6], EOS, LINE[6], LINE[7]]
