"""What bench_decode shows: tables, speeds, and when each lane worked."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decode_cell import Cell
from model_pairs import ModelPair
from rich.console import Console
from rich.table import Table

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.bench.summary import Row, Spread
from pearl_decode.bench.systems import BASELINE
from pearl_decode.bench.trace import chrome_trace, record

COLUMNS = (
    "strategy", "gamma", "tokens/s", "x alone", "tokens/forward", "accepted", "round ms", "/ longer lane", "host ms",
    "idle target", "draft", "window / weights", "step / weights", "peak GB", "same text",
)  # fmt: skip
TRACED_TOKENS = 24


def print_rows(cell: Cell, rows: Sequence[dict[str, Any]]) -> None:
    asked = "the draft's own" if cell.acceptance is None else f"{cell.acceptance:g}"
    table = Table(title=f"{cell.pair}, context {cell.context}, batch {cell.batch}, acceptance {asked}")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for row in rows:
        table.add_row(
            row["strategy"], str(row["gamma"]), f"{row['tokens_per_s']['median']:.1f}", f"{row['ratio']['median']:.2f}",
            f"{row['tokens_per_target_forward']:.2f}", _shown(row["acceptance"]), f"{row['round_ms']:.2f}",
            _shown(row["round_over_longer_lane"]), f"{row['host_ms_per_round']:.2f}", _shown(row["target_idle"]),
            _shown(row["draft_idle"]), _shown(row["target_window_over_weights"]),
            _shown(row["draft_step_over_weights"]), f"{row['peak_gb']:.1f}", "{}/{}".format(*row["same_text"]),
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 190).print(table)


def draw_speeds(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """speed-PAIR.png: of each strategy its best gamma, over the target alone, cell by cell."""
    from pearl_decode.bench import plots  # matplotlib is not needed by those who do not ask for it

    for pair in dict.fromkeys(row["pair"] for row in rows):
        best = [row for row in rows if row["pair"] == pair and row["best"]]
        plots.draw_speeds([_as_shown(row) for row in best], folder / f"speed-{pair}.png")


def draw_lanes(pair: ModelPair, cell: Cell, rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """timeline-PAIR.png and trace-PAIR.json, for ui.perfetto.dev: real rounds of each strategy at its best gamma."""
    from pearl_decode.bench import plots

    params = SamplingParams(max_tokens=TRACED_TOKENS, ignore_eos=True)
    [prompt] = pair.prompts(1, cell.context)
    traced = (BASELINE, "sequential", "pearl")
    with PearlDecoder(pair.target, pair.draft, strategy=BASELINE, compile=False) as decoder:
        timelines = [
            record(decoder, row["strategy"], row["gamma"], prompt, params)
            for row in rows
            if row["best"] and row["strategy"] in traced
        ]
    (folder / f"trace-{pair.name}.json").write_text(json.dumps(chrome_trace(timelines)))
    plots.draw_timeline(timelines, folder / f"timeline-{pair.name}.png")


def _as_shown(row: dict[str, Any]) -> Row:
    asked = "" if row["acceptance_asked"] is None else f"accept {row['acceptance_asked']:g}\n"
    return Row(
        row["strategy"],
        f"{asked}batch {row['batch']}\ncontext {row['context']}",
        0,
        Spread(**row["tokens_per_s"]),
        Spread(**row["ratio"]),
        tuple(row["same_text"]),
        row["tokens_per_target_forward"],
        row["acceptance"],
    )


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
