"""Draws a report: time against batch and against vocabulary, with the time to read the needed logits once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from harness import FLOOR, GRAPH, REFERENCE, TRANSFORMERS, Row

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLORS = {
    FLOOR: "black",
    REFERENCE: "grey",
    "cpu": "tab:cyan",
    "cuda": "tab:green",
    "triton": "tab:blue",
    TRANSFORMERS: "tab:orange",
}
OTHERS = ("tab:red", "tab:purple", "tab:brown")

Sweep = list[tuple[int, Row]]  # what is varied, and what it took


def sweeps(rows: Sequence[Row], part: int) -> dict[str, Sweep]:
    """Rows whose cases differ in one part alone (0: batch, -2: vocabulary), at least two, by what they share."""
    found: dict[str, Sweep] = {}
    for row in rows:
        parts = row.case.split("x")
        varied = int(parts[part])
        parts[part] = "*"
        found.setdefault("x".join(parts), []).append((varied, row))
    return {shared: sweep for shared, sweep in found.items() if len({varied for varied, _ in sweep}) > 1}


def draw(title: str, rows: Sequence[Row], path: Path) -> None:
    """A line of plots for each kind of work, where there is something to compare."""
    works = list(dict.fromkeys(_work(row) for row in rows))
    figure, axes = plt.subplots(len(works), 2, figsize=(11, 3.4 * len(works)), squeeze=False, layout="constrained")
    for work, (by_batch, by_vocab) in zip(works, axes, strict=True):
        own = [row for row in rows if _work(row) == work]
        _plot(by_batch, f"{work}, by batch", sweeps(own, 0))
        _plot(by_vocab, f"{work}, by vocabulary", sweeps(own, -2))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _work(row: Row) -> str:
    return row.work.partition(",")[0]


def _plot(axes: Axes, title: str, found: dict[str, Sweep]) -> None:
    if not found:
        axes.set_axis_off()
        return
    shared, sweep = max(found.items(), key=lambda item: len(item[1]))
    names = list(dict.fromkeys(row.contender for _, row in sweep))
    others = [name for name in names if name.removesuffix(GRAPH) not in COLORS]
    colors = {**COLORS, **{name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}}
    for name in names:
        points = sorted((varied, row.p20_us, row.p50_us, row.p80_us) for varied, row in sweep if row.contender == name)
        x, low, middle, high = zip(*points, strict=True)
        plain = name.removesuffix(GRAPH)
        style = "--" if plain != name else "-"
        axes.plot(x, middle, style, marker="o", markersize=3, label=name, color=colors[plain])
        axes.fill_between(x, low, high, alpha=0.15, color=colors[plain], linewidth=0)
    axes.set(title=f"{title} ({shared})", xscale="log", yscale="log", ylabel="us")
    axes.minorticks_off()
    ticks = sorted({varied for varied, _ in sweep})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.legend(fontsize=7)
    axes.grid(visible=True, which="both", alpha=0.2)
