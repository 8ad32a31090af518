"""Strategy "auto": what it knows, how it chooses, and that changing one's mind changes no text."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.auto import LEAD, RENEWED, Choice, Chooser, Timing
from pearl_decode.costs import ENOUGH, SAMPLES, Acceptance, Costs, Curve, StepTimes, pearl_tokens, sequential_tokens
from pearl_decode.engine import Plan
from pearl_decode.lanes import PacedLane
from pearl_decode.lanes.cpu import available_cores
from pearl_decode.lanes.target import TargetLane
from pearl_decode.lookup import NGRAMS
from pearl_decode.round import Round
from pearl_decode.state import Batch
from pearl_decode.strategies import STRATEGIES
from tests.runtime.scripted import scripted_pair, sequence_model, tokens_per_round
from tests.runtime.test_law import _exact_law, _p_value, _tables, _text_counts

ALL = [Choice("autoregressive", 1)] + [Choice(s, g) for s in ("lookup", "sequential", "pearl") for g in (2, 4, 8)]


@pytest.fixture
def at_random(monkeypatch):
    """Every round another choice, whatever it costs."""
    dice = random.Random(7)

    def choose(self, remaining, matched, drafting, making_s=None):
        return dice.choice([c for c in self.choices if c.gamma <= 6])

    monkeypatch.setattr(Chooser, "choose", choose)


def _counts(accepted: float, tokens: int, dice: random.Random) -> list[bool]:
    return [dice.random() < accepted for _ in range(tokens)]


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.2), (0.2, 0.9)])
def test_a_change_of_acceptance_is_seen_within_twenty_tokens(before, after):
    late = []
    for seed in range(20):
        dice, acceptance = random.Random(seed), Acceptance()
        for hit in _counts(before, 300, dice):
            acceptance.count(int(hit), 1)
        assert abs(acceptance.value - before) < 0.2
        for hit in _counts(after, 20, dice):
            acceptance.count(int(hit), 1)
        late.append(abs(acceptance.value - after) > 0.25)
    assert sum(late) <= 3


def test_an_acceptance_that_is_not_seen_is_hoped_to_have_risen():
    acceptance = Acceptance(start=0.2)
    for _ in range(50):
        acceptance.count(0, 0)
    assert acceptance.value == pytest.approx(0.2)
    assert 0.3 < acceptance.hoped < 0.5


def test_pearl_formula_is_the_one_the_runtime_is_held_to():
    for a in (0.1, 0.5, 0.9):
        for gamma in (1, 2, 4, 8):
            assert pearl_tokens(a, gamma) == pytest.approx(tokens_per_round(a, gamma))


def test_times_are_measured_interpolated_or_taken_from_elsewhere():
    alone = StepTimes()
    assert alone.window_s(1, 0) is None
    for width, seconds in ((1, 0.010), (5, 0.014)):
        alone.add_window(width, 9.0, 0)  # the first one is a warm-up
        alone.add_window(width, seconds, 0)
    assert alone.window_s(3, 0) == pytest.approx(0.012)
    assert alone.window_s(9, 0) == pytest.approx(0.014)
    assert alone.window_s(1, 100) == pytest.approx(0.009)
    beside = StepTimes(alone)
    assert beside.window_s(5, 0) == pytest.approx(0.014)
    for seconds in (9.0, 0.020):
        beside.add_window(1, seconds, 0)
    assert beside.window_s(5, 0) == pytest.approx(0.028)


def _measured(times: StepTimes, windows: dict[int, float], samples: int = 1) -> None:
    for width, seconds in windows.items():
        for _ in range(1 + samples):  # the first one is a warm-up
            times.add_window(width, seconds, 0)


def test_a_window_takes_no_longer_than_a_wider_one_did():
    times = StepTimes()
    _measured(times, {1: 0.021, 2: 0.018, 4: 0.020})
    assert times.windows_s(np.array([1, 2, 3, 4]), 0).tolist() == pytest.approx([0.018, 0.018, 0.019, 0.020])


def test_windows_go_on_growing_as_they_did_when_enough_is_known_of_that():
    few, many, flat = StepTimes(), StepTimes(), StepTimes()
    _measured(few, {1: 0.010, 3: 0.014}, samples=ENOUGH - 1)
    _measured(many, {1: 0.010, 2: 0.013, 3: 0.014}, samples=ENOUGH)
    _measured(flat, {1: 0.010, 3: 0.010}, samples=ENOUGH)
    assert [times.window_s(8, 0) for times in (few, many, flat)] == pytest.approx([0.014, 0.024, 0.010])


def test_a_thread_may_learn_while_another_asks():
    """As threads do that use one decoder: here between any two lines."""
    times = Costs().times(1, overlapping=False)

    def learn(frame, *_):
        if frame.f_code is Curve._measured.__code__:
            times._windows._known = None  # as after `add_window`
            return learn
        return None

    for _ in range(2):
        times.add_window(1, 1.0, 0)
    before = sys.gettrace()
    sys.settrace(learn)
    try:
        assert times.window_s(1, 0) == 1.0
    finally:
        sys.settrace(before)


def test_other_batches_are_taken_to_be_like_those_of_as_many_rows():
    costs = Costs()
    _measured(costs.times(2, overlapping=False), {2: 0.010, 8: 0.016})
    more, beside = (costs.times(8, overlapping=overlaps) for overlaps in (False, True))
    assert more.windows_s(np.array([1, 2]), 0).tolist() == pytest.approx([0.012, 0.016])
    _measured(more, {1: 0.018})
    assert more.windows_s(np.array([1, 2]), 0).tolist() == pytest.approx([0.018, 0.024])
    assert beside.window_s(2, 0) == pytest.approx(0.024)


def test_a_time_is_forgotten_the_slower_the_more_samples_it_stands_on():
    once, often = StepTimes(), StepTimes()
    for times, samples in ((once, 1), (often, 4)):
        for _ in range(1 + samples):
            times.add_steps(1, 0.010, 0)
    assert once.step_s(1, 100) == pytest.approx(0.009)
    assert often.step_s(1, 100) == pytest.approx(0.00975)


def test_drafting_may_cost_something_whatever_is_drafted():
    times = StepTimes()
    times.add_window(1, 9.0, 0)
    times.add_window(1, 0.010, 0)
    guessed = times.drafting_s(np.array([1, 4]), 0)
    assert guessed.tolist() == pytest.approx([0.0005, 0.002])
    for gamma, seconds in ((1, 0.0008), (6, 0.0023)):  # 0.5 ms, and 0.3 for each
        times.add_steps(gamma, 9.0, 0)
        times.add_steps(gamma, seconds, 0)
    assert times.drafting_s(np.array([1, 3, 6, 12]), 0).tolist() == pytest.approx([0.0008, 0.0014, 0.0023, 0.0046])
    beside = StepTimes(times)
    for seconds in (9.0, 0.0028):
        beside.add_steps(3, seconds, 0)
    assert beside.drafting_s(np.array([3, 6]), 0).tolist() == pytest.approx([0.0028, 0.0046])


def test_steps_are_forgotten_only_while_nothing_is_drafted_but_each_width_of_windows_by_itself():
    times = StepTimes()
    for _ in range(2):
        times.add_steps(2, 0.002, 0)
        times.add_window(3, 0.010, 0)
    for _ in range(2):
        times.add_steps(4, 0.004, 100)
        times.add_window(5, 0.010, 100)
    assert times.step_s(2, 100) == pytest.approx(0.001)
    assert times.step_s(2, 200) == pytest.approx(0.0009)
    assert times.windows_s(np.array([3, 5]), 100).tolist() == pytest.approx([0.009, 0.010])


def test_a_draft_step_is_learnt_from_rounds_of_one_step_but_not_from_what_was_missed():
    alone, one = Choice("autoregressive", 1), Choice("sequential", 1)
    costs = Costs()
    chooser = Chooser([alone, one], costs, 1)
    for step_ms in (99, 4, 4, 4):  # the first one reads what was written without the draft
        chooser.observe(one, Timing(2, 0.01 + step_ms / 1e3, 0.01, [step_ms / 1e3]), [1], [1], [0])
    assert costs.times(1, overlapping=False).step_s(1, costs.round) == pytest.approx(0.004)
    for _ in range(200):
        chooser.observe(alone, Timing(1, 0.01, 0.01, []), [0], [0], [0])
    assert costs.times(1, overlapping=False).step_s(1, costs.round) < 0.004
    for step_ms in (99, 4):
        chooser.observe(one, Timing(2, 0.01 + step_ms / 1e3, 0.01, [step_ms / 1e3]), [1], [1], [0])
    assert costs.times(1, overlapping=False).step_s(1, costs.round) == pytest.approx(0.004)


def _chosen(target_ms: float, draft_ms: float, acceptances: list[float], seed: int = 1) -> list[Choice]:
    """What is chosen in rounds of such times whose drafted tokens are accepted so often."""
    chooser = Chooser(ALL, Costs(), 1)
    dice, chosen = random.Random(seed), []
    for acceptance in acceptances:
        choice = chooser.choose([1000], [0], True)
        gamma, steps = choice.gamma, []
        hits = 0
        if choice.strategy != "autoregressive":
            steps = [draft_ms / 1e3] * gamma
            while hits < gamma and dice.random() < acceptance:
                hits += 1
        overlaps = choice.strategy == "pearl"
        round_s = max(target_ms / 1e3, sum(steps)) if overlaps else target_ms / 1e3 + sum(steps)
        judged = [min(hits + 1, gamma) if steps else 0]
        chooser.observe(
            choice,
            Timing(gamma if overlaps else 1 + gamma * bool(steps), round_s, target_ms / 1e3, steps),
            [hits],
            judged,
            [0],
        )
        chosen.append(choice)
    return chosen


def test_the_choice_follows_cost_and_acceptance():
    assert _chosen(40, 5, [0.9] * 400)[-1].strategy == "pearl"
    assert _chosen(40, 1, [0.5] * 400)[-1].strategy == "sequential"
    assert _chosen(40, 20, [0.2] * 400)[-1].strategy == "autoregressive"


def test_a_batch_that_stays_with_its_first_choice_is_told_why():
    """From when on something was measured."""
    costs, making_s = Costs(), [0.0, *[9.0] * (len(ALL) - 1)]
    for known in (False, True, True):
        chooser = Chooser(ALL, costs, 1)
        assert chooser.choose([90], [0], True, making_s) == ALL[0]
        assert ("expected tokens/s: autoregressive 100, " in chooser.reason) is known
        _measured(costs.times(1, overlapping=False), {1: 0.01})


def test_what_has_to_be_made_ready_is_tried_where_that_pays_in_what_is_to_come():
    alone = ALL[0]
    for remaining, making_s, tried in (
        (60, 0.0, True), (60, 0.1, True), (60, 1.0, False), (9000, 1.0, True), (9000, 9.0, False),
    ):  # fmt: skip
        chooser = Chooser(ALL, Costs(), 1)
        for _ in range(3):
            chooser.observe(alone, Timing(1, 0.002, 0.002, []), [0], [0], [0])
        chosen = chooser.choose([remaining], [0], True, [0.0, *[making_s] * (len(ALL) - 1)])
        assert (chosen != alone) is tried, (remaining, making_s)


def test_windows_have_at_most_sixteen_rows_and_pearl_something_to_write_ahead():
    choices = Plan("auto", "auto", "block").choices
    widest = {strategy: max(c.gamma for c in choices if c.strategy == strategy) for strategy in STRATEGIES}
    assert widest == {"autoregressive": 1, "lookup": 15, "sequential": 15, "pearl": 16}
    assert min(c.gamma for c in choices if c.strategy == "pearl") == 2
    assert Plan("pearl", 1, "block").choices == [Choice("pearl", 1)]


def test_making_ready_costs_nothing_where_there_was_time_for_it():
    costs = Costs()
    assert costs.making_s(2) == 0.0, "nothing is known of it"
    for seconds in (0.1, 0.3):
        costs.count_making(seconds)
    assert costs.making_s(0) == 0.0
    assert costs.making_s(2) == pytest.approx(0.4)
    costs.count_decoding(15.9)
    assert costs.making_s(2) == pytest.approx(0.4)
    costs.count_decoding(0.2)  # a twentieth of it is now more than 0.8
    assert costs.making_s(2) == 0.0
    assert costs.making_s(3) == pytest.approx(0.6)


@pytest.mark.parametrize("matched", [0, *NGRAMS])
def test_what_is_prepared_is_what_would_be_found_anew(matched):
    chooser = Chooser(ALL, Costs(), 2)
    for choice, steps in ((ALL[0], []), (ALL[0], []), (ALL[5], [0.002] * 4), (ALL[5], [0.002] * 4)):
        chooser.observe(choice, Timing(1 + len(steps), 0.02, 0.012, steps), [1, 3], [2, 4] if steps else [0, 0], [0, 0])
    speeds = chooser.prepare().usual[(0, *NGRAMS).index(matched)]
    anew = chooser.speeds([1000, 1000], [matched, matched], drafting=True)
    assert speeds.tolist() == pytest.approx(anew.tolist())
    assert speeds.max() > 0


@pytest.mark.parametrize("remaining", [1, 2, 3, 5, 8, 13, 40])
@pytest.mark.parametrize("matched", [0, 3])
def test_the_choice_is_the_fastest_for_what_remains(remaining, matched):
    """However few tokens that is, and whether what was prepared tells it or not."""
    for rate in (0.3, 0.6, 0.9, 1.0):
        chooser = Chooser(ALL, Costs(), 1)
        for _ in range(30):
            for choice, steps in ((ALL[0], []), (ALL[5], [0.001] * 4)):
                drafted = 10 * len(steps)
                chooser.observe(
                    choice, Timing(1 + len(steps), 0.02, 0.012, steps), [int(rate * drafted)], [drafted], [matched]
                )
        speeds = chooser.speeds([remaining], [matched], drafting=True)
        chosen = chooser.choose([remaining], [matched], drafting=True)
        assert speeds[ALL.index(chosen)] == pytest.approx(speeds.max(), rel=LEAD - 1)


def _speed(choice: Choice, acceptance: float, target_ms: float, draft_ms: float) -> float:
    if choice.strategy == "pearl":
        return pearl_tokens(acceptance, choice.gamma) / max(target_ms, choice.gamma * draft_ms)
    gamma = choice.gamma if choice.strategy == "sequential" else 0
    return sequential_tokens(acceptance, gamma) / (target_ms + gamma * draft_ms)


@pytest.mark.parametrize("seed", range(5))
def test_a_change_of_acceptance_is_followed_within_twenty_rounds(seed):
    chosen = _chosen(40, 1, [0.9] * 200 + [0.2] * 60, seed)
    for acceptance, rounds in ((0.9, slice(180, 200)), (0.2, slice(220, 260))):
        best = max(_speed(choice, acceptance, 40, 1) for choice in ALL)
        reached = [_speed(choice, acceptance, 40, 1) / best for choice in chosen[rounds]]
        assert sum(reached) / len(reached) > 0.93
    assert _speed(chosen[199], 0.2, 40, 1) < 0.9 * best  # going on as before would have been a mistake


def test_lookup_is_trusted_by_how_much_of_the_text_it_goes_by():
    chooser = Chooser(ALL, Costs(), 2)
    lookup = Choice("lookup", 4)
    for width in (1, 1, 5, 5):  # the first of each is a warm-up
        chooser.observe(ALL[0] if width == 1 else lookup, Timing(width, 0.02, 0.02, []), [0, 0], [0, 0], [0, 0])
    for _ in range(30):
        chooser.observe(lookup, Timing(5, 0.02, 0.02, []), [4, 0], [4, 1], [8, 2])
        chooser.observe(lookup, Timing(5, 0.02, 0.02, []), [0, 4], [1, 4], [2, 8])
    sure, unsure, both = (chooser.speeds([99, 99], matched, False) for matched in ([8, 8], [2, 2], [8, 2]))
    place = ALL.index(lookup)
    assert sure[place] > 3 * sure[0]
    assert unsure[place] < 1.2 * unsure[0]
    assert sure[place] > both[place] > unsure[place]
    assert chooser.choose([99, 99], [8, 8], False).strategy == "lookup"


def test_a_draft_is_trusted_by_how_much_of_the_text_came_before():
    drafting = Choice("sequential", 4)
    chooser = Chooser([choice for choice in ALL if choice.strategy != "pearl"], Costs(), 1)
    for choice, steps in ((ALL[0], []), (ALL[0], []), (drafting, [0.0005] * 4), (drafting, [0.0005] * 4)):
        chooser.observe(choice, Timing(1 + len(steps), 0.02 + sum(steps), 0.02, steps), [0], [0], [0])
    for _ in range(30):
        for accepted, judged, matched in ((4, 4, 8), (0, 1, 0)):
            chooser.observe(drafting, Timing(5, 0.022, 0.02, [0.0005] * 4), [accepted], [judged], [matched])
    new, old = (chooser.speeds([99], [matched], True) for matched in (0, 8))
    place = chooser.choices.index(drafting)
    assert old[place] > 3 * new[place]
    assert chooser.choose([99], [8], True).strategy == "sequential"
    assert chooser.choose([99], [0], True).strategy == "autoregressive"


def test_what_is_expected_is_renewed_while_times_are_new_and_then_as_more_is_known():
    chooser, forecasts = Chooser(ALL, Costs(), 1), []
    for _ in range(SAMPLES + 1 + 3 * RENEWED):
        chooser.observe(ALL[0], Timing(1, 0.01, 0.01, []), [0], [0], [0])
        forecasts.append(chooser.prepare())
    assert len(set(map(id, forecasts[: SAMPLES + 1]))) == SAMPLES + 1
    assert len(set(map(id, forecasts[SAMPLES:]))) == 1 + 3
    chooser.observe(ALL[-1], None, [RENEWED], [RENEWED], [0])
    assert chooser.prepare() is not forecasts[-1], "much was accepted"


def test_lookup_is_hoped_to_have_become_better_only_where_it_was_passed_over():
    chooser, lookup = Chooser(ALL, Costs(), 1), Choice("lookup", 4)
    for width in (1, 1, 5, 5):
        chooser.observe(ALL[0] if width == 1 else lookup, Timing(width, 0.02, 0.02, []), [0], [0], [0])

    def expected() -> float:
        chooser.keep([0])  # the forecast is made anew
        return chooser.prepare().tokens[1 + NGRAMS.index(8), 0, ALL.index(lookup)]

    begin = expected()
    for _ in range(50):
        chooser.observe(ALL[0], None, [0], [0], [0])
    assert expected() == begin
    for _ in range(50):
        chooser.observe(ALL[0], None, [0], [0], [8])
    assert expected() > begin


def test_a_row_that_is_another_request_is_expected_to_do_as_requests_lately_did():
    costs = Costs()
    chooser = Chooser(ALL, costs, 2)
    for _ in range(SAMPLES):
        chooser.observe(Choice("sequential", 4), Timing(5, 0.012, 0.010, [0.0005] * 4), [4, 0], [4, 1], [0, 0])
    before = chooser.speeds([90, 90], [0, 0], True)
    chooser.replace([1])
    after, fresh = (each.speeds([90, 90], [0, 0], True) for each in (chooser, Chooser(ALL, costs, 2)))
    sequential = ALL.index(Choice("sequential", 4))
    assert before[sequential] < after[sequential]
    chooser.replace([0])
    assert chooser.speeds([90, 90], [0, 0], True) == pytest.approx(fresh)


@pytest.mark.parametrize("rule", ["greedy", "coupled"])
def test_text_is_the_targets_own_whatever_is_chosen(llama, near_llama, prompts, rule, at_random):
    params = SamplingParams(max_tokens=24, temperature=0.0 if rule == "greedy" else 0.8, seed=3)
    with PearlDecoder(llama, near_llama, rule=rule) as decoder:
        alone = decoder.generate(prompts, params, strategy="autoregressive")
        mixed = decoder.generate(prompts, params, strategy="auto", gamma="auto")
    assert [r.token_ids for r in mixed] == [r.token_ids for r in alone]
    assert len(mixed[0].stats.choices) > 3


@pytest.mark.parametrize("rule", ["token", "block"])
def test_joint_law_of_three_tokens_is_the_targets_whatever_is_chosen(rule, at_random):
    target, draft = _tables()
    counts = _text_counts(target, draft, 0.8, strategy="auto", gamma="auto", rule=rule)
    assert _p_value(counts, _exact_law(target, first=2, temperature=0.8)) > 1e-4


def test_a_draft_that_begins_reads_the_prompt_beside_the_target(monkeypatch):
    """The first request knows no times and begins alone; what it learns is that the draft pays."""
    prefill, drafting = Round.prefill, []

    def noted(self, with_draft):
        drafting.append(with_draft)
        prefill(self, with_draft)

    monkeypatch.setattr(Round, "prefill", noted)
    line = list(range(200))
    models = sequence_model(line, 256), sequence_model(line, 256)
    lanes = PacedLane("target", available_cores()[:1], 0.01), PacedLane("draft", available_cores()[-1:], 0.0005)
    with PearlDecoder(*models, lanes=lanes) as decoder:
        for _ in range(2):
            decoder.generate([[0]], SamplingParams(max_tokens=100))
    assert drafting == [False, True]


def test_each_round_is_learnt_from_once_beside_the_forward_of_the_next(llama, near_llama, monkeypatch):
    events = []

    def noted(owner, name):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **named: (events.append(name), method(*args, **named))[1])

    noted(TargetLane, "prepared_window")
    noted(Chooser, "observe")
    noted(Batch, "refresh")
    with PearlDecoder(llama, near_llama) as decoder:
        [one] = decoder.generate([[5, 6, 7]], SamplingParams(max_tokens=30))
        first, later = ["prepared_window", "refresh"], ["prepared_window", "observe", "refresh"]
        assert events[events.index("prepared_window") :] == first + (one.stats.rounds - 1) * later + ["observe"]
        events.clear()
        batch = decoder.generate([[5, 6, 7], [8, 9]], [SamplingParams(max_tokens=n) for n in (9, 30)])
    assert events.count("observe") == events.count("prepared_window") == max(r.stats.rounds for r in batch)


def test_lookup_needs_no_draft_and_saves_forwards():
    target = sequence_model([1, 2, 3, 4] * 20, vocab=8)
    with PearlDecoder(target) as decoder:
        [alone] = decoder.generate([[1, 2]], SamplingParams(max_tokens=40))
        [result] = decoder.generate([[1, 2]], SamplingParams(max_tokens=40), strategy="lookup", gamma=4)
        [auto] = decoder.generate([[1, 2]], SamplingParams(max_tokens=40), strategy="auto", gamma="auto")
    assert result.token_ids == alone.token_ids == auto.token_ids
    assert result.stats.target_forwards < 20
    assert result.stats.acceptance == 1.0


@pytest.mark.parametrize("strategy", ["sequential", "pearl", "auto"])
def test_acceptance_is_the_share_of_tokens_that_were_judged(strategy, at_random):
    rows = 64
    target, draft = scripted_pair(0.6, rows)
    plan = {"strategy": strategy, "gamma": "auto" if strategy == "auto" else 4}
    with PearlDecoder(target, draft, max_batch=rows) as decoder:
        results = decoder.generate([[2 * row] for row in range(rows)], SamplingParams(max_tokens=100), **plan)
    accepted, judged = (sum(getattr(r.stats, n) for r in results) for n in ("accepted_tokens", "judged_tokens"))
    assert judged > 1000
    assert 0.0 < accepted / judged < 1.0 if strategy == "auto" else abs(accepted / judged - 0.6) < 0.04


def test_statistics_hold_choices_and_reason(llama, near_llama):
    with PearlDecoder(llama, near_llama) as decoder:
        [result] = decoder.generate([[5, 6, 7]], SamplingParams(max_tokens=60), strategy="auto", gamma="auto")
    assert sum(result.stats.choices.values()) == result.stats.rounds
    assert "autoregressive" in result.stats.choices
    assert "expected tokens/s" in result.stats.reason


@pytest.mark.parametrize("lengths", [(3, 40), (2, 9)])
def test_a_draft_that_missed_more_than_a_short_row_has_reads_again(llama, near_llama, lengths, at_random):
    torch.manual_seed(0)
    prompts = [torch.randint(1, 100, (length,)).tolist() for length in lengths]
    with PearlDecoder(llama, near_llama) as decoder:
        alone = decoder.generate(prompts, SamplingParams(max_tokens=30), strategy="autoregressive")
        mixed = decoder.generate(prompts, SamplingParams(max_tokens=30), strategy="auto", gamma="auto")
    assert [r.token_ids for r in mixed] == [r.token_ids for r in alone]
