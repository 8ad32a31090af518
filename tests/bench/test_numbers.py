"""What the programs of bench/ compute from times and counts, with such as have an answer that can be seen by eye."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pearl_decode.bench.measure import Measurement, Sample
from pearl_decode.bench.summary import Spread
from pearl_decode.bench.sweep import _point, _speeds
from pearl_decode.stats import DecodeStats

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def test_microbenchmarks_say_how_many_times_as_fast(load):
    harness = load("harness")
    times_us = {
        harness.FLOOR: [5.0], harness.REFERENCE: [80.0], harness.TRANSFORMERS: [40.0],
        "cpu": [float(time) for time in range(15, 4, -1)],
        f"{harness.FLOOR}{harness.GRAPH}": [1.0], f"{harness.REFERENCE}{harness.GRAPH}": [20.0],
        f"cpu{harness.GRAPH}": [4.0],
    }  # fmt: skip
    rows = {row.contender: row for row in harness.compare("case", "greedy", times_us, 30_000.0)}
    assert [rows["cpu"].p20_us, rows["cpu"].p50_us, rows["cpu"].p80_us] == pytest.approx([7, 10, 13])
    assert rows["cpu"].gb_per_s == pytest.approx(3)
    found = {
        name: (row.times_read_floor, row.faster_than_transformers, row.faster_than_reference)
        for name, row in rows.items()
    }
    assert found == {
        "read once": (None, None, None), "reference": (16, 0.5, None), "transformers": (8, None, 2), "cpu": (2, 4, 8),
        "read once, graph": (None, None, None), "reference, graph": (20, None, None), "cpu, graph": (4, None, 5),
    }  # fmt: skip


class TimedTexts:
    """Each decoding takes as long as is said here, and 100 times that in the first turn."""

    def __init__(self, bench_list: ModuleType, answers: dict[tuple[str, str], list[list[int]]]) -> None:
        first, second, third = bench_list.PLANS
        cut, given_on = bench_list.WAYS
        self.seconds = {
            (first, cut): 12.0, (first, given_on): 8.0, (second, cut): 6.0, (second, given_on): 2.0,
            (third, cut): 5.0, (third, given_on): 1.0,
        }  # fmt: skip
        self.answers, self.done, self.now = answers, set(), 0.0

    def perf_counter(self) -> float:
        return self.now

    def decode(self, strategy: str, way: str) -> list[list[int]]:
        plan = strategy, way
        self.now += self.seconds[plan] * (1 if plan in self.done else 100 * len(self.done) + 100)
        self.done.add(plan)
        return self.answers.get(plan, [[1, 2, 3], [4, 5]])


def test_a_list_is_as_many_times_as_fast_as_batches_took_longer(load, monkeypatch):
    bench_list = load("bench_list")
    texts = TimedTexts(bench_list, {})
    monkeypatch.setattr(bench_list, "time", texts)
    rows = bench_list.measure(texts, 3)
    assert [(row.tokens, row.faster, row.over_first) for row in rows] == [(5, 1.5, 1), (5, 3, 4), (5, 5, 8)]


@pytest.mark.parametrize("way", ["batch by batch", "rows given on"])
def test_a_list_with_another_text_is_an_error(load, way):
    bench_list = load("bench_list")
    texts = TimedTexts(bench_list, {("auto", way): [[1, 2, 3], [4, 6]]})
    with pytest.raises(SystemExit, match=f"^auto, {way}: the texts differ$"):
        bench_list.measure(texts, 1)


def test_a_session_is_as_many_times_as_fast_as_anew_took_longer(load):
    bench_session = load("bench_session")

    def turn(size: int, reused: int, first: float, whole: float) -> dict:
        anew, session = (
            SimpleNamespace(stats=SimpleNamespace(reused_tokens=count), token_ids=[1]) for count in (0, reused)
        )
        return {
            "anew": bench_session.Answer(size, anew, 0.25 * first, 2 * whole),
            "session": bench_session.Answer(size, session, 0.25, 2.0),
        }

    conversations = [[turn(10, 0, 1, 1), turn(50, 40, first, whole)] for first, whole in ((9, 2), (4, 3), (5, 1.5))]
    assert bench_session.rows_of(conversations) == [
        bench_session.Row(1, 10, 0, 1.0, 1.0),
        bench_session.Row(2, 50, 40, 5.0, 2.0),
    ]


@pytest.mark.parametrize(
    ("accepted", "sequential", "pearl"),
    [
        ("a" * 9, 2, 3),  # 5 + 4; 1 + 4 + 4
        ("r" * 3, 3, 3),
        ("araaaa", 2, 4),  # 2 + 4; 1 + 1, and after the refusal 1 again + 3
        ("aaaraaaa", 2, 4),  # 4 + 4; 1 + 3, 1 + 3
    ],
)
def test_rounds_of_a_text(load, accepted, sequential, pearl):
    bench_draft = load("bench_draft")
    judged = [mark == "a" for mark in accepted]
    assert bench_draft.sequential_rounds(judged, 4) == sequential
    assert bench_draft.pearl_rounds(judged, 4) == pearl


@pytest.mark.parametrize(
    ("strategy", "case", "floor_ms"),
    [("pearl", (40, 5, 4), 40), ("pearl", (40, 10, 8), 80), ("sequential", (40, 5, 4), 60)],
)
def test_a_round_takes_the_longer_lane_or_both(load, strategy, case, floor_ms):
    row = load("bench_overlap").row_of(strategy, case, [floor_ms * times / 1e3 for times in (1.5, 1.25, 4)])
    assert (row["strategy"], row["target_ms"], row["draft_ms"], row["gamma"]) == (strategy, *case)
    assert row["floor_ms"] == floor_ms
    found = [row[name] for name in ("round_ms", "ratio", "ratio_min", "ratio_max")]
    assert found == pytest.approx([1.5 * floor_ms, 1.5, 1.25, 4])


def test_auto_is_beside_the_fastest_of_the_fixed_choices():
    speeds = {("autoregressive", 1): 10.0, ("pearl", 4): 40.0, ("sequential", 2): 20.0, ("auto", "auto"): 50.0}
    assert importlib.import_module("bench.bench_auto").row_of(0.8, 4, speeds) == {
        "acceptance": 0.8, "cost_ratio": 4, "best": "pearl 4", "best_over_autoregressive": 4,
        "auto_over_best": 1.25, "auto_over_autoregressive": 5,
    }  # fmt: skip


def made_run(load, tokens: int, seconds: float, window_s: float, step_s: float | None, **more):
    """Eight rounds, of four draft forwards each if there is a draft."""
    forwards = 0 if step_s is None else 32
    return load("decode_runs").Run(
        **{
            "rounds": 8, "tokens": tokens, "seconds": seconds, "host_s": seconds / 2, "target_busy_s": 8 * window_s,
            "draft_busy_s": forwards * (step_s or 0.0), "draft_forwards": forwards, "texts": [[1, 2, 3]],
            "peak_bytes": 10**9, **more,
        }
    )  # fmt: skip


def test_numbers_of_a_decoding_cell(load):
    cell = load("decode_cell")
    alone = made_run(load, 16, 16.0, 1.0, None)
    runs = [
        made_run(load, 32, 16.0, 1.0, 0.25),
        made_run(load, 64, 16.0, 0.5, 0.125, peak_bytes=3 * 10**9, texts=[[1, 9, 3]]),
        made_run(load, 48, 16.0, 1.0, 0.25),
    ]
    system = cell.System("pearl", 4, lambda: runs[0])
    samples = {"pearl 4": runs, "autoregressive": [alone] * 3}
    floors = cell.Floors(target_s=0.25, draft_s=0.125, cache_s=0.75)
    longer = {4: [made_run(load, 16, 16.0, 1.0, 0.125)]}
    where = cell.Cell("tiny", 24, 1, 0.8)
    row = cell._row(SimpleNamespace(name="tiny"), where, system, samples, longer, floors, [[1, 2, 3]])
    assert row["tokens_per_s"] == {"median": 3, "low": 2, "high": 4}
    assert row["ratio"] == {"median": 3, "low": 2, "high": 4}
    expected = {
        "tokens_per_target_forward": 6, "round_ms": 2000, "round_over_longer_lane": 2, "host_ms_per_round": 1000,
        "target_idle": 0.5, "draft_idle": 0.5, "target_window_ms": 1000, "draft_step_ms": 250,
        "target_window_over_weights": 4, "target_window_over_weights_and_cache": 1, "draft_step_over_weights": 2,
        "peak_gb": 3,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["same_text"] == [0, 1]
    assert row["counted_rounds"] == [8, 8, 8]


@pytest.mark.parametrize(
    ("strategy", "gamma", "times"),
    [
        ("pearl", 2, 2),  # the target's 1 s, of rounds of 2 s
        ("pearl", 7, 2 / 3.5),  # seven steps of half a second, as with gamma 8
        ("sequential", 8, 0.5),
        ("autoregressive", 1, 4),  # its own forward of half a second
        ("auto", "auto", None),
        ("assisted", 4, None),
    ],
)
def test_a_round_is_beside_the_longer_lane_alone(load, strategy, gamma, times):
    cell = load("decode_cell")
    alone = {2: [made_run(load, 8, 8.0, 1.0, 0.25)], 8: [made_run(load, 8, 8.0, 1.0, 0.5)]}
    runs = [made_run(load, 8, 16.0, 0.5, 0.25)]
    found = cell._over_longer_lane(cell.System(strategy, gamma, lambda: runs[0]), runs, alone)
    assert found == (times if times is None else pytest.approx(times))


def test_only_rounds_after_the_warm_ones_count(load):
    runs = load("decode_runs")
    marks = [runs.Mark(10.0 * at, 5.0 * at, 100 * at, 4.0 * at, 2.0 * at, 3 * at) for at in (1, 5, 6, 7, 8, 9)]
    run = runs._run(marks, [[1]], 7)
    assert (run.rounds, run.tokens, run.seconds, run.host_s) == (4, 400, 40, 20)
    assert (run.target_busy_s, run.draft_busy_s, run.draft_forwards) == (16, 8, 12)
    assert (run.tokens_per_s, run.round_s, run.window_s) == (10, 10, 4)
    assert run.step_s == pytest.approx(2 / 3)
    with pytest.raises(RuntimeError, match="a run needs 6 rounds before a text ends, got 5"):
        runs._run(marks[1:], [[1]], 7)


def test_the_fastest_gamma_of_each_strategy_is_marked(load):
    speeds = [("pearl", 3.0), ("pearl", 5.0), ("auto", 4.0)]
    rows = [{"strategy": strategy, "tokens_per_s": {"median": speed}} for strategy, speed in speeds]
    load("decode_cell")._mark_best(rows)
    assert [row["best"] for row in rows] == [False, True, True]


def sample(system: str, repeat: int, tokens: int, accepted: int) -> Sample:
    """Two requests that decode together for two seconds; of the four drafted tokens of each so many were accepted."""
    stats = DecodeStats(
        "", 1, "", decode_s=2.0, target_forwards=4, target_busy_s=0.8, draft_forwards=8, draft_busy_s=0.4,
        accepted_tokens=accepted, judged_tokens=4,
    )  # fmt: skip
    return Sample(system, "task", 0, repeat, 99.0, [[1] * (tokens // 2)] * 2, [stats, stats])


def test_a_point_of_a_sweep_is_over_the_target_alone():
    own, other = "sequential, gamma 1", "sequential, gamma 3"
    tokens = {"autoregressive": (10, 10, 10), own: (20, 40, 30), other: (10, 10, 10), "pearl, gamma 1": (10, 10, 10)}
    accepted = {"autoregressive": 0, own: 4, other: 0, "pearl, gamma 1": 3}
    done = Measurement([sample(name, at, tokens[name][at], accepted[name]) for name in tokens for at in range(3)])
    alone = _speeds(done, "autoregressive")
    assert alone == [5, 5, 5]
    point = _point(done, own, "sequential", 1, alone)
    assert (point.strategy, point.gamma, point.acceptance) == ("sequential", 1, 0.5)
    assert point.ratio == Spread(3, 2, 4)
    assert (point.target_s, point.draft_s) == pytest.approx((0.2, 0.05))
    assert point.modelled == pytest.approx(1.2)  # 1.5 tokens in 0.2 + 0.05 s are 6 a second
