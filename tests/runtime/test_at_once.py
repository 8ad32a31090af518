"""Rounds in one call: that they are what rounds in parts are, and where a round has to be done in parts."""

from __future__ import annotations

from itertools import count, cycle, pairwise

import pytest
import torch
from transformers import LlamaConfig

from pearl_decode import PearlDecoder, SamplingParams, at_once
from pearl_decode.auto import Choice, Chooser
from pearl_decode.drafts import new_draft
from pearl_decode.lanes import CpuLane, PacedLane
from pearl_decode.lanes.draft import ChainLogits
from pearl_kernels import Rounds
from tests.runtime.test_layer import OTHERS, SIZES, count_calls, load
from tests.runtime.test_layer import WHOLE as CONFIGS

PROMPTS = [[5, 6, 7, 5, 6], [9], [1, 2, 1, 2, 1]]
TURNS = [("sequential", 4), ("autoregressive", 1), ("pearl", 3), ("lookup", 2), ("pearl", 2), ("sequential", 1)]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def model(tmp_path):
    return load(CONFIGS["llama"], tmp_path)


def draft_of(model, reduced: bool = False):
    draft = new_draft(model, [0, 2], torch.arange(0, 96, 2) if reduced else None)
    draft.induction = torch.tensor([1.0, 3.0])
    return draft


def params_of(temperatures=(0.0, 0.9, 1.3), **options) -> list[SamplingParams]:
    lengths = (24, 9, 17)
    return [
        SamplingParams(max_tokens=n, temperature=t, seed=3, **options)
        for n, t in zip(lengths, temperatures, strict=True)
    ]


def one(decoder):
    [result] = decoder.generate(PROMPTS[:1], params_of()[:1])
    return result


@pytest.fixture
def calls(monkeypatch):
    """How often a round was one call, or three."""
    found = count_calls(monkeypatch, Rounds, "run")
    monkeypatch.setattr(Rounds, "commit", lambda self, *given, run=Rounds.commit: found.append(1) or run(self, *given))
    return found


def counted(result) -> tuple[object, ...]:
    stats = result.stats
    counts = stats.accepted_lengths, stats.judged_tokens, stats.rounds, stats.draft_forwards
    return result.token_ids, result.finish_reason, stats.choices, *counts


def in_parts(monkeypatch):
    monkeypatch.setattr(at_once, "runs_rounds", lambda: False)


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
def test_the_device_that_torch_makes_tensors_on_does_not_matter(strategy, model):
    found = []
    with PearlDecoder(model, draft_of(model), strategy=strategy, gamma=3, rule="coupled") as decoder:
        for device in ("cpu", "meta"):
            with torch.device(device):
                found.append([(result.error, result.token_ids) for result in decoder.generate(PROMPTS, params_of())])
    assert found[0] == found[1]


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("rule", ["greedy", "token", "block", "coupled"])
@pytest.mark.parametrize("strategy", ["autoregressive", "sequential", "lookup", "pearl"])
def test_are_what_rounds_in_parts_are(strategy, rule, reduced, model, calls, monkeypatch):
    """Texts that end at different times, in one batch and apart, and all that is counted."""
    found = []
    with PearlDecoder(model, draft_of(model, reduced), strategy=strategy, gamma=3, rule=rule) as decoder:
        for parts in (False, True):
            if parts:
                in_parts(monkeypatch)
            calls.clear()
            results = decoder.generate(PROMPTS, params_of(ignore_eos=True))
            results += decoder.generate(PROMPTS, params_of(stop_token_ids=tuple(range(30, 50))))
            assert bool(calls) is not parts
            found.append([counted(result) for result in results])
    assert found[0] == found[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_come_between_other_rounds(temperature, model, calls, monkeypatch):
    """Of every strategy and length, in turns: windows are left by some, and the draft has missed more or less."""
    turn = {}

    def in_turn(self, *_):
        return Choice(*next(turn.setdefault(self, cycle(TURNS))))

    options = {"rule": "coupled"}
    params = params_of((temperature,) * 3, ignore_eos=True)
    with PearlDecoder(model, strategy="autoregressive", **options) as decoder:
        wanted = [result.token_ids for result in decoder.generate(PROMPTS, params)]
    monkeypatch.setattr(Chooser, "choose", in_turn)
    found = []
    with PearlDecoder(model, draft_of(model), strategy="auto", **options) as decoder:
        for parts in (False, True):
            if parts:
                in_parts(monkeypatch)
            calls.clear()
            results = decoder.generate(PROMPTS, params)
            assert bool(calls) is not parts
            assert [result.token_ids for result in results] == wanted
            found.append([counted(result) for result in results])
    assert found[0] == found[1]
    assert set(results[0].stats.choices) == {str(Choice(*turn)) for turn in TURNS}


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
def test_lanes_are_timed(strategy, model, calls):
    with PearlDecoder(model, draft_of(model), strategy=strategy, gamma=4) as decoder:
        stats = one(decoder).stats
        lanes = decoder.runner._pair(strategy == "pearl")
    assert calls
    assert 0 < stats.draft_busy_s < stats.decode_s
    assert 0 < stats.target_busy_s < stats.decode_s
    assert strategy == "pearl" or stats.draft_busy_s + stats.target_busy_s < stats.decode_s
    forwards = [lane.times.between(1, lane.times.count) for lane in lanes]  # after the prompt
    assert len(forwards[0]) == stats.target_forwards
    assert len(forwards[1]) == stats.draft_forwards
    for lane in forwards:
        assert all(a < b for a, b in lane)
        assert all(before[1] <= after[0] for before, after in pairwise(lane))


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("watched", ["target", "draft"])
def test_who_looks_on_sees_a_round_in_parts(watched, strategy, model, calls):
    draft = draft_of(model)
    seen = []
    hook = {"target": model, "draft": draft}[watched].register_forward_hook(lambda *_: seen.append(1))
    with PearlDecoder(model, draft, strategy=strategy, gamma=3) as decoder:
        one(decoder)
        assert seen
        assert not calls
        hook.remove()
        one(decoder)
        assert calls


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("lanes", ["of one thread", "of two threads", "paced"])
def test_lanes_of_their_own_run_their_parts(lanes, strategy, model, calls):
    target = CpuLane("target", [0])
    pair = {
        "of one thread": (target, CpuLane("draft", [0], thread_of=target)),
        "of two threads": (target, CpuLane("draft", [0])),
        "paced": (PacedLane("target", [0], 1e-4), PacedLane("draft", [0], 1e-4)),
    }[lanes]
    with PearlDecoder(model, draft_of(model), strategy=strategy, gamma=3, lanes=pair) as decoder:
        one(decoder)
    at_once = {"sequential": ["of one thread"], "pearl": ["of two threads", "paced"]}
    assert bool(calls) is (lanes in at_once[strategy])


def test_a_target_that_is_no_whole_runs_its_parts(tmp_path, calls):
    config, _ = OTHERS["gemma2"]
    model = load(config, tmp_path)
    for strategy in ("sequential", "autoregressive", "pearl"):
        with PearlDecoder(model, new_draft(model, [0], None), strategy=strategy, gamma=3) as decoder:
            one(decoder)
    assert not calls


def test_a_draft_with_more_ids_than_the_target_writes_ahead_in_parts(model, tmp_path, calls):
    draft = load(LlamaConfig(**SIZES | {"vocab_size": 100}), tmp_path / "draft")
    with PearlDecoder(model, draft, strategy="pearl", gamma=3) as decoder:
        result = one(decoder)
    assert not calls
    assert result.error is None


def test_a_forced_backend_runs(model, calls, monkeypatch):
    monkeypatch.setenv("PEARL_BACKEND", "reference")
    with PearlDecoder(model, strategy="autoregressive") as decoder:
        one(decoder)
    assert not calls


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("rule", ["greedy", "token"])
def test_a_draft_that_fails_costs_a_warning_not_a_token(rule, at, model, monkeypatch):
    with PearlDecoder(model, strategy="autoregressive") as decoder:
        wanted = one(decoder).token_ids
    run, drafting = Rounds.run, []

    def failing(self, gamma, missed=0, guesses=()):
        drafting.append(gamma)
        if len(drafting) == at + 1:
            return run(self, 0)._replace(draft_error="device lost")
        return run(self, gamma, missed, guesses)

    monkeypatch.setattr(Rounds, "run", failing)
    lost = pytest.warns(RuntimeWarning, match="the draft failed, the target goes on alone: device lost")
    with PearlDecoder(model, draft_of(model), strategy="sequential", gamma=3, rule=rule) as decoder, lost:
        result = one(decoder)
    assert result.token_ids == wanted
    assert result.error is None
    assert drafting[: at + 1] == [3] * (at + 1)
    assert not any(drafting[at + 1 :])
    assert result.stats.draft_forwards == 3 * at


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("rule", ["greedy", "token"])
def test_so_does_one_that_fails_ahead(rule, at, model, monkeypatch):
    with PearlDecoder(model, strategy="autoregressive") as decoder:
        wanted = one(decoder).token_ids
    draft, drafting = Rounds.draft, []

    def failing(self, gamma, missed, rows):
        drafting.append(gamma)
        if len(drafting) == at + 1:
            raise MemoryError("device lost")
        draft(self, gamma, missed, rows)

    monkeypatch.setattr(Rounds, "draft", failing)
    lost = pytest.warns(RuntimeWarning, match="the draft failed, the target goes on alone: .*device lost")
    with PearlDecoder(model, draft_of(model), strategy="pearl", gamma=3, rule=rule) as decoder, lost:
        result = one(decoder)
    assert result.token_ids == wanted
    assert result.error is None
    assert len(drafting) == at + 1
    assert result.stats.draft_forwards == 3 * at


@pytest.mark.parametrize("begins_alone", [False, True])
@pytest.mark.parametrize(
    ("strategy", "missing"), [("sequential", "cache"), ("pearl", "cache"), ("pearl", "distributions")]
)
def test_so_does_one_that_has_no_memory(strategy, missing, begins_alone, model, monkeypatch):
    """For its cache, which rounds of the target alone may be the first to ask for, or for what it draws from."""
    turns = count()

    def choose(*_):
        return Choice("autoregressive", 1) if begins_alone and next(turns) < 2 else Choice(strategy, 3)

    def lost(*_):
        raise MemoryError("no pages")

    monkeypatch.setattr(Chooser, "choose", choose)
    draft, params = draft_of(model), SamplingParams(max_tokens=12, temperature=0.9, seed=3)
    owner, part = (draft.window_model, "reserve") if missing == "cache" else (ChainLogits, "empty")
    monkeypatch.setattr(owner, part, lost)
    warned = pytest.warns(RuntimeWarning, match="the target goes on alone.*no pages")
    with PearlDecoder(model, draft) as decoder, warned:
        [result] = decoder.generate(PROMPTS[:1], params)
    assert result.error is None
    assert len(result.token_ids) == 12


@pytest.mark.parametrize(("strategy", "part"), [("autoregressive", "run"), ("pearl", "read_windows")])
def test_a_target_that_fails_ends_its_requests(strategy, part, model, monkeypatch):
    def lost(*_):
        raise MemoryError("device lost")

    monkeypatch.setattr(Rounds, part, lost)
    with PearlDecoder(model, draft_of(model), strategy=strategy, gamma=3) as decoder:
        result = one(decoder)
    assert result.finish_reason == "error"
    assert "device lost" in result.error
