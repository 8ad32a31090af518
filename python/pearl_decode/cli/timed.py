"""A progress bar with the time left, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pearl_decode.cli.console import note

NEWS_S = 30.0  # between lines where there is no terminal


@contextmanager
def countdown(doing: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function (what runs, runs done, runs in all): a bar on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _lines(doing)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda name, done, total: bar.update(task, description=f"{doing} {name}", completed=done, total=total)


def _lines(doing: str) -> Callable[[str, int, int], None]:
    begin = last = time.monotonic()

    def report(name: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= NEWS_S:
            last = now
            left_s = (now - begin) / done * (total - done) if done else 0.0
            note(f"{doing} {name}: {done} of {total} runs done, about {left_s / 60:.0f} minutes left")

    return report
