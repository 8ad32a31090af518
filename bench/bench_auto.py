"""Strategy "auto" beside the best that could have been set by hand: paced lanes, so that any machine can measure it.

    python -m bench.bench_auto [--jobs N] [--json FILE] [--plot FILE.png]

The lanes sleep for a set time per forward, whatever the window; the draft agrees with the target with a set probability
at each position. Fixed choices are those the cost model thinks best, `FIXED` of each strategy, all of them measured
over the same texts: the best of them is known in hindsight only. The decoder has had one text before, from which "auto"
knows the times. Lanes that sleep leave the cores to others, so a few cells can be measured at once.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.harness import describe_machine
from bench.scripted import sequence_model
from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.auto import GAMMAS
from pearl_decode.costs import pearl_tokens, sequential_tokens
from pearl_decode.lanes import PacedLane
from pearl_decode.lanes.cpu import available_cores

ACCEPTANCES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
COST_RATIOS = (2, 4, 8, 20)  # target forward over draft step
FIXED = 2
VOCAB = 4096  # large enough for no two words to come again: prompt lookup finds nothing

Plan = tuple[str, int | str]
SPEEDS: dict[str, Callable[[float, int, float], float]] = {
    "sequential": lambda a, gamma, ratio: sequential_tokens(a, gamma) / (1 + gamma / ratio),
    "pearl": lambda a, gamma, ratio: pearl_tokens(a, gamma) / max(1.0, gamma / ratio),
}


def candidates(acceptance: float, ratio: float) -> list[Plan]:
    """The fixed choices that should be the fastest, and decoding without a draft."""
    found: list[Plan] = [("autoregressive", 1)]
    for strategy, speed in SPEEDS.items():
        gammas = [gamma for gamma in GAMMAS if gamma > 1 or strategy != "pearl"]
        gammas.sort(key=lambda gamma: -speed(acceptance, gamma, ratio))
        found += [(strategy, gamma) for gamma in gammas[:FIXED]]
    return found


def measure(acceptance: float, ratio: float, target_s: float, tokens: int, texts: int) -> dict[str, Any]:
    """A cell's row: every plan over the same texts, taken in turns."""
    dice = random.Random(1)
    line = [dice.randrange(VOCAB) for _ in range((texts + 2) * tokens)]
    guessed = [token if dice.random() < acceptance else (token + 1) % VOCAB for token in line]
    cores = available_cores()
    plans: list[Plan] = [*candidates(acceptance, ratio), ("auto", "auto")]
    emitted, seconds = dict.fromkeys(plans, 0), dict.fromkeys(plans, 0.0)
    lanes = PacedLane("target", cores[:1], target_s), PacedLane("draft", cores[-1:], target_s / ratio)
    models: Any = sequence_model(line, VOCAB), sequence_model(guessed, VOCAB)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    with PearlDecoder(*models, lanes=lanes) as decoder:
        decoder.generate([line[:1]], params, strategy="auto", gamma="auto")
        for text in range(1, texts + 1):
            for strategy, gamma in plans:
                [result] = decoder.generate([line[: text * tokens]], params, strategy=strategy, gamma=gamma)
                emitted[strategy, gamma] += result.stats.emitted_tokens
                seconds[strategy, gamma] += result.stats.decode_s
    return row_of(acceptance, ratio, {plan: emitted[plan] / seconds[plan] for plan in plans})


def row_of(acceptance: float, ratio: float, speeds: dict[Plan, float]) -> dict[str, Any]:
    auto, alone = speeds["auto", "auto"], speeds["autoregressive", 1]
    best = max((plan for plan in speeds if plan[0] != "auto"), key=lambda plan: speeds[plan])
    return {
        "acceptance": acceptance, "cost_ratio": ratio, "best": f"{best[0]} {best[1]}",
        "best_over_autoregressive": speeds[best] / alone,
        "auto_over_best": auto / speeds[best], "auto_over_autoregressive": auto / alone,
    }  # fmt: skip


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Two heat maps: auto over the best fixed choice, and over decoding without a draft."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, key, title in zip(
        panels,
        ("auto_over_best", "auto_over_autoregressive"),
        ("auto over the best fixed choice", "auto over autoregressive"),
        strict=True,
    ):
        values = {(row["acceptance"], row["cost_ratio"]): row for row in rows}
        grid = [[values[a, ratio][key] for a in ACCEPTANCES] for ratio in COST_RATIOS]
        image = axes.imshow(
            grid, origin="lower", aspect="auto", cmap="RdYlGn" if key == "auto_over_best" else "viridis"
        )
        for y, ratio in enumerate(COST_RATIOS):
            for x, a in enumerate(ACCEPTANCES):
                best = f"\n{values[a, ratio]['best']}" if key == "auto_over_best" else ""
                axes.text(x, y, f"{grid[y][x]:.2f}{best}", ha="center", va="center", fontsize=7)
        axes.set_xticks(range(len(ACCEPTANCES)), [str(a) for a in ACCEPTANCES])
        axes.set_yticks(range(len(COST_RATIOS)), [str(ratio) for ratio in COST_RATIOS])
        axes.set(title=title, xlabel="acceptance per token", ylabel="target forward over draft step")
        figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target-ms", type=float, default=16.0)
    parser.add_argument("--tokens", type=int, default=300, help="per text")
    parser.add_argument("--texts", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="cells measured at once")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--plot", type=Path, help="draw the heat maps there")
    args = parser.parse_args()
    cells = [(a, ratio) for ratio in COST_RATIOS for a in ACCEPTANCES]
    measure_cell = partial(measure, target_s=args.target_ms / 1e3, tokens=args.tokens, texts=args.texts)
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        measured = pool.map(measure_cell, *zip(*cells, strict=True))
        rows = list(track(measured, "measuring", len(cells), console=Console(stderr=True)))
    table = Table("acceptance", "target / draft", "best fixed", "its speed", "auto / best", "auto / autoregressive")
    for row in rows:
        table.add_row(
            str(row["acceptance"]), str(row["cost_ratio"]), row["best"], f"{row['best_over_autoregressive']:.2f}",
            f"{row['auto_over_best']:.3f}", f"{row['auto_over_autoregressive']:.3f}",
        )  # fmt: skip
    Console(width=110).print(table)
    if args.json:
        settings = {"target_ms": args.target_ms, "tokens": args.tokens, "texts": args.texts, "jobs": args.jobs}
        report = {"machine": describe_machine(), "settings": settings, "rows": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
