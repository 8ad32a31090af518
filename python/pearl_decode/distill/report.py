"""Who is told how a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from pearl_decode.distill.answers import Answer
from pearl_decode.distill.train import Progress

AT_ONCE_S = 1.0  # what a resumed run has already is told within it


class Report(Protocol):
    """Each method gives a function to call with every piece of news while its part of the run lasts."""

    def writing(self, total: int) -> AbstractContextManager[Callable[[Answer], None]]: ...

    def answering(self, total: int) -> AbstractContextManager[Callable[[Answer], None]]: ...

    def choosing(self) -> AbstractContextManager[Callable[[float], None]]: ...

    def training(self, tokens: int) -> AbstractContextManager[Callable[[Progress], None]]: ...


class Silent:
    def writing(self, total: int) -> AbstractContextManager[Callable[[Answer], None]]:
        return nullcontext(lambda answer: None)

    def answering(self, total: int) -> AbstractContextManager[Callable[[Answer], None]]:
        return nullcontext(lambda answer: None)

    def choosing(self) -> AbstractContextManager[Callable[[float], None]]:
        return nullcontext(lambda done: None)

    def training(self, tokens: int) -> AbstractContextManager[Callable[[Progress], None]]:
        return nullcontext(lambda progress: None)


class Bars:
    """A progress bar on stderr for each part; where stderr is no terminal, a line each `every_s` seconds."""

    def __init__(self, every_s: float = 30.0) -> None:
        self._every_s = every_s

    def writing(self, total: int) -> AbstractContextManager[Callable[[Answer], None]]:
        return self._counting("prompts", total)

    def answering(self, total: int) -> AbstractContextManager[Callable[[Answer], None]]:
        return self._counting("answers", total)

    @contextmanager
    def _counting(self, what: str, total: int) -> Iterator[Callable[[Answer], None]]:
        tokens = count = 0

        with _Bar(what, self._every_s) as bar:

            def update(answer: Answer) -> None:
                nonlocal tokens, count
                count, tokens = count + 1, tokens + len(answer.answer_ids)
                bar.show(count / total, f"{count} of {total} {what}, {tokens} tokens")

            yield update

    @contextmanager
    def choosing(self) -> Iterator[Callable[[float], None]]:
        with _Bar("vocabulary", self._every_s) as bar:
            yield lambda done: bar.show(min(done, 1.0), "the target reads its answers")

    @contextmanager
    def training(self, tokens: int) -> Iterator[Callable[[Progress], None]]:
        with _Bar("training", self._every_s) as bar:

            def update(now: Progress) -> None:
                bar.show(
                    now.done,
                    f"loss {now.loss:.3f}, held-out acceptance {now.acceptance:.3f}, greedy {now.agreement:.3f}, "
                    f"{now.tokens} of {tokens} tokens, {now.tokens_per_s:.0f} tokens/s",
                )

            yield update


class _Bar:
    """One rich bar with the time left, or plain lines."""

    def __init__(self, doing: str, every_s: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._doing, self._every_s, self._next = doing, every_s, 0.0
        self._begin: tuple[float, float] | None = None  # time of the first news, and share that was done before
        self._console = console
        self._bar = Progress(
            TextColumn(doing),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[news]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(doing, total=1.0, news="")

    def show(self, done: float, news: str) -> None:
        self._bar.update(self._task, completed=min(done, 1.0), news=news)
        now = time.monotonic()
        begin, before = self._begin or (now, done)
        if now - begin < AT_ONCE_S:
            before = done
        self._begin = begin, before
        if not self._console.is_terminal and now >= self._next:
            self._next = now + self._every_s
            left = (
                f", about {(now - begin) * (1 - done) / (done - before) / 60:.0f} minutes left" if done > before else ""
            )
            self._console.print(f"{self._doing} {done:.1%}: {news}{left}", highlight=False, soft_wrap=True)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
