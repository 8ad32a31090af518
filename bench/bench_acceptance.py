"""Speeds at a set acceptance beside what the formulas of costs say: paced lanes, so that any machine can measure it.

    python bench/bench_acceptance.py [--json FILE]

The lanes sleep for a set time per forward, whatever the window and the batch; the draft is right at a set share of the
positions. Rows of a batch are decoded together, each with luck of its own: many rounds in little time. Of each strategy
those gammas are measured that the formula thinks best, and the fastest is taken, on both sides of the comparison.

Lanes have to wake in time: on a machine with other work, run it with `chrt -f 5`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from decode_runs import Run, run_own
from harness import describe_machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scripted import lucky_pair

from pearl_decode import PearlDecoder
from pearl_decode.auto import GAMMAS
from pearl_decode.bench.sweep import SPEEDS
from pearl_decode.bench.systems import BASELINE
from pearl_decode.costs import pearl_tokens, sequential_tokens
from pearl_decode.lanes import PacedLane
from pearl_decode.lanes.cpu import available_cores

ACCEPTANCES = (0.6, 0.8, 0.9)
COST_RATIOS = (4, 8)  # target forward over draft step
ALONE_TOKENS = 24  # without a draft every round is the same

Plan = tuple[str, int]


def formula(plan: Plan, acceptance: float, ratio: float) -> float:
    """Speed over that of the target alone."""
    strategy, gamma = plan
    return 1.0 if strategy == BASELINE else SPEEDS[strategy](acceptance, gamma, 1.0, 1 / ratio)


def plans_of(acceptance: float, ratio: float, candidates: int) -> list[Plan]:
    plans: list[Plan] = [(BASELINE, 1)]
    for strategy in SPEEDS:
        known = [(strategy, gamma) for gamma in GAMMAS if gamma > 1 or strategy != "pearl"]
        plans += sorted(known, key=lambda plan: -formula(plan, acceptance, ratio))[:candidates]
    return plans


def measure(acceptance: float, ratio: float, args: argparse.Namespace) -> dict[Plan, list[Run]]:
    """Runs of every plan, one for each repeat; plans take turns."""
    plans = plans_of(acceptance, ratio, args.candidates)
    target, draft, firsts = lucky_pair(acceptance, args.rows, args.tokens + 2, seed=1)
    prompts = [[token] for token in firsts.tolist()]
    cores, target_s = available_cores(), args.target_ms / 1e3
    lanes = PacedLane("target", cores[:1], target_s), PacedLane("draft", cores[-1:], target_s / ratio)
    models: Any = target, draft
    runs: dict[Plan, list[Run]] = {plan: [] for plan in plans}
    with PearlDecoder(*models, strategy=BASELINE, max_batch=args.rows, lanes=lanes) as decoder:
        for _ in range(args.repeat):
            for plan in plans:
                tokens = ALONE_TOKENS if plan[0] == BASELINE else args.tokens
                runs[plan].append(run_own(decoder, prompts, tokens, *plan))
    return runs


def row_of(acceptance: float, ratio: float, runs: dict[Plan, list[Run]], args: argparse.Namespace) -> dict[str, Any]:
    """Of each comparison what was measured, what the formula says, and one over the other."""
    measured = {plan: median(run.tokens_per_s for run in own) for plan, own in runs.items()}
    says = {plan: formula(plan, acceptance, ratio) for plan in runs}

    def best(strategy: str, speeds: dict[Plan, float]) -> Plan:
        return max((plan for plan in runs if plan[0] == strategy), key=speeds.__getitem__)

    def over(other: str, of: str) -> dict[str, float]:
        found, said = (speeds[best(of, speeds)] / speeds[best(other, speeds)] for speeds in (measured, says))
        return {"measured": found, "formula": said, "measured_over_formula": found / said}

    return {
        "acceptance": acceptance, "cost_ratio": ratio,
        "sequential_gamma": best("sequential", measured)[1], "pearl_gamma": best("pearl", measured)[1],
        "sequential_over_autoregressive": over(BASELINE, "sequential"),
        "pearl_over_autoregressive": over(BASELINE, "pearl"), "pearl_over_sequential": over("sequential", "pearl"),
        "plans": [_plan_row(plan, acceptance, ratio, own, args) for plan, own in runs.items()],
    }  # fmt: skip


def _plan_row(plan: Plan, a: float, ratio: float, runs: list[Run], args: argparse.Namespace) -> dict[str, Any]:
    """One plan: its luck apart from its time. tokens: of a row in a round; round_over_lanes: round time over that of
    the longer lane, or of both where they take turns."""
    strategy, gamma = plan
    lanes = {BASELINE: 1.0, "sequential": 1 + gamma / ratio, "pearl": max(1.0, gamma / ratio)}[strategy]
    says = {BASELINE: 1.0, "sequential": sequential_tokens(a, gamma), "pearl": pearl_tokens(a, gamma)}[strategy]
    tokens = sum(run.tokens for run in runs) / sum(run.rounds for run in runs) / args.rows
    return {
        "strategy": strategy, "gamma": gamma, "tokens_per_s": [run.tokens_per_s for run in runs],
        "tokens": tokens, "tokens_formula": says, "acceptance": runs[-1].acceptance,
        "round_over_lanes": median(run.round_s for run in runs) / (lanes * args.target_ms / 1e3),
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    columns = ("acceptance", "target / draft", "comparison", "gamma", "measured", "formula", "measured / formula")
    table = Table(*columns)
    comparisons: dict[str, Callable[[dict[str, Any]], str]] = {
        "sequential_over_autoregressive": lambda row: str(row["sequential_gamma"]),
        "pearl_over_autoregressive": lambda row: str(row["pearl_gamma"]),
        "pearl_over_sequential": lambda row: f"{row['pearl_gamma']}, {row['sequential_gamma']}",
    }
    for row in rows:
        table.add_section()
        for name, gamma in comparisons.items():
            found = row[name]
            table.add_row(
                str(row["acceptance"]), str(row["cost_ratio"]), name.replace("_", " "), gamma(row),
                f"{found['measured']:.3f}", f"{found['formula']:.3f}", f"{found['measured_over_formula']:.3f}",
            )  # fmt: skip
    parts = Table("acceptance", "target / draft", "plan", "tokens / formula", "round / lanes", "accepted")
    for row in rows:
        parts.add_section()
        for plan in row["plans"]:
            parts.add_row(
                str(row["acceptance"]), str(row["cost_ratio"]), f"{plan['strategy']} {plan['gamma']}",
                f"{plan['tokens'] / plan['tokens_formula']:.3f}", f"{plan['round_over_lanes']:.3f}",
                "" if plan["acceptance"] is None else f"{plan['acceptance']:.3f}",
            )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    console.print(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target-ms", type=float, default=120.0)
    parser.add_argument("--rows", type=int, default=8, help="decoded at once")
    parser.add_argument("--tokens", type=int, default=400, help="per row")
    parser.add_argument("--candidates", type=int, default=2, help="gammas measured of each strategy")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--acceptances", type=float, nargs="+", default=ACCEPTANCES)
    parser.add_argument("--ratios", type=float, nargs="+", default=COST_RATIOS)
    parser.add_argument("--json", type=Path, help="write the rows there")
    args = parser.parse_args()
    cells = [(a, ratio) for ratio in args.ratios for a in args.acceptances]
    rows = [
        row_of(*cell, measure(*cell, args), args) for cell in track(cells, "measuring", console=Console(stderr=True))
    ]
    show(rows)
    if args.json:
        settings = {name: getattr(args, name) for name in ("target_ms", "rows", "tokens", "candidates", "repeat")}
        realtime = os.sched_getscheduler(0) == os.SCHED_FIFO
        machine = describe_machine() | {"load": os.getloadavg()[0], "realtime": realtime}
        content = {"machine": machine, "settings": settings, "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
