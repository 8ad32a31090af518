"""Conversations: what the last text was is not read again, and no answer differs for it."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams, at_once, memory
from pearl_decode.drafts import new_draft
from pearl_decode.lanes.draft import DraftLane
from pearl_decode.models import CausalModel
from pearl_kernels import Rounds
from tests.runtime.test_at_once import draft_of as any_draft_of
from tests.runtime.test_layer import OTHERS, load
from tests.runtime.test_layer import WHOLE as CONFIGS

PROMPT = [5, 6, 7, 5, 6, 9, 1]
QUESTIONS = ([3, 3, 8], [7], [2, 9, 4, 4])
draft_of = partial(any_draft_of, reduced=True)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def model(tmp_path):
    return load(CONFIGS["llama"], tmp_path)


@pytest.fixture
def read(monkeypatch):
    """What was read of prompts, (role, first position, tokens) in the order in which it was."""
    found: list[tuple[str, int, list[int]]] = []
    run = CausalModel.read

    def noted(self, input_ids, start, cache):
        role = "target" if self.d2t is None else "draft"
        found.append((role, start, input_ids[0].tolist()))
        return run(self, input_ids, start, cache)

    monkeypatch.setattr(CausalModel, "read", noted)
    return found


def params(temperature: float = 0.0, **options) -> SamplingParams:
    return SamplingParams(max_tokens=options.pop("max_tokens", 10), temperature=temperature, seed=4, **options)


def converse(answer, given: SamplingParams):
    """Prompt and result of each turn, a prompt being all that was said before and a question."""
    said, turns = list(PROMPT), []
    for question in ([], *QUESTIONS):
        said += question
        result = answer(list(said), given)
        turns.append((list(said), result))
        said += result.token_ids
    return turns


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize(
    "plan",
    [
        {"strategy": "sequential", "gamma": 3, "rule": "block"},
        {"strategy": "pearl", "gamma": 3, "rule": "token"},
        {"strategy": "lookup", "gamma": 2, "rule": "block"},
        {"strategy": "autoregressive", "gamma": 1, "rule": "block"},
        {"strategy": "auto", "gamma": "auto", "rule": "coupled"},
    ],
    ids=lambda plan: plan["strategy"],
)
def test_every_answer_is_what_it_is_without(plan, temperature, model, read):
    with PearlDecoder(model, draft_of(model), **plan) as decoder:
        alone = converse(lambda prompt, p: decoder.generate([prompt], p)[0], params(temperature))
        read.clear()
        with decoder.session() as session:
            together = converse(session.generate, params(temperature))
    known = 0
    for (prompt, wanted), (_, got) in zip(alone, together, strict=True):
        assert (got.token_ids, got.finish_reason) == (wanted.token_ids, wanted.finish_reason)
        assert (wanted.stats.reused_tokens, got.stats.reused_tokens) == (0, known)
        if plan["strategy"] != "auto":
            assert got.stats.accepted_lengths == wanted.stats.accepted_lengths
        known = len(prompt) + len(got.token_ids) - 1
    new = [(start, tokens) for role, start, tokens in read if role == "target"]
    reused = [got.stats.reused_tokens for _, got in together]
    assert new == [(n, prompt[n:-1]) for (prompt, _), n in zip(together, reused, strict=True) if n < len(prompt) - 1]


def test_the_draft_reads_no_more_than_what_is_new(model, read):
    with PearlDecoder(model, draft_of(model), strategy="sequential", gamma=3) as decoder, decoder.session() as session:
        turns = converse(session.generate, params())
    starts = [start for role, start, _ in read if role == "draft"]
    ends = [len(prompt) + len(result.token_ids) for prompt, result in turns]
    assert starts[0] == 0
    assert all(0 <= end - start <= 1 + 3 for start, end in zip(starts[1:], ends[:-1], strict=True))


def test_entries_are_the_same_to_the_bit(model):
    """Of both models, in the memory of the text before and in that of a cache that had to grow."""
    exact = new_draft(model, [0, 1, 2, 3], None)  # of whose last token, where all are accepted, nothing is read
    with PearlDecoder(model, exact, strategy="sequential", gamma=3) as decoder, decoder.session() as session:
        for prompt, room in ((PROMPT, 8), ([*PROMPT, 2, 3], 5), ([*PROMPT, 2, 3, 8, 8, 1, 7], 60)):
            result = session.generate(prompt, params(max_tokens=room))
            fresh = decoder.session()
            fresh.generate([*prompt, *result.token_ids, 1, 1], params(max_tokens=4))
            pasts = session._past, fresh._past
            for kept, again in ((past.target for past in pasts), (past.draft for past in pasts)):
                length = len(kept.tokens)
                assert length >= len(prompt) - 1
                assert again.tokens[:length] == kept.tokens
                for ours, theirs in zip(kept.cache.layers, again.cache.layers, strict=True):
                    assert torch.equal(ours.keys[:, :, :length], theirs.keys[:, :, :length])
                    assert torch.equal(ours.values[:, :, :length], theirs.values[:, :, :length])


def test_memory_is_used_again_and_grows_ahead_of_the_text(model):
    with PearlDecoder(model, strategy="autoregressive") as decoder, decoder.session() as session:
        found = []
        for length in (4, 5, 30, 40, 3):
            session.generate(PROMPT + [1] * length, params(max_tokens=2))
            cache = session._past.target.cache
            found.append((cache.capacity, cache.layers[0].keys.data_ptr()))
    capacities, places = zip(*found, strict=True)
    assert capacities[1] == 2 * capacities[0]
    assert capacities[2] == 2 * capacities[1]
    assert capacities[3] == capacities[4]
    assert places[3] == places[4]


@pytest.mark.parametrize(
    ("first", "second", "reused"),
    [
        (PROMPT, PROMPT, 6),  # the last token begins the first round
        (PROMPT, PROMPT[:3], 2),
        (PROMPT, [6, *PROMPT], 0),
        (PROMPT, [*PROMPT[:4], 90, 91, 92], 4),
        (PROMPT, [5], 0),
        ([5], PROMPT, 1),
    ],
)
def test_a_prompt_goes_on_from_where_it_differs(first, second, reused, model):
    with PearlDecoder(model, draft_of(model), gamma=2) as decoder, decoder.session() as session:
        session.generate(first, params())
        result = session.generate(second, params())
        assert result.stats.reused_tokens == reused
        assert result.token_ids == decoder.generate([second], params())[0].token_ids


def test_an_answer_that_was_stopped_can_be_gone_on_with(model):
    with PearlDecoder(model, draft_of(model), strategy="sequential", gamma=2) as decoder, decoder.session() as session:
        with session.stream(PROMPT, params(max_tokens=30)) as stream:
            rounds = iter(stream._rounds)
            next(rounds), next(rounds)
        said = PROMPT + stream.result.token_ids
        assert stream.result.finish_reason == "cancelled"
        assert 2 <= len(stream.result.token_ids) < 30
        result = session.generate([*said, 7], params())
        assert result.stats.reused_tokens == len(said) - 1
        assert result.token_ids == decoder.generate([[*said, 7]], params())[0].token_ids


def test_two_texts_of_one_session_at_once_are_answered_and_the_last_to_end_is_kept(model):
    with PearlDecoder(model, draft_of(model)) as decoder, decoder.session() as session:
        session.generate(PROMPT, params())
        one, two = session.stream([*PROMPT, 3], params()), session.stream([*PROMPT, 4], params())
        for _ in zip(one._rounds, two._rounds, strict=False):
            pass
        results = [two.finish(), one.finish()]
        assert [result.stats.reused_tokens for result in results] == [0, len(PROMPT)]
        for token, result in zip((4, 3), results, strict=True):
            assert result.token_ids == decoder.generate([[*PROMPT, token]], params())[0].token_ids
        assert session._past.target.tokens[: len(PROMPT) + 1] in ([*PROMPT, 3], [*PROMPT, 4])


def test_what_is_no_single_call_is_read_from_the_beginning(tmp_path):
    config, _ = OTHERS["mistral with a window"]
    other = load(config, tmp_path)
    with PearlDecoder(other, strategy="autoregressive") as decoder, decoder.session() as session:
        turns = converse(session.generate, params())
        assert session._past.target is None
        assert [result.stats.reused_tokens for _, result in turns] == [0] * len(turns)
        assert [r.token_ids for _, r in turns] == [decoder.generate([p], params())[0].token_ids for p, _ in turns]


def test_a_model_that_changed_or_is_looked_at_reads_all(model):
    """Other weights would go on from what the old ones read; a hook wants to see every token."""
    with PearlDecoder(model, strategy="autoregressive") as decoder, decoder.session() as session:
        session.generate(PROMPT, params())
        seen: list[int] = []
        held = session._past.target.cache
        hook = model.model.layers[0].register_forward_hook(lambda _, args, out: seen.append(out.shape[1]))
        looked_at = session.generate(PROMPT, params())
        hook.remove()
        assert looked_at.stats.reused_tokens == 0
        assert seen[0] == len(PROMPT) - 1
        assert not held.layers
        assert session.generate(PROMPT, params()).stats.reused_tokens == len(PROMPT) - 1
        norm = model.model.norm
        norm.weight = torch.nn.Parameter(norm.weight.data * -1.0)
        changed = session.generate(PROMPT, params())
        assert changed.stats.reused_tokens == 0
        assert changed.token_ids == decoder.generate([PROMPT], params())[0].token_ids
        assert changed.token_ids != looked_at.token_ids


def test_somebody_may_begin_to_look_on_in_the_middle(model):
    with PearlDecoder(model, strategy="autoregressive") as decoder, decoder.session() as session:
        session.generate(PROMPT, params())
        stream = session.stream([*PROMPT, 8], params(max_tokens=3))
        next(iter(stream._rounds))
        hook = model.model.layers[0].register_forward_hook(lambda *_: None)
        result = stream.finish()
        hook.remove()
        assert result.stats.reused_tokens == len(PROMPT)
        assert result.token_ids == decoder.generate([[*PROMPT, 8]], params(max_tokens=3))[0].token_ids


def test_a_target_that_fails_leaves_what_it_had_read(model, monkeypatch):
    with PearlDecoder(model, draft_of(model), strategy="sequential", gamma=2) as decoder, decoder.session() as session:
        session.generate(PROMPT, params())
        stream = session.stream([*PROMPT, 8], params())
        next(iter(stream._rounds))
        with monkeypatch.context() as broken:
            broken.setattr("pearl_decode.at_once.RoundsAtOnce._run", lambda *_: 1 / 0)
            with pytest.raises(RuntimeError, match="the target failed"):
                stream.finish()
        said = [*PROMPT, 8, *stream.result.token_ids]
        result = session.generate([*said, 7], params())
        assert result.stats.reused_tokens == len(said) - 1
        assert result.token_ids == decoder.generate([[*said, 7]], params())[0].token_ids


@pytest.fixture(params=["at once", "in parts"])
def parts(request, monkeypatch):
    """What a round of PEARL calls: of the draft, and of the target."""
    if request.param == "at once":
        return (Rounds, "draft"), (Rounds, "read_windows")
    monkeypatch.setattr(at_once, "runs_rounds", lambda: False)
    return (DraftLane, "_steps"), (CausalModel, "forward")


def test_who_interrupts_waits_for_what_lanes_still_do(parts, model, monkeypatch):
    """As Ctrl-C does in a chat: the next text begins in memory that nobody writes to any more."""
    ended = []
    with PearlDecoder(model, draft_of(model), strategy="pearl", gamma=2) as decoder, decoder.session() as session:
        stream = session.stream(PROMPT, params())
        next(iter(stream._rounds))
        [draft, _], write = parts, getattr(*parts[0])

        def slowly(*args):
            drawn = write(*args)
            time.sleep(0.2)
            ended.append(session._past.target is None)
            return drawn

        def interrupted(self, future):
            raise KeyboardInterrupt

        with monkeypatch.context() as broken:
            broken.setattr(*draft, slowly)
            broken.setattr("pearl_decode.round.Round.drafted", interrupted)
            with pytest.raises(KeyboardInterrupt):
                stream.finish()
        assert ended == [True]
        said = [*PROMPT, *stream.result.token_ids, 7]
        assert session.generate(said, params()).token_ids == decoder.generate([said], params())[0].token_ids


def test_a_stream_that_is_closed_after_its_decoder_was_cancelled(model):
    decoder = PearlDecoder(model, draft_of(model), strategy="pearl", gamma=2)
    with decoder.session() as session:
        stream = session.stream(PROMPT, params())
        next(iter(stream._rounds))
        decoder.close()
        stream.close()
        assert (stream.result.finish_reason, stream.result.error) == ("cancelled", None)


def test_a_draft_that_is_lost_is_not_gone_on_with(parts, model, monkeypatch):
    with PearlDecoder(model, draft_of(model), strategy="pearl", gamma=2) as decoder, decoder.session() as session:
        session.generate(PROMPT, params())
        with monkeypatch.context() as broken:
            broken.setattr(*parts[0], lambda *_: 1 / 0)
            with pytest.warns(RuntimeWarning, match="goes on alone"):
                result = session.generate([*PROMPT, 8], params())
        assert session._past.draft is None
        after = [*PROMPT, 8, *result.token_ids, 7]
        assert session.generate(after, params()).token_ids == decoder.generate([after], params())[0].token_ids
        assert session._past.draft is not None


def test_of_a_round_in_which_both_failed_the_draft_is_not_gone_on_with(parts, model, monkeypatch):
    with PearlDecoder(model, draft_of(model), strategy="pearl", gamma=2) as decoder, decoder.session() as session:
        stream = session.stream(PROMPT, params())
        next(iter(stream._rounds))
        with monkeypatch.context() as broken:
            for part in parts:
                broken.setattr(*part, lambda *_, **__: 1 / 0)
            with pytest.warns(RuntimeWarning, match="goes on alone"):
                list(stream)
        assert "the target failed" in stream.result.error
        assert session._past.target.tokens == [*PROMPT, *stream.result.token_ids][:-1]
        assert session._past.draft is None


def test_a_closed_session_holds_nothing_and_can_go_on(model):
    with PearlDecoder(model, draft_of(model)) as decoder:
        with decoder.session() as session:
            session.generate(PROMPT, params())
            target, draft = session._past.target, session._past.draft
        assert session._past.take() == (None, None)
        assert [target.cache.layers, draft.cache.layers, target.tokens, draft.tokens] == [[]] * 4
        assert session.generate(PROMPT, params()).stats.reused_tokens == 0


def test_where_memory_is_short_the_past_is_given_up_for_the_text(model, monkeypatch):
    with PearlDecoder(model, strategy="autoregressive") as decoder, decoder.session() as session:
        session.generate(PROMPT, params())
        held = session._past.target.cache
        monkeypatch.setattr(memory, "free_bytes", lambda device: 100_000 if not held.layers else 0)
        assert session.generate([*PROMPT, 1], params(max_tokens=3)).stats.reused_tokens == len(PROMPT)
        long = [*PROMPT, 1, 2, 3]
        result = session.generate(long, params(max_tokens=40))
        assert result.stats.reused_tokens == 0
        assert result.token_ids == decoder.generate([long], params(max_tokens=40))[0].token_ids


def test_bad_prompts_leave_the_past_alone(model):
    with PearlDecoder(model, strategy="autoregressive") as decoder, decoder.session() as session:
        session.generate(PROMPT, params())
        with pytest.raises(ValueError, match=r"prompt ids must be in \[0, 96\)"):
            session.generate([*PROMPT, 96], params())
        assert session.generate([*PROMPT, 3], params()).stats.reused_tokens == len(PROMPT)
