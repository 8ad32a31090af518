"""One cell of bench_decode: all strategies on the same pair, prompts and acceptance, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from decode_runs import Run, run_assisted, run_own
from model_pairs import PAIRS, ModelPair, weights_read

from pearl_decode import PearlDecoder
from pearl_decode.auto import GAMMAS
from pearl_decode.bench.summary import Spread
from pearl_decode.bench.sweep import SPEEDS
from pearl_decode.bench.systems import BASELINE
from pearl_decode.memory import cache_bytes

PROBE_GAMMA, PROBE_TOKENS = 4, 44
ASSISTED = "assisted"


@dataclass(frozen=True)
class Cell:
    """acceptance: asked of the draft; None: whatever it has. context: tokens of each prompt."""

    pair: str
    context: int
    batch: int
    acceptance: float | None


@dataclass(frozen=True)
class Effort:
    """tokens: per run and row; candidates: gammas tried of each strategy, those the model of costs thinks best;
    compile: whether torch fuses the models' kernels.
    """

    tokens: int
    repeats: int
    candidates: int
    compile: bool


@dataclass
class Outcome:
    """rows: as JSON takes them; errors: of the systems that failed; seconds: all of it; prefill_s: of that."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    prefill_s: float = 0.0


@dataclass(frozen=True)
class System:
    """turns: in how many repeats it takes part; None is all."""

    strategy: str
    gamma: int | str
    run: Callable[[], Run]
    turns: int | None = None

    @property
    def name(self) -> str:
        return self.strategy if self.strategy in (BASELINE, "auto") else f"{self.strategy} {self.gamma}"


Texts = dict[tuple[int, int], list[list[int]]]  # the target's own greedy ones, by context and batch


def measure_cell(pair: ModelPair, cell: Cell, effort: Effort, texts: Texts, read_bytes_per_s: float) -> Outcome:
    """Measure one cell. texts: known ones, to which this adds the cell's. Raises RuntimeError if the target fails."""
    start = time.perf_counter()
    prompts = pair.prompts(cell.batch, cell.context)
    outcome, runs = Outcome(), []
    options: dict[str, Any] = {"strategy": BASELINE, "max_batch": cell.batch, "compile": effort.compile}
    with PearlDecoder(pair.target, pair.draft, **options) as decoder:

        def own(strategy: str, gamma: int | str, tokens: int = effort.tokens) -> Run:
            runs.append(run_own(decoder, prompts, tokens, strategy, gamma))
            return runs[-1]

        if (cell.context, cell.batch) not in texts:
            texts[cell.context, cell.batch] = own(BASELINE, 1).texts
        wanted = texts[cell.context, cell.batch]
        if pair.agreement is not None:
            whole = [prompt + text for prompt, text in zip(prompts, wanted, strict=True)]
            assert cell.acceptance is not None, "a draft that was never trained needs one"
            pair.agreement.follow(whole, cell.context, cell.acceptance)
        probes = {strategy: own(strategy, PROBE_GAMMA, PROBE_TOKENS) for strategy in SPEEDS}
        systems = _systems(pair, cell, effort, prompts, own, probes)
        samples = _take_turns(systems, effort.repeats, outcome)
    alone = {int(s.gamma): samples[s.name] for s in systems if s.strategy == "sequential" and samples[s.name]}
    alone = alone or {PROBE_GAMMA: [probes["sequential"]]}
    floors = Floors.of(decoder, cell, effort.tokens, read_bytes_per_s)
    for system in systems:
        if system.name in outcome.errors:
            continue
        outcome.rows.append(row := _row(pair, cell, system, samples, alone, floors, wanted))
        same, rows = row["same_text"]
        if pair.agreement is not None and same < rows:
            # No rounding explains it, and a draft that guesses another text is not accepted as was asked.
            outcome.errors[system.name] = f"{rows - same} of {rows} texts are not the target's own"
    _mark_best(outcome.rows)
    outcome.seconds = time.perf_counter() - start
    outcome.prefill_s = sum(run.prefill_s for run in runs)
    return outcome


def best_gammas(strategy: str, probe: Run, acceptance: float, count: int) -> list[int]:
    """The gammas that should be the fastest, by lane times that were measured and the formulas of costs."""
    step_s = probe.step_s
    assert step_s is not None, "a probe drafts"
    gammas = [gamma for gamma in GAMMAS if gamma > 1 or strategy != "pearl"]
    return sorted(gammas, key=lambda gamma: -SPEEDS[strategy](acceptance, gamma, probe.window_s, step_s))[:count]


def _systems(
    pair: ModelPair,
    cell: Cell,
    effort: Effort,
    prompts: Sequence[list[int]],
    own: Callable[[str, int | str], Run],
    probes: dict[str, Run],
) -> list[System]:
    plans: list[tuple[str, int | str]] = [(BASELINE, 1)]
    for strategy, probe in probes.items():
        acceptance = cell.acceptance if cell.acceptance is not None else probe.acceptance or 0.0
        plans += [(strategy, gamma) for gamma in best_gammas(strategy, probe, acceptance, effort.candidates)]
    plans.append(("auto", "auto"))
    systems = [System(*plan, lambda plan=plan: own(*plan)) for plan in plans]  # type: ignore[misc]
    if cell.batch == 1:
        gamma = next(int(gamma) for strategy, gamma in plans if strategy == "sequential")

        def assisted() -> Run:
            return run_assisted(pair.target, pair.draft, prompts[0], effort.tokens, gamma)

        systems.append(System(ASSISTED, gamma, assisted, turns=1))  # it takes as long as all others together
    return systems


def _take_turns(systems: Sequence[System], repeats: int, outcome: Outcome) -> dict[str, list[Run]]:
    """Runs by system, another one first in each repeat. One that fails is out, with its reason."""
    samples: dict[str, list[Run]] = {system.name: [] for system in systems}

    def attempt(system: System) -> list[Run]:
        if system.name in outcome.errors:
            return []
        try:
            return [system.run()]
        except Exception as error:  # whatever it is, the other systems are measured
            outcome.errors[system.name] = " ".join(f"{type(error).__name__}: {error}".split())
            return []

    for system in systems:
        # In a text that does not count auto finds out what is fast, as in a decoder long in use, and transformers'
        # kernels are loaded: ours are by now.
        if system.strategy in ("auto", ASSISTED):
            attempt(system)
    for turn in range(repeats):
        first = turn % len(systems)
        for system in (*systems[first:], *systems[:first]):
            if system.turns is None or turn < system.turns:
                samples[system.name] += attempt(system)
    if BASELINE in outcome.errors:
        raise RuntimeError(f"{BASELINE}: {outcome.errors[BASELINE]}")
    return samples


@dataclass(frozen=True)
class Floors:
    """Seconds in which the bytes are read once: of the weights, and of the target's cached keys and values."""

    target_s: float
    draft_s: float
    cache_s: float

    @classmethod
    def of(cls, decoder: PearlDecoder, cell: Cell, tokens: int, read_bytes_per_s: float) -> Floors:
        assert decoder.draft is not None
        cached = cache_bytes(decoder.target, cell.batch, cell.context + tokens // 2)
        sizes = weights_read(decoder.target.model), weights_read(decoder.draft.model), cached
        return cls(*(size / read_bytes_per_s for size in sizes))


def _row(
    pair: ModelPair,
    cell: Cell,
    system: System,
    samples: dict[str, list[Run]],
    alone: dict[int, list[Run]],
    floors: Floors,
    wanted: Sequence[list[int]],
) -> dict[str, Any]:
    """A system's line of the report, medians of the repeats.

    ratio:                  speed over autoregressive in the same repeat
    round_over_longer_lane: round time over that of the longer lane, had it been alone
    host_ms_per_round:      processor time of the thread that drives the rounds
    target_idle, draft_idle: shares of the time in which the lane did nothing
    target_window_ms, draft_step_ms: busy time of a target's forward and of one draft forward, the other lane's load
                            included; over the time in which their weights, or these and the cached keys and values,
                            are read once
    same_text:              rows with the target's own greedy text, of all, in the worst repeat
    choices:                of auto, in its last run
    None where a system keeps no such times, or a round is of several kinds.
    """
    runs, own = samples[system.name], system.strategy != ASSISTED
    speeds = [run.tokens_per_s for run in runs]
    ratios = [speed / run.tokens_per_s for speed, run in zip(speeds, samples[BASELINE], strict=False)]
    last = runs[-1]
    window_s = _median([run.window_s for run in runs]) if own else None
    step_s = _median([run.step_s for run in runs if run.step_s is not None])
    target, draft = PAIRS[pair.name]
    return {
        "pair": pair.name, "target": target, "draft": draft, "context": cell.context, "batch": cell.batch,
        "acceptance_asked": cell.acceptance, "strategy": system.strategy, "gamma": system.gamma,
        "tokens_per_s": vars(Spread.of(speeds)), "ratio": vars(Spread.of(ratios)),
        "tokens_per_target_forward": sum(run.tokens for run in runs) / sum(run.rounds for run in runs) / cell.batch,
        "acceptance": last.acceptance,
        "round_ms": 1e3 * (_median([run.round_s for run in runs]) or 0.0),
        "round_over_longer_lane": _over_longer_lane(system, runs, alone),
        "host_ms_per_round": 1e3 * (_median([run.host_s / run.rounds for run in runs]) or 0.0),
        "target_idle": _median([1 - run.target_busy_s / run.seconds for run in runs]) if own else None,
        "draft_idle": _median([1 - run.draft_busy_s / run.seconds for run in runs]) if own else None,
        "target_window_ms": _times(1e3, window_s), "draft_step_ms": _times(1e3, step_s),
        "target_window_over_weights": _times(1 / floors.target_s, window_s),
        "target_window_over_weights_and_cache": _times(1 / (floors.target_s + floors.cache_s), window_s),
        "draft_step_over_weights": _times(1 / floors.draft_s, step_s),
        "peak_gb": max(run.peak_bytes for run in runs) / 1e9,
        "same_text": [min(sum(map(_agree, run.texts, wanted)) for run in runs), cell.batch],
        "choices": last.stats[0].choices if last.stats else {}, "counted_rounds": [run.rounds for run in runs],
    }  # fmt: skip


def _over_longer_lane(system: System, runs: Sequence[Run], alone: dict[int, list[Run]]) -> float | None:
    """Round time over that of the longer lane, had it been alone: as in sequential rounds of the nearest gamma, in
    which the lanes take turns. None where rounds differ in kind or nobody keeps the times."""
    if system.strategy in ("auto", ASSISTED):
        return None
    if system.strategy == BASELINE:
        return _median([run.round_s / run.window_s for run in runs])
    gamma = int(system.gamma)
    nearest = alone[min(alone, key=lambda known: abs(known - gamma))]
    window_s = _median([run.window_s for run in nearest]) or 0.0
    step_s = _median([run.step_s for run in nearest if run.step_s is not None]) or 0.0
    return (_median([run.round_s for run in runs]) or 0.0) / max(window_s, gamma * step_s)


def _mark_best(rows: list[dict[str, Any]]) -> None:
    """Of several gammas of a strategy the fastest."""
    for row in rows:
        others = [other["tokens_per_s"]["median"] for other in rows if other["strategy"] == row["strategy"]]
        row["best"] = row["tokens_per_s"]["median"] == max(others)


def _agree(text: Sequence[int], wanted: Sequence[int]) -> bool:
    """The same as far as the shorter one goes: a peer may end at an end-of-sequence id."""
    length = min(len(text), len(wanted))
    return list(text[:length]) == list(wanted[:length])


def _median(values: Sequence[float]) -> float | None:
    return Spread.of(list(values)).median if values else None


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value
