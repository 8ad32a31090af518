"""From samples to the numbers that are shown: medians with their spread, per task and over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pearl_decode.bench.measure import Measurement, Sample
from pearl_decode.bench.systems import BASELINE
from pearl_decode.stats import DecodeStats

OVERALL = "all tasks"


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One system on one task.

    tokens:        counted in one repeat (the first)
    tokens_per_s:  counted tokens over the seconds of the calls, each repeat a value
    ratio:         speed over that of the target alone in the same repeat; None where that was not measured
    same_text:     prompts that got the target's own greedy text, and prompts in all; None where it is not promised
    tokens_per_target_forward, acceptance: None where the system does not say
    """

    system: str
    task: str
    tokens: int
    tokens_per_s: Spread
    ratio: Spread | None
    same_text: tuple[int, int] | None
    tokens_per_target_forward: float | None
    acceptance: float | None


def summarise(measurement: Measurement, *, greedy: bool) -> list[Row]:
    """Rows in the order systems and tasks came, each system's row over all tasks last if there are several."""
    systems = list(dict.fromkeys(sample.system for sample in measurement.samples))
    tasks = list(dict.fromkeys(sample.task for sample in measurement.samples))
    rows = []
    for task in [*tasks, OVERALL] if len(tasks) > 1 else tasks:
        here = [s for s in measurement.samples if task in (OVERALL, s.task)]
        baseline = [sample for sample in here if sample.system == BASELINE]
        rows += [_row(name, task, [s for s in here if s.system == name], baseline, greedy) for name in systems]
    return rows


def _row(name: str, task: str, samples: list[Sample], baseline: list[Sample], greedy: bool) -> Row:
    speeds = _speeds(samples)
    alone = _speeds(baseline)
    stats = [entry for sample in samples for entry in sample.stats]
    forwards = sum(entry.target_forwards for entry in stats)
    return Row(
        name,
        task,
        sum(sample.tokens for sample in samples if sample.repeat == 0),
        Spread.of(list(speeds.values())),
        Spread.of([speed / alone[repeat] for repeat, speed in speeds.items()]) if alone else None,
        _same_text(samples, baseline) if greedy and baseline else None,
        sum(entry.emitted_tokens for entry in stats) / forwards if forwards else None,
        acceptance(stats),
    )


def _speeds(samples: list[Sample]) -> dict[int, float]:
    """Tokens per second of each repeat."""
    return {
        repeat: sum(s.tokens for s in samples if s.repeat == repeat)
        / sum(s.seconds for s in samples if s.repeat == repeat)
        for repeat in sorted({sample.repeat for sample in samples})
    }


def _same_text(samples: list[Sample], baseline: list[Sample]) -> tuple[int, int]:
    expected = {sample.job: sample.token_ids for sample in baseline}
    pairs = [pair for s in samples if s.repeat == 0 for pair in zip(s.token_ids, expected[s.job], strict=True)]
    return sum(own == wanted for own, wanted in pairs), len(pairs)


def acceptance(stats: Sequence[DecodeStats]) -> float | None:
    """Of the drafted tokens that were judged one by one, the share that was accepted; None if there were none."""
    judged = sum(entry.judged_tokens for entry in stats)
    return sum(entry.accepted_tokens for entry in stats) / judged if judged else None


def accepted_lengths(measurement: Measurement) -> dict[str, list[int]]:
    """For each system that keeps statistics and drafted: entry n counts rounds that accepted n drafted tokens."""
    found: dict[str, list[int]] = {}
    for sample in measurement.samples:
        for entry in sample.stats:
            if entry.draft_forwards:
                counts = found.setdefault(sample.system, [])
                counts.extend([0] * (len(entry.accepted_lengths) - len(counts)))
                for length, rounds in enumerate(entry.accepted_lengths):
                    counts[length] += rounds
    return found
