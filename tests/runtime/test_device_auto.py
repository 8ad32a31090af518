"""Strategy "auto" over static rounds: shapes change between rounds of one batch, and no text with them."""

from __future__ import annotations

import random
import time
import warnings
from itertools import pairwise

import pytest
import torch

from pearl_decode import SamplingParams
from pearl_decode.attention import ATTENTION_NAME, sdpa_replaced
from pearl_decode.auto import Choice, Chooser, Timing
from pearl_decode.costs import Costs
from pearl_decode.device.draft import StaticDraft
from pearl_decode.device.engine import DeviceOptions
from pearl_decode.device.rounds import StaticRounds
from pearl_decode.device.shape import COMPILED_WIDTHS, WIDTHS, shape_of, static_choices
from pearl_decode.engine import Plan
from pearl_decode.lanes.queue import InlineLane
from tests.runtime.device import DeviceDecoder, DynamicDecoder, Schedule, TapeLane, no_host_reads
from tests.runtime.scripted import ScriptedModel, sequence_model
from tests.runtime.test_law import _exact_law, _p_value, _tables, table_model

AUTO = {"strategy": "auto", "gamma": "auto"}
COUNTS = (24, 9, 1, 40, 17)


@pytest.fixture
def at_random(monkeypatch):
    """Every round another choice, whatever it costs; what was chosen, in order."""
    dice, chosen = random.Random(7), []

    def choose(self, remaining, matched, drafting, making_s=None):
        chosen.append(dice.choice([c for c in self.choices if c.gamma <= 8]))
        return chosen[-1]

    monkeypatch.setattr(Chooser, "choose", choose)
    return chosen


def test_the_draft_has_read_what_was_handed_over_before_there_is_more(llama, near_llama, prompts, monkeypatch):
    """Though the target went on alone meanwhile: its lane may then use that memory for other things."""
    happened, held = [], []

    def hand_over(self, tokens):
        held[:] = [tokens]
        if tokens is not None:
            happened.append("handed over")

    read = StaticDraft.read
    monkeypatch.setattr(StaticRounds, "_handed_over", property(lambda self: held[0], hand_over), raising=False)
    monkeypatch.setattr(StaticDraft, "read", lambda *args: happened.append("read") or read(*args))
    calls, schedule = iter(range(1000)), Schedule(0)
    monkeypatch.setattr(schedule._lot, "choice", lambda ready: ready[0])  # the target's, as long as that can go on
    monkeypatch.setattr(Chooser, "choose", lambda self, *_: self.choices[0 if next(calls) in (1, 2) else -1])
    with DeviceDecoder(llama, near_llama, rule="coupled", device_lanes=schedule.lanes, **AUTO) as decoder:
        decoder.generate(prompts[:2], SamplingParams(max_tokens=40))
    assert happened == ["handed over", "read"] * 2


def _params(temperature: float) -> list[SamplingParams]:
    return [SamplingParams(temperature=temperature, max_tokens=n, seed=n) for n in COUNTS]


def _ids(results):
    return [result.token_ids for result in results]


@pytest.fixture(scope="module")
def alone(llama, prompts):
    with DynamicDecoder(llama, strategy="autoregressive", rule="coupled") as decoder:
        return {t: _ids(decoder.generate(prompts, _params(t))) for t in (0.0, 0.8)}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("lane", [InlineLane, TapeLane])
@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("cpu", "cpu:0")], ids=["one device", "two devices"])
def test_text_is_the_targets_own_whatever_is_chosen(
    llama, near_llama, prompts, alone, temperature, lane, devices, at_random
):
    lanes = tuple(map(lane, devices))
    with DeviceDecoder(llama, near_llama, rule="coupled", device_lanes=lanes, **AUTO) as decoder:
        for _ in range(3):
            assert _ids(decoder.generate(prompts, _params(temperature))) == alone[temperature]
    assert len(set(at_random)) == 10  # the target alone, and three each of the other three


def test_events_alone_keep_the_lanes_in_order_when_shapes_change(llama, near_llama, prompts, alone, at_random):
    for seed in range(4):
        schedule = Schedule(seed)
        with DeviceDecoder(llama, near_llama, rule="coupled", device_lanes=schedule.lanes, **AUTO) as decoder:
            assert _ids(decoder.generate(prompts, _params(0.8))) == alone[0.8]
        assert schedule.lanes[0].most_waiting > 4, "the host never got ahead of the lanes"


@pytest.mark.parametrize("attention", ["sdpa", ATTENTION_NAME])
def test_a_change_of_shape_reads_nothing_on_the_host(
    llama, near_llama, prompts, alone, attention, at_random, monkeypatch
):
    with (
        sdpa_replaced(llama, attention),
        sdpa_replaced(near_llama, attention),
        DeviceDecoder(llama, near_llama, rule="coupled", **AUTO) as decoder,
        no_host_reads(monkeypatch),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")  # nor does a draft that was refused something show in the text
        results = decoder.generate(prompts, _params(0.8))
    assert [result.error for result in results] == [None] * 5
    assert _ids(results) == alone[0.8]


@pytest.mark.parametrize("rule", ["token", "block"])
def test_joint_law_of_three_tokens_is_the_targets_whatever_is_chosen(rule, at_random):
    """Windows are forgotten at every change, and drafted anew."""
    target, draft = _tables()
    rows, vocab = 20_000, target.shape[1]
    params = [SamplingParams(temperature=0.8, max_tokens=3, seed=seed) for seed in range(rows)]
    counts = torch.zeros(vocab**3, dtype=torch.int64)
    with DeviceDecoder(table_model(target), table_model(draft), rule=rule, max_batch=4_000, **AUTO) as decoder:
        ids = torch.tensor(_ids(decoder.generate([[2]] * rows, params)))
    counts += torch.bincount((ids * torch.tensor([vocab**2, vocab, 1])).sum(1), minlength=vocab**3)
    assert len(at_random) > 15
    assert _p_value(counts, _exact_law(target, first=2, temperature=0.8)) > 1e-4


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_a_draft_that_missed_rounds_reads_what_it_missed(llama, prompts, seed, at_random, monkeypatch):
    """The draft is the target: whatever its cache lacked, or read too early, would show as a refusal."""

    def choices(*given, **named):
        return [choice for choice in static_choices(*given, **named) if choice.strategy != "lookup"]

    monkeypatch.setattr("pearl_decode.device.engine.static_choices", choices)
    lanes = None if seed is None else Schedule(seed).lanes
    options = DeviceOptions(lateness=2, bucket=64)
    with DeviceDecoder(llama, llama, options=options, device_lanes=lanes, **AUTO) as decoder:
        for _ in range(3):
            for result in decoder.generate(prompts, SamplingParams(max_tokens=60)):
                assert result.error is None
                assert result.stats.judged_tokens == result.stats.accepted_tokens > 10
    assert sum(a.strategy == "autoregressive" != b.strategy for a, b in pairwise(at_random)) > 5


@pytest.mark.parametrize("strategy", ["auto", "pearl", "sequential"])
def test_a_draft_that_fails_between_shapes_costs_no_token(llama, near_llama, prompts, alone, strategy, at_random):
    for at in (0, 3, 9, 14):
        calls = iter(range(1000))

        def fail(module, args, kwargs, calls=calls, at=at):
            if next(calls) == at:
                raise torch.OutOfMemoryError("CUDA out of memory")

        hook = near_llama.register_forward_pre_hook(fail, with_kwargs=True)
        lanes = TapeLane(), TapeLane()
        plan = AUTO | {"strategy": strategy, "rule": "coupled", "device_lanes": lanes}
        try:
            with (
                DeviceDecoder(llama, near_llama, **plan) as decoder,
                pytest.warns(RuntimeWarning, match="the draft failed, the target goes on alone"),
            ):
                results = decoder.generate(prompts, _params(0.8))
        finally:
            hook.remove()
        assert _ids(results) == alone[0.8]


def test_statistics_hold_choices_and_reason(llama, near_llama):
    with DeviceDecoder(llama, near_llama, **AUTO) as decoder:
        [result] = decoder.generate([[5, 6, 7]], SamplingParams(max_tokens=60))
        shapes = set(decoder.runner.kept.rounds[-1].rounds)
        counted = {shape_of(*_parsed(name)) for name in result.stats.choices}
    assert sum(result.stats.choices.values()) == result.stats.rounds
    assert "autoregressive" in result.stats.choices
    assert "expected tokens/s" in result.stats.reason
    # What is still on its way at the end is not counted.
    assert counted <= shapes
    assert len(shapes) <= len(counted) + 1


def _parsed(name: str) -> tuple[str, int]:
    strategy, _, gamma = name.partition(" ")
    return strategy, int(gamma or 1)


class Clock:
    """Goes on by what is slept, and whoever asks it takes a microsecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def set_times(monkeypatch):
    """Time is what `sleep` says, whatever else runs on the machine."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(time, "sleep", clock.sleep)


def _sleeping(model: ScriptedModel, forward_s: float) -> ScriptedModel:
    def script(positions, ids):
        time.sleep(forward_s)
        return model.script(positions, ids)

    return ScriptedModel(model.config.vocab_size, script)


@pytest.mark.parametrize(("right", "favourites"), [(True, {"sequential", "pearl"}), (False, {"autoregressive"})])
def test_the_choice_follows_what_rounds_took_and_gave(right, favourites, set_times):
    """A target of 10 ms, and a draft of 1 ms, or one of 5 ms that is never right."""
    line = list(range(200))
    target = _sleeping(sequence_model(line, 256), 0.010)
    draft = _sleeping(sequence_model(line if right else line[::-1], 256), 0.001 if right else 0.005)
    with DeviceDecoder(target, draft, **AUTO) as decoder:
        for _ in range(2):
            [result] = decoder.generate([[0]], SamplingParams(max_tokens=120))
            assert result.token_ids == line[1:121]
    rounds = {name: count for name, count in result.stats.choices.items() if _parsed(name)[0] in favourites}
    assert sum(rounds.values()) > 0.7 * result.stats.rounds
    if right:
        assert result.stats.tokens_per_target_forward > 4


class TimedLane(TapeLane):
    """A TapeLane on which a piece of work takes a set time, and so does a capture."""

    def __init__(self, work_s: float, capture_s: float) -> None:
        super().__init__()
        self.work_s, self.capture_s = work_s, capture_s

    def finish(self, work):
        super().finish(lambda: (work(), time.sleep(self.work_s)))

    def capture(self, work):
        time.sleep(self.capture_s)
        return super().capture(work)


@pytest.mark.parametrize(("capture_s", "made"), [(0.0, 4), (0.3, 3), (1.0, 2), (3.0, 1)])
def test_rounds_that_take_long_to_make_ready_are_tried_the_seldomer(capture_s, made, set_times):
    """Where a token of the target alone takes 5 ms, a second of captures is two hundred."""
    line = list(range(200))
    models, lanes = [sequence_model(line, 256)] * 2, (TimedLane(0.005, capture_s), TimedLane(0.0005, capture_s))
    with DeviceDecoder(*models, device_lanes=lanes, **AUTO) as decoder:
        for _ in range(3):
            [result] = decoder.generate([[0]], SamplingParams(max_tokens=60))
            assert result.token_ids == line[1:61]
        assert len(decoder.runner.kept.rounds[-1].rounds) == made


def test_what_was_captured_for_one_strategy_is_there_for_the_next(llama, near_llama, prompts):
    lanes = TapeLane(), TapeLane()
    options = DeviceOptions(bucket=128)
    with DeviceDecoder(llama, near_llama, device_lanes=lanes, options=options, gamma=4) as decoder:
        captures = []
        for _ in range(2):
            for strategy in ("autoregressive", "sequential", "pearl"):
                decoder.generate(prompts, SamplingParams(max_tokens=20), strategy=strategy)
            captures.append([lane.captures for lane in lanes])
    assert captures == [[4, 2], [4, 2]]  # alone, verify, window and verify; two drafts


def test_windows_of_static_rounds_are_whole_ones():
    """A choice of PEARL is measured, and judged, by the one width it has."""
    chooser = Chooser([Choice("autoregressive", 1), Choice("pearl", 4)], _costs_of(), 1, whole_windows=True)
    dynamic = Chooser([Choice("autoregressive", 1), Choice("pearl", 4)], _costs_of(), 1)
    assert chooser.speeds([100], [False], True)[1] < dynamic.speeds([100], [False], True)[1]
    two = Chooser([Choice("autoregressive", 1)], _costs_of(), 2)
    assert two.speeds([100, 0], [False] * 2, True) == pytest.approx([100.0], rel=0.01)


def _costs_of():
    costs = Costs()
    chooser = Chooser([Choice("autoregressive", 1)], costs, 1)
    for _ in range(3):
        chooser.observe(Choice("autoregressive", 1), Timing(1, 0.010, 0.010, []), [0], [0], [0])
        chooser.observe(Choice("pearl", 4), Timing(1, 0.010, 0.010, [0.001] * 4), [1], [1], [0])
        chooser.observe(Choice("pearl", 4), Timing(4, 0.020, 0.020, [0.001] * 4), [1], [1], [0])
    return costs


def test_choices_are_coarse_and_share_their_widths():
    for widths in (WIDTHS, COMPILED_WIDTHS):
        choices = static_choices(Plan("auto", "auto", "token"), widths, drafting=True)
        shapes = [shape_of(choice.strategy, choice.gamma) for choice in choices]
        assert {shape.width for shape in shapes} == {1, *widths}
        assert len(shapes) == 1 + 3 * len(widths)
    assert static_choices(Plan("auto", 3, "token"), WIDTHS, drafting=True) == [
        Choice("autoregressive", 1),
        Choice("lookup", 3),
        Choice("sequential", 3),
        Choice("pearl", 3),
    ]
    alone = static_choices(Plan("auto", "auto", "token"), WIDTHS, drafting=False)
    assert {choice.strategy for choice in alone} == {"autoregressive", "lookup"}
