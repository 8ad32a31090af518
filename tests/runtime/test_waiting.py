"""Requests that wait take the rows of those that end: their texts are their own, and no row is idle meanwhile."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from itertools import cycle

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams, engine
from pearl_decode.auto import Choice, Chooser
from pearl_decode.engine import Engine
from pearl_decode.lanes import PacedLane
from pearl_decode.lanes.cpu import available_cores
from pearl_decode.lanes.draft import DraftLane
from pearl_decode.models import CausalModel
from pearl_decode.runner import CpuRunner
from pearl_kernels import Rounds
from tests.runtime.scripted import ScriptedModel, one_hot, sequence_model
from tests.runtime.test_at_once import draft_of
from tests.runtime.test_layer import WHOLE, load
from tests.runtime.tiny import build

RULES = ["greedy", "token", "block", "coupled"]
TURNS = [("sequential", 4), ("autoregressive", 1), ("pearl", 3), ("lookup", 2), ("pearl", 2), ("autoregressive", 1)]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def model(tmp_path):
    return load(WHOLE["llama"], tmp_path)


@pytest.fixture
def rows(monkeypatch):
    """How many requests were in each round."""
    found, step = [], Engine._step

    def noted(self, running):
        found.append(len(running))
        return step(self, running)

    monkeypatch.setattr(Engine, "_step", noted)
    return found


@pytest.fixture
def capacities(monkeypatch):
    """What rows could hold, of each engine."""
    found, engine_of = [], CpuRunner.engine

    def noted(self, *args, **named):
        made = engine_of(self, *args, **named)
        found.append(made.round.batch.capacity)
        return made

    monkeypatch.setattr(CpuRunner, "engine", noted)
    return found


@pytest.fixture
def read_of(monkeypatch):
    """Shapes of what was read of prompts, by the number of the model's layers."""
    found, read = defaultdict(list), CausalModel.read

    def noted(self, input_ids, start, cache):
        found[self.config.num_hidden_layers].append(tuple(input_ids.shape))
        return read(self, input_ids, start, cache)

    monkeypatch.setattr(CausalModel, "read", noted)
    return found


def choose_in_turns(monkeypatch, turns) -> None:
    turns = (Choice(*turn) for turn in turns)

    def choose(self, *_):
        self._present = self.choices.index(next(turns))
        return self.present

    monkeypatch.setattr(Chooser, "choose", choose)


def jobs(rule: str, count: int = 11) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts and parameters of all kinds."""
    generator = torch.Generator().manual_seed(4)
    lengths = [(7, 1, 20, 3, 12, 1, 30)[row % 7] for row in range(count)]
    prompts = [torch.randint(1, 90, (length,), generator=generator).tolist() for length in lengths]
    return prompts, [
        SamplingParams(
            max_tokens=3 + 5 * (row % 4),
            temperature=0.0 if rule == "greedy" or row < 3 or row % 3 == 1 else 0.9,  # the first ones do not sample
            top_k=(0, 20)[row % 2],
            seed=row,
            stop_token_ids=tuple(range(10, 10 + 4 * (row % 4))),  # later ones have more
        )
        for row in range(count)
    ]


def check_each(decoder, prompts, params) -> None:
    """In a list every prompt has the answer that it has by itself, and as many drafted tokens of it are accepted."""
    together = decoder.generate(prompts, params)
    for result, prompt, p in zip(together, prompts, params, strict=True):
        [alone] = decoder.generate([prompt], p)
        assert (result.token_ids, result.finish_reason) == (alone.token_ids, alone.finish_reason)
        assert result.stats.accepted_lengths == alone.stats.accepted_lengths


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("strategy", ["autoregressive", "sequential", "lookup", "pearl"])
def test_each_text_is_what_it_is_alone(strategy, rule, model, rows):
    with PearlDecoder(model, draft_of(model, reduced=True), max_batch=3, strategy=strategy, gamma=3, rule=rule) as pair:
        check_each(pair, *jobs(rule))
    assert 3 in rows


@pytest.mark.parametrize("rule", ["block", "coupled"])
def test_any_models_texts_are_too(rule, target, rows):
    with PearlDecoder(target, build("llama", seed=1), max_batch=3, strategy="pearl", gamma=3, rule=rule) as decoder:
        check_each(decoder, *jobs(rule))
    assert 3 in rows


def test_whatever_round_a_row_is_taken_after(model, monkeypatch):
    choose_in_turns(monkeypatch, cycle(TURNS))
    with PearlDecoder(model, draft_of(model), max_batch=3, rule="coupled") as decoder:
        prompts, params = jobs("coupled", 20)
        together = decoder.generate(prompts, params)
        alone = [decoder.generate([p], s, strategy="autoregressive")[0] for p, s in zip(prompts, params, strict=True)]
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]
    assert max(len(result.stats.choices) for result in together) > 3


def test_no_row_is_idle_while_somebody_waits(rows):
    """Ten texts of ten tokens and one of forty: the long one is not waited for."""
    line = [(7 * i) % 40 + 10 for i in range(120)]
    target = sequence_model(line, 64)
    params = [SamplingParams(max_tokens=40 if row == 1 else 10) for row in range(11)]
    with PearlDecoder(target, strategy="autoregressive", max_batch=3) as decoder:
        results = decoder.generate([line[:3]] * 11, params)
    assert rows == [3] * 40 + [2] * 10
    assert [result.token_ids for result in results] == [line[3 : 3 + p.max_tokens] for p in params]


def test_rows_that_end_together_are_read_together(model, read_of):
    with PearlDecoder(model, strategy="autoregressive", max_batch=3) as decoder:
        decoder.generate([[1, 2, 3, 4]] * 5, SamplingParams(max_tokens=4, temperature=0))
    assert read_of == {4: [(3, 3), (2, 3)]}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_draft_reads_what_is_new_when_it_is_next_asked(at_once, model, monkeypatch, read_of):
    """And nothing twice."""
    if not at_once:
        monkeypatch.setattr("pearl_decode.at_once.runs_rounds", lambda: False)
    missed, run, draft = [], Rounds.run, CausalModel.draft

    def noted_run(self, gamma, most, guesses):
        missed.append(most)
        return run(self, gamma, most, guesses)

    def noted_draft(self, input_ids, *args, **named):
        missed.append(input_ids.shape[1])
        return draft(self, input_ids, *args, **named)

    monkeypatch.setattr(Rounds, "run", noted_run)
    monkeypatch.setattr(CausalModel, "draft", noted_draft)
    choose_in_turns(monkeypatch, [*[("sequential", 2)] * 3, *[("autoregressive", 1)] * 9, *[("sequential", 2)] * 60])
    prompts, tokens = [[3] * 40, [4] * 50, [5] * 45], (9, 60, 30)  # the first ends among rounds without the draft
    with PearlDecoder(model, draft_of(model), max_batch=2) as decoder:
        decoder.generate(prompts, [SamplingParams(max_tokens=n, temperature=0) for n in tokens])
    assert read_of[2] == [(2, 49), (1, 48)]  # of the new one four more tokens, of rounds without the draft
    assert max(missed) <= 12


def test_what_needs_much_more_memory_waits_for_others_like_it(model, capacities):
    lengths = (10, 10, 150, 18, 12, 160)
    prompts = [[1 + row] * length for row, length in enumerate(lengths)]
    with PearlDecoder(model, strategy="autoregressive", max_batch=2) as decoder:
        check_each(decoder, prompts, [SamplingParams(max_tokens=8)] * 6)
    spare = 3
    assert capacities[:2] == [18 + 8 + spare, 160 + 8 + spare]  # 18 is not twice 10


def test_caches_are_no_larger_than_the_first_batchs_where_memory_is_scarce(model, monkeypatch, capacities):
    monkeypatch.setattr(engine, "has_plenty", lambda *_: False)
    with PearlDecoder(model, strategy="autoregressive", max_batch=2) as decoder:
        check_each(decoder, [[1] * 10, [2] * 10, [3] * 15, [4] * 9], [SamplingParams(max_tokens=8)] * 4)
    assert capacities[:2] == [10 + 8 + 3, 15 + 8 + 3]


@pytest.mark.parametrize("strategy", ["autoregressive", "sequential", "pearl"])
def test_nan_that_a_request_left_behind_reaches_no_other(strategy):
    """Attention of torch adds up all entries, those of weight 0 too."""
    target = build("gemma3")
    with torch.no_grad():
        target.get_input_embeddings().weight[7] = math.nan
    prompts = [[7, 1, 2, 3, 4, 5, 6, 8], [1, 2, 3], [4, 5], [6]]
    params = [SamplingParams(max_tokens=n) for n in (5, 12, 6, 4)]
    with PearlDecoder(target, target, strategy=strategy, gamma=2, max_batch=2) as decoder:
        results = decoder.generate(prompts, params)
        check_each(decoder, prompts, params)
    assert [result.finish_reason for result in results] == ["error", "length", "length", "length"]


def test_a_prompt_that_cannot_be_read_ends_its_own_request_alone(caplog):
    line = [(7 * i) % 40 + 10 for i in range(120)]

    def script(positions, ids):
        if ids.shape[1] > 1 and bool((ids == 1).any()):
            raise MemoryError("too long")
        return one_hot(torch.tensor(line)[(positions + 1) % 120], 64)

    prompts = [line[:3], line[:3], [1, 1, 1, 1], line[:3]]
    params = [SamplingParams(max_tokens=n) for n in (20, 5, 5, 5)]
    with PearlDecoder(ScriptedModel(64, script), strategy="autoregressive", max_batch=2) as decoder:
        results = decoder.generate(prompts, params)
    assert [result.finish_reason for result in results] == ["length", "length", "error", "length"]
    assert "too long" in results[2].error
    assert "the target failed" in caplog.text
    assert [result.token_ids for result in results] == [line[3:23], line[3:8], [], line[3:8]]


def test_those_who_wait_when_the_target_fails_have_their_turn_after_it(caplog):
    line = [(7 * i) % 40 + 10 for i in range(120)]
    calls = iter(range(1000))

    def script(positions, ids):
        if next(calls) == 4:
            raise MemoryError("device lost")
        return one_hot(torch.tensor(line)[(positions + 1) % 120], 64)

    with PearlDecoder(ScriptedModel(64, script), strategy="autoregressive", max_batch=2) as decoder:
        results = decoder.generate([line[:3]] * 4, SamplingParams(max_tokens=8))
    assert [result.finish_reason for result in results] == ["error", "error", "length", "length"]
    assert results[3].token_ids == line[3:11]


def test_a_draft_that_fails_at_a_new_prompt_costs_a_warning_not_a_token(model, monkeypatch):
    read, calls = DraftLane.read_new, iter(range(10))

    def failing(self):
        if next(calls) == 1:
            self.model.read = None
        return read(self)

    monkeypatch.setattr(DraftLane, "read_new", failing)
    prompts, params = jobs("greedy")
    with PearlDecoder(model, draft_of(model), max_batch=3, strategy="sequential", gamma=3) as decoder:
        with pytest.warns(RuntimeWarning, match="the draft failed"):
            together = decoder.generate(prompts, params)
        alone = [decoder.generate([p], s, strategy="autoregressive")[0] for p, s in zip(prompts, params, strict=True)]
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]


def test_times_and_counts_are_of_the_time_a_request_ran():
    line = [(7 * i) % 40 + 10 for i in range(120)]
    models = sequence_model(line, 64), sequence_model(line, 64)
    lanes = PacedLane("target", available_cores()[:1], 0.01), PacedLane("draft", available_cores()[:1], 0.002)
    with PearlDecoder(*models, max_batch=2, strategy="sequential", gamma=2, lanes=lanes) as decoder:
        begin = time.perf_counter()
        results = decoder.generate([line[:3]] * 8, SamplingParams(max_tokens=12, temperature=0))
        seconds = time.perf_counter() - begin
    for stats in [result.stats for result in results]:
        assert (stats.rounds, stats.emitted_tokens) == (results[0].stats.rounds, 12)
        assert stats.prefill_s >= 0.01
        assert 0.01 * stats.rounds <= stats.target_busy_s < stats.decode_s
        assert 0.004 * stats.rounds <= stats.draft_busy_s < stats.decode_s
    assert sum(result.stats.prefill_s + result.stats.decode_s for result in results[::2]) < seconds


def test_what_the_request_before_had_accepted_is_not_believed_of_the_next(model, monkeypatch):
    rows, replace = [], Chooser.replace

    def noted(self, replaced):
        rows.append(replaced)
        replace(self, replaced)

    monkeypatch.setattr(Chooser, "replace", noted)
    params = [SamplingParams(max_tokens=n, temperature=0) for n in (4, 12, 12, 4)]
    with PearlDecoder(model, strategy="autoregressive", max_batch=2) as decoder:
        decoder.generate([[1, 2, 3]] * 4, params)
    assert rows == [[0], [1]]


def test_a_choice_is_counted_when_a_request_is_handed_out(model):
    with PearlDecoder(model, draft_of(model), max_batch=2) as decoder:
        _, rounds = decoder.start([[1, 2, 3], [4]] * 4, SamplingParams(max_tokens=9, temperature=0))
        for updates in rounds:
            for update in updates:
                stats = update.request.stats
                if update.request.finish_reason is not None:
                    assert sum(stats.choices.values()) == stats.rounds


def test_what_has_ended_stays_as_it_ended_when_the_target_fails_after_it(model, monkeypatch, caplog):
    def failing(*_):
        raise MemoryError("no more")

    monkeypatch.setattr(Engine, "_turn_over", failing)
    with PearlDecoder(model, strategy="autoregressive") as decoder:
        params = [SamplingParams(max_tokens=n, temperature=0) for n in (1, 9)]
        done, other = decoder.generate([[1, 2, 3], [4, 5]], params)
    assert (done.finish_reason, done.error, len(done.token_ids)) == ("length", None, 1)
    assert (other.finish_reason, len(other.token_ids)) == ("error", 1)
