"""What `pearl-decode bench` says: tables, plots and files."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from pearl_decode.cli.console import BAD_ARGUMENTS, CliError, note, table

if TYPE_CHECKING:
    from pearl_decode.bench.measure import Job
    from pearl_decode.bench.summary import Row
    from pearl_decode.bench.sweep import Point
    from pearl_decode.decoder import PearlDecoder

BASELINE = "autoregressive"
TRACE_TOKENS = 48


def settings(
    args: argparse.Namespace, decoder: PearlDecoder, strategies: list[str], prompts: Sequence[Any]
) -> dict[str, Any]:
    from pearl_decode.lanes.cpu import available_cores

    kept = (
        "target",
        "draft",
        "gamma",
        "rule",
        "temperature",
        "seed",
        "batch",
        "tokens",
        "repeat",
        "raw",
        "peers",
        "peer_models",
    )
    tasks = [prompt.task for prompt in prompts]
    return {name: getattr(args, name) for name in kept} | {
        "strategies": strategies,
        "weights": str(decoder.target.model.dtype).removeprefix("torch."),
        "cores": len(available_cores()),
        "prompts": args.prompts or "shipped",
        "prompts_per_task": {task: tasks.count(task) for task in dict.fromkeys(tasks)},
    }


def print_tables(args: argparse.Namespace, report: dict[str, Any], rows: Sequence[Row]) -> None:
    from pearl_decode.bench.report import COLUMNS, cells

    for task in dict.fromkeys(row.task for row in rows):
        print(task)
        table(COLUMNS, [cells(row) for row in rows if row.task == task])
        print()
    chosen, machine = report["settings"], report["machine"]
    print(
        f"target {args.target}, draft {args.draft}, {chosen['weights']} weights, gamma {args.gamma}, rule {args.rule},"
    )
    print(f"temperature {args.temperature:g}, up to {args.tokens} tokens, batch {args.batch}, {machine['cpu']},")
    print(f"{chosen['cores']} cores; medians of {args.repeat} repeats taken in turns, ratio within each repeat")
    if report["gamma_sweep"]:
        print()
        columns = ("strategy", "gamma", "ratio", "by the model", "target ms", "draft ms")
        shown = [
            (
                point["strategy"],
                str(point["gamma"]),
                f"{point['ratio']['median']:.2f}x",
                f"{point['modelled']:.2f}x",
                f"{1e3 * point['target_s']:.1f}",
                f"{1e3 * point['draft_s']:.1f}",
            )
            for point in report["gamma_sweep"]
        ]
        table(columns, shown)


def check_plots(folder: str) -> None:
    """Before anything is measured for nothing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise CliError("--plot needs matplotlib: pip install 'pearl-kernels[bench]'", BAD_ARGUMENTS) from error
    path = Path(os.path.expanduser(folder))
    try:
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()
    except OSError as error:
        raise CliError(f"--plot: cannot write to {folder!r}: {error.strerror}", BAD_ARGUMENTS) from error


def write_plots(
    folder: Path,
    decoder: PearlDecoder,
    strategies: list[str],
    args: argparse.Namespace,
    jobs: list[Job],
    rows: list[Row],
    points: list[Point],
    report: dict[str, Any],
) -> None:
    from pearl_decode.bench import plots
    from pearl_decode.bench.trace import chrome_trace, record
    from pearl_decode.sampling import SamplingParams

    params = SamplingParams(max_tokens=min(args.tokens, TRACE_TOKENS), temperature=args.temperature, seed=args.seed)
    traced = [name for name in (BASELINE, "sequential", "pearl") if name in strategies]
    timelines = [record(decoder, name, args.gamma, jobs[0].prompts[0], params) for name in traced]
    folder = Path(os.path.expanduser(folder))
    (folder / "trace.json").write_text(json.dumps(chrome_trace(timelines)), encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
    plots.draw_speeds(rows, folder / "speed.png")
    plots.draw_accepted(report["accepted_lengths"], folder / "accepted.png")
    plots.draw_timeline(timelines, folder / "timeline.png")
    if points:
        plots.draw_sweep(points, folder / "gamma.png")
    note(f"[plots, bench.json and trace.json (for ui.perfetto.dev) are in {folder}]")
