"""Text: pieces join to the whole, stop strings cut exactly, unfinished characters wait."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.text import Detokenizer, StopStrings
from tests.runtime.scripted import sequence_model

SAMPLE = "Grüße, 世界! 👩‍🚀 naïve — done."


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte: most tokens are pieces of a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def _decoder(tokenizer, text: str, **options) -> PearlDecoder:
    ids = tokenizer("?").input_ids + tokenizer(text).input_ids + [tokenizer.eos_token_id]
    model = sequence_model(ids, len(tokenizer))
    return PearlDecoder(model, model, tokenizer, **options)


def test_pieces_join_to_the_whole_and_never_hold_half_a_character(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokenizer(SAMPLE).input_ids] + [detokenizer.flush()]
    assert "".join(pieces) == SAMPLE
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_cut_inside_a_character_is_flushed_as_it_is(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokenizer("é").input_ids[:1]] + [detokenizer.flush()]
    assert pieces == ["", "\ufffd"]


@pytest.mark.parametrize("strategy", ["autoregressive", "sequential", "pearl"])
def test_streamed_text_equals_generated_text(tokenizer, strategy):
    with _decoder(tokenizer, SAMPLE, strategy=strategy) as decoder:
        with decoder.stream("?") as stream:
            pieces = list(stream)
        result = decoder.generate("?")
    assert "".join(pieces) == SAMPLE == result.text == stream.result.text
    assert len(pieces) > 5
    assert result.finish_reason == stream.result.finish_reason == "stop"
    assert result.token_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("stop", ["世", "done", "!", "ï", "Grü", "—", ". done"])
def test_stop_string_cuts_just_before_its_first_place(tokenizer, stop):
    for gamma in (1, 2, 5, 8):
        with (
            _decoder(tokenizer, SAMPLE, gamma=gamma) as decoder,
            decoder.stream("?", SamplingParams(stop=(stop, "never there"))) as stream,
        ):
            pieces = list(stream)
            result = stream.result
        expected, found, _ = SAMPLE.partition(stop)
        assert "".join(pieces) == result.text == expected
        assert result.finish_reason == "stop"
        # The ids end with the token that completed the stop string.
        taken = expected + found + ("" if found else "<end>")
        assert tokenizer.decode(result.token_ids) == taken
        assert result.stats.emitted_tokens == len(result.token_ids)


def test_nothing_is_streamed_that_a_stop_string_takes_back():
    stops = StopStrings(("</answer>", "STOP"))
    said = [stops.push(piece) for piece in ("a <", "/ans", "ques> S", "TO", "O </answe", "r> never")]
    assert said == ["a ", "", "</ansques> ", "", "STOO ", ""]
    assert stops.found
    assert stops.flush() == ""


def test_beginning_of_a_stop_string_at_the_very_end_is_text():
    stops = StopStrings(("END",))
    assert stops.push("the EN") + stops.flush() == "the EN"


def test_stream_closed_early_keeps_its_part(tokenizer):
    with _decoder(tokenizer, SAMPLE * 4, gamma=2) as decoder:
        with decoder.stream("?", SamplingParams(max_tokens=100)) as stream:
            first = next(iter(stream))
        result = stream.result
        assert result.text == first
        assert result.finish_reason == "cancelled"
        assert decoder.generate("?", SamplingParams(max_tokens=7)).text == SAMPLE[:5]


def test_of_several_stop_strings_the_one_that_is_complete_first_cuts():
    whole, letters = StopStrings(("abc", "b")), StopStrings(("abc", "b"))
    assert whole.push("xabc") == "".join(map(letters.push, "xab")) == "xa"
    assert whole.found
    assert letters.found


def test_a_part_that_was_taken_stays_as_it_is_and_all_its_rounds_are_counted(tokenizer):
    with _decoder(tokenizer, SAMPLE * 4) as decoder:
        request, rounds = decoder.start([[3]], SamplingParams(max_tokens=100), strategy="auto", gamma="auto")
        for _ in range(3):
            next(rounds)
        part = request[0].result()
        taken = list(part.token_ids)
        next(rounds)
        rounds.close()
    assert part.token_ids == taken
    stats = request[0].result().stats
    assert sum(stats.choices.values()) == stats.rounds == 4
