"""Draws a run: speed per strategy, accepted lengths, speed against gamma, and the lanes' timeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from pearl_decode.bench.summary import Row
from pearl_decode.bench.sweep import Point
from pearl_decode.bench.systems import BASELINE
from pearl_decode.bench.trace import Timeline

mpl.use("Agg")
from matplotlib import pyplot as plt

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008); peers are grey to sand.
OWN = {"autoregressive": "#555555", "sequential": "#56B4E9", "pearl": "#0072B2", "auto": "#009E73", "lookup": "#7FCDB4"}
PEERS = ("#E69F00", "#F0C470", "#D55E00", "#CC79A7", "#E3B5CF", "#A58B6F", "#C9B79C")
TARGET, DRAFT = "#0072B2", "#E69F00"
SHOWN_S = 1.0  # of a timeline
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "font.size": 10,
}


def draw_speeds(rows: Sequence[Row], path: Path) -> None:
    """Speed over the target alone: a group of bars per task, whiskers from least to greatest repeat."""
    rows = [row for row in rows if row.ratio is not None and row.system != BASELINE]
    tasks = list(dict.fromkeys(row.task for row in rows))
    systems = list(dict.fromkeys(row.system for row in rows))
    colors = _colors(systems)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(7.0, 2.2 + 0.24 * len(rows)), 4.6), layout="constrained")
        width = 0.82 / max(len(systems), 1)
        for number, system in enumerate(systems):
            spreads = [(tasks.index(r.task), r.ratio) for r in rows if r.system == system and r.ratio is not None]
            axes.bar(
                [at + (number - (len(systems) - 1) / 2) * width for at, _ in spreads],
                [spread.median for _, spread in spreads],
                0.92 * width,
                yerr=[
                    [spread.median - spread.low for _, spread in spreads],
                    [spread.high - spread.median for _, spread in spreads],
                ],
                error_kw={"elinewidth": 0.9, "ecolor": "#333333"},
                color=colors[system],
                label=system,
            )
        axes.axhline(1.0, color="#333333", linewidth=1.1, linestyle="--")
        axes.set_xticks(range(len(tasks)), tasks)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("speed / autoregressive speed")
        axes.set_title("Speed over the target alone, median and range of the repeats")
        figure.legend(loc="outside lower center", ncols=min(4, max(len(systems), 1)), frameon=False)
        _save(figure, path)


def draw_accepted(lengths: dict[str, list[int]], path: Path) -> None:
    """Share of the rounds that accepted n drafted tokens."""
    colors = _colors(list(lengths))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        width = 0.82 / max(len(lengths), 1)
        for number, (system, counts) in enumerate(lengths.items()):
            total = max(sum(counts), 1)
            mean = sum(length * rounds for length, rounds in enumerate(counts)) / total
            axes.bar(
                [length + (number - (len(lengths) - 1) / 2) * width for length in range(len(counts))],
                [rounds / total for rounds in counts],
                0.92 * width,
                color=colors[system],
                label=f"{system}, mean {mean:.2f}",
            )
        longest = max(map(len, lengths.values()), default=1)
        axes.set_xticks(range(longest))
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("drafted tokens accepted in a round")
        axes.set_ylabel("share of rounds")
        axes.set_title("Accepted lengths")
        if lengths:
            axes.legend(frameon=False)
        _save(figure, path)


def draw_sweep(points: Sequence[Point], path: Path) -> None:
    """Measured speed against gamma, and the model's."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for strategy in dict.fromkeys(point.strategy for point in points):
            own = sorted((p for p in points if p.strategy == strategy), key=lambda p: p.gamma)
            gammas, middle = [p.gamma for p in own], [p.ratio.median for p in own]
            spread = [[p.ratio.median - p.ratio.low for p in own], [p.ratio.high - p.ratio.median for p in own]]
            color = OWN.get(strategy, PEERS[0])
            axes.errorbar(gammas, middle, spread, color=color, marker="o", capsize=3, label=f"{strategy}, measured")
            label = f"{strategy}, model at acceptance {own[0].acceptance:.2f}"
            axes.plot(gammas, [p.modelled for p in own], color=color, linestyle="--", alpha=0.75, label=label)
        axes.axhline(1.0, color="#333333", linewidth=1.1)
        axes.set_xticks(sorted({point.gamma for point in points}))
        axes.set_xlabel("gamma, tokens drafted per round")
        axes.set_ylabel("speed / autoregressive speed")
        axes.set_title("Speed against gamma")
        axes.legend(frameon=False)
        _save(figure, path)


def draw_timeline(timelines: Sequence[Timeline], path: Path) -> None:
    """A strip per strategy: bars where a lane computed, a line where a round was committed."""
    with mpl.rc_context(STYLE):
        height = 0.7 + 1.5 * max(len(timelines), 1)
        figure, strips = plt.subplots(
            max(len(timelines), 1), 1, figsize=(11, height), sharex=True, squeeze=False, layout="constrained"
        )
        shown_s = min(SHOWN_S, max((t.commits[-1] for t in timelines if t.commits), default=SHOWN_S))
        for axes, timeline in zip(strips[:, 0], timelines, strict=False):
            for level, (intervals, color) in enumerate(((timeline.draft, DRAFT), (timeline.target, TARGET))):
                bars = [(1e3 * start, 1e3 * (end - start)) for start, end in intervals if start < shown_s]
                # Edges in the bars' own colour: any other would cover a draft's short steps.
                axes.broken_barh(bars, (level - 0.36, 0.72), facecolors=color, edgecolor=color, linewidth=0.3)
            for commit, emitted in zip(timeline.commits, timeline.emitted, strict=True):
                if commit < shown_s:
                    axes.axvline(1e3 * commit, color="#333333", linewidth=0.6, alpha=0.6)
                    axes.text(1e3 * commit, 1.42, f"+{emitted}", fontsize=7, ha="right", va="bottom", color="#333333")
            axes.set_yticks([0, 1], ["draft", "target"])
            axes.set_ylim(-0.5, 1.75)
            axes.grid(axis="y", visible=False)
            both = timeline.overlap_s / timeline.commits[-1] if timeline.commits else 0.0
            axes.set_title(f"{timeline.title}: both lanes at work {both:.0%} of the time")
        strips[-1, 0].set_xlim(0, 1e3 * shown_s)
        strips[-1, 0].set_xlabel("milliseconds since decoding began; a line is a commit, +n the tokens it gave")
        _save(figure, path)


def _colors(systems: Sequence[str]) -> dict[str, str]:
    others = [system for system in systems if system not in OWN]
    return OWN | {system: PEERS[number % len(PEERS)] for number, system in enumerate(others)}


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
