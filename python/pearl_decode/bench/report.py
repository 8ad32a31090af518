"""Everything a run found, as one object for JSON, and its tables as Markdown."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pearl_decode.bench.measure import Measurement, Sample
from pearl_decode.bench.peers import peer_versions
from pearl_decode.bench.summary import Row, Spread, accepted_lengths
from pearl_decode.bench.sweep import Point
from pearl_decode.doctor import examine

FORMAT = 1
COLUMNS = ("system", "tokens/s", "range", "ratio", "range", "tokens/forward", "accepted", "same text")


def build_report(
    settings: dict[str, Any],
    measurement: Measurement,
    rows: Sequence[Row],
    points: Sequence[Point],
    peers: Sequence[str],
) -> dict[str, Any]:
    """settings: what was asked for, as JSON takes it. Samples keep the counts and times each call gave."""
    found = examine()
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": settings,
        "versions": found["versions"] | peer_versions(peers),
        "machine": found["machine"],
        "rows": [asdict(row) for row in rows],
        "errors": measurement.errors,
        "accepted_lengths": accepted_lengths(measurement),
        "gamma_sweep": [asdict(point) for point in points],
        "samples": [_sample(sample) for sample in measurement.samples],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "system": sample.system,
        "task": sample.task,
        "job": sample.job,
        "repeat": sample.repeat,
        "seconds": sample.seconds,
        "tokens": [len(ids) for ids in sample.token_ids],
        "stats": [entry.to_dict() for entry in sample.stats],
    }


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is shown, without its task; see COLUMNS."""
    ratio = row.ratio
    return (
        row.system,
        f"{row.tokens_per_s.median:.1f}",
        f"{row.tokens_per_s.low:.1f}-{row.tokens_per_s.high:.1f}",
        "-" if ratio is None else f"{ratio.median:.2f}x",
        "-" if ratio is None else f"{ratio.low:.2f}-{ratio.high:.2f}",
        "-" if row.tokens_per_target_forward is None else f"{row.tokens_per_target_forward:.2f}",
        "-" if row.acceptance is None else f"{row.acceptance:.0%}",
        "-" if row.same_text is None else "{} of {}".format(*row.same_text),
    )


def markdown(report: dict[str, Any]) -> str:
    """The tables of a report that `build_report` made and JSON may have carried: a section per task."""
    lines = []
    rows = [_row(entry) for entry in report["rows"]]
    for task in dict.fromkeys(row.task for row in rows):
        lines += [f"### {task}", "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
        lines += [*(_line(cells(row)) for row in rows if row.task == task), ""]
    if report["gamma_sweep"]:
        head = ("strategy", "gamma", "ratio", "range", "by the model", "target ms", "draft ms", "acceptance")
        lines += ["### Speed against gamma", "", _line(head), _line(["---"] * len(head))]
        for point in report["gamma_sweep"]:
            ratio = Spread(**point["ratio"])
            shown = (
                point["strategy"],
                str(point["gamma"]),
                f"{ratio.median:.2f}x",
                f"{ratio.low:.2f}-{ratio.high:.2f}",
                f"{point['modelled']:.2f}x",
                f"{1e3 * point['target_s']:.1f}",
                f"{1e3 * point['draft_s']:.1f}",
                f"{point['acceptance']:.0%}",
            )
            lines.append(_line(shown))
        lines.append("")
    lines += [f"{name} failed: {error}" for name, error in report["errors"].items()]
    return "\n".join(lines)


def _row(entry: dict[str, Any]) -> Row:
    spreads = {name: Spread(**entry[name]) if entry[name] else None for name in ("tokens_per_s", "ratio")}
    return Row(**(entry | spreads))


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"
