"""What a microbenchmark found: the table, the file of results and the plot."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from harness import Row, describe_machine
from rich.console import Console
from rich.table import Table


def measure(
    title: str,
    works: Iterable[Callable[[], list[Row]]],
    parsed: argparse.Namespace,
    device: dict[str, Any] | None = None,
) -> None:
    """Measure all works, print the table and write the files that were asked for. device: what is to be said of a GPU.

    The file of results has the rows there are at any time. A work that fails does not take the others with it; at the
    end it is said, with exit status 1.
    """
    machine = {**describe_machine(), **(device or {})}
    rows: list[Row] = []
    errors: list[str] = []
    for work in works:
        try:
            rows += work()
        except (Exception, SystemExit) as error:
            errors.append(f"{type(error).__name__}: {error}")
        if parsed.json:
            content = {"title": title, "threads": parsed.threads, "machine": machine, "rows": list(map(asdict, rows))}
            parsed.json.write_text(json.dumps(content | ({"errors": errors} if errors else {}), indent=1) + "\n")
    _show(title, rows, parsed, machine)
    if errors:
        raise SystemExit("\n".join(errors))


def _show(title: str, rows: Sequence[Row], parsed: argparse.Namespace, machine: dict[str, Any]) -> None:
    """Print the table, and draw the plot if one was asked for."""
    where = machine.get("gpu") or f"{machine['processor']}, {parsed.threads} thread(s) for torch"
    table = Table(title=f"{title} on {where}", caption=machine.get("rates"))
    for name in (
        "case",
        "work",
        "",
        "p50 us",
        "p20-p80 us",
        "GB/s",
        "x read floor",
        "x faster: transformers",
        "reference",
    ):
        table.add_column(name, justify="left" if name in ("case", "work", "") else "right")
    last, digits = None, 1 if parsed.device == "cuda" else 0
    for row in rows:
        if (row.case, row.work) != last:
            table.add_section()
        shown = (row.case, row.work) if (row.case, row.work) != last else ("", "")
        last = (row.case, row.work)
        table.add_row(
            *shown,
            row.contender,
            f"{row.p50_us:.{digits}f}",
            f"{row.p20_us:.{digits}f}-{row.p80_us:.{digits}f}",
            f"{row.gb_per_s:.1f}",
            _ratio(row.times_read_floor),
            _ratio(row.faster_than_transformers),
            _ratio(row.faster_than_reference),
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if parsed.plot and rows:
        from plot import draw  # matplotlib is not needed by those who do not ask for it

        draw(f"{title} on {where}", rows, parsed.plot)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
