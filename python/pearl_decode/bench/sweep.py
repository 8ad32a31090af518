"""Speed against gamma, measured, and what the model says of the same acceptance and forward times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pearl_decode.bench.measure import Job, Measurement, measure
from pearl_decode.bench.model import pearl_speed, sequential_speed
from pearl_decode.bench.summary import Spread, acceptance
from pearl_decode.bench.systems import BASELINE, System, own_systems
from pearl_decode.decoder import PearlDecoder

SPEEDS = {"sequential": sequential_speed, "pearl": pearl_speed}


@dataclass(frozen=True)
class Point:
    """One strategy at one gamma, prompt processing left out on all sides.

    acceptance:        of this strategy's drafted tokens over all gammas together
    target_s, draft_s: mean time of a forward in these very runs, the other lane's load included
    ratio, modelled:   speed over the target alone, measured in the same repeat, and by the model
    """

    strategy: str
    gamma: int
    ratio: Spread
    modelled: float
    acceptance: float
    target_s: float
    draft_s: float


def sweep(
    decoder: PearlDecoder,
    strategies: Sequence[str],
    gammas: Sequence[int],
    jobs: Sequence[Job],
    *,
    temperature: float,
    seed: int,
    max_tokens: int,
    repeat: int,
    eos_ids: Sequence[int],
    report: Callable[[str, int, int], None],
) -> list[Point]:
    """Measure every strategy at every gamma beside the target alone. Raises RuntimeError if one of them fails."""
    systems = own_systems(decoder, [BASELINE], temperature, seed, {})
    names = {}
    for strategy in strategies:
        for gamma in gammas:
            (system,) = own_systems(decoder, [strategy], temperature, seed, {strategy: gamma})
            systems.append(System(f"{strategy}, gamma {gamma}", system.decode))
            names[systems[-1].name] = (strategy, gamma)
    done = measure(systems, jobs, max_tokens=max_tokens, repeat=repeat, eos_ids=eos_ids, report=report)
    if done.errors:
        raise RuntimeError("; ".join(f"{name}: {error}" for name, error in done.errors.items()))
    alone = _speeds(done, BASELINE)
    return [_point(done, name, *chosen, alone) for name, chosen in names.items()]


def _speeds(done: Measurement, name: str) -> list[float]:
    """Tokens per second of decoding, each repeat a value."""
    repeats = sorted({sample.repeat for sample in done.samples})
    runs = [[s for s in done.samples if s.system == name and s.repeat == repeat] for repeat in repeats]
    # Requests of one call decode together: each has the time of the whole.
    return [sum(s.tokens for s in run) / sum(s.stats[0].decode_s for s in run) for run in runs]


def _point(done: Measurement, name: str, strategy: str, gamma: int, alone: list[float]) -> Point:
    speeds = _speeds(done, name)
    firsts = [sample.stats[0] for sample in done.samples if sample.system == name]
    target_s = sum(s.target_busy_s for s in firsts) / max(sum(s.target_forwards for s in firsts), 1)
    draft_s = sum(s.draft_busy_s for s in firsts) / max(sum(s.draft_forwards for s in firsts), 1)
    accepted = acceptance([e for s in done.samples if s.system.startswith(f"{strategy},") for e in s.stats]) or 0.0
    modelled = SPEEDS[strategy](accepted, gamma, target_s, draft_s)
    by_itself = sum(alone) / len(alone)
    ratio = Spread.of([speed / base for speed, base in zip(speeds, alone, strict=True)])
    return Point(strategy, gamma, ratio, modelled / by_itself, accepted, target_s, draft_s)
