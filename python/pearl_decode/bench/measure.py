"""Times systems on prompts, in turns, and counts what they may count."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from pearl_decode.attention import planless_sdpa
from pearl_decode.bench.systems import System
from pearl_decode.stats import DecodeStats

WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Job:
    """Prompts of one task, given to a system in one call. prompts: their token ids."""

    task: str
    prompts: list[list[int]]


@dataclass(frozen=True)
class Sample:
    """One call. seconds: all of it, prompt processing included; token_ids: counted ones, per prompt."""

    system: str
    task: str
    job: int
    repeat: int
    seconds: float
    token_ids: list[list[int]]
    stats: list[DecodeStats]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.token_ids))


@dataclass
class Measurement:
    """All samples, and for each system that failed, why; its samples are left out."""

    samples: list[Sample] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)


def counted(token_ids: Sequence[int], eos_ids: Sequence[int], max_tokens: int) -> list[int]:
    """The ids that belong to the text: up to the first end-of-sequence, which counts, and at most max_tokens."""
    ends = (index + 1 for index, token in enumerate(token_ids[:max_tokens]) if token in eos_ids)
    return list(token_ids[: next(ends, max_tokens)])


@planless_sdpa()  # peers have a new shape at every token
def measure(
    systems: Sequence[System],
    jobs: Sequence[Job],
    *,
    max_tokens: int,
    repeat: int,
    eos_ids: Sequence[int],
    report: Callable[[str, int, int], None],
) -> Measurement:
    """Run every system on every job `repeat` times.

    On each job all systems run one after another, and another one begins each time: what slows the machine for a
    while slows all of them. Before that each has a short run that is not counted. A system that raises is out, with
    its reason in `errors`.
    report: called before each run with what runs, the runs done and the runs in all
    """
    measurement = Measurement()
    total = len(systems) * (1 + repeat * len(jobs))
    done = 0

    def attempt(system: System, job: Job, index: int, turn: int, tokens: int) -> Sample | None:
        nonlocal done
        report(system.name, done, total)
        done += 1
        if system.name in measurement.errors:
            return None
        try:
            return _run(system, job, index, turn, tokens, eos_ids)
        except Exception as error:  # whatever it is, the other systems are measured
            measurement.errors[system.name] = " ".join(f"{type(error).__name__}: {error}".split())
            return None

    for system in systems:
        attempt(system, jobs[0], 0, -1, min(WARM_UP_TOKENS, max_tokens))
    for turn in range(repeat):
        for index, job in enumerate(jobs):
            first = (turn + index) % len(systems)
            for system in [*systems[first:], *systems[:first]]:
                sample = attempt(system, job, index, turn, max_tokens)
                if sample is not None:
                    measurement.samples.append(sample)
    measurement.samples = [s for s in measurement.samples if s.system not in measurement.errors]
    return measurement


def _run(system: System, job: Job, index: int, turn: int, max_tokens: int, eos_ids: Sequence[int]) -> Sample:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # what the system before queued and did not wait for is not this one's time
    start = time.perf_counter()
    output = system.decode(job.prompts, max_tokens)
    seconds = time.perf_counter() - start
    ids = [counted(tokens, eos_ids, max_tokens) for tokens in output.token_ids]
    return Sample(system.name, job.task, index, turn, seconds, ids, output.stats)
