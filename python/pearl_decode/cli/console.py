"""What the commands say, and where: answers and tables on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

FAILED, BAD_ARGUMENTS, INTERRUPTED = 1, 2, 130
FILE_WIDTH = 120  # of a table that is not shown on a terminal


class CliError(Exception):
    """Ends the command with one line on stderr and an exit status."""

    def __init__(self, message: object, status: int = FAILED) -> None:
        super().__init__(" ".join(str(message).split()))
        self.status = status


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def open_streams() -> None:
    """Standard streams that came closed are empty, or lead nowhere. In this order, so that each has its own number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open as long as we run


def take_any_text() -> None:
    """Let no character end a command: input keeps what is not UTF-8, to be refused; output has ? for what it lacks."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(io.UnsupportedOperation):  # of a stream that was read from before
                stream.reconfigure(errors=errors)


def print_json(value: object) -> None:
    """Print one object on a line, escaped where stdout's encoding lacks a character of it."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text, flush=True)


@contextmanager
def progress(doing: str) -> Iterator[Callable[[str], None]]:
    """A function that reports steps on stderr, one line each.

    doing: shown meanwhile, but on a terminal only: in a log, that something takes two seconds is no news
    """
    if not sys.stderr.isatty():
        yield note
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(doing):

        def report(line: str) -> None:
            console.print(line, style="dim", highlight=False)

        yield report


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout: the first column is text, the others are numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # as print does, where rich exits with a status of its own

    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index else "left")
    for row in rows:
        drawn.add_row(*row)
    width = None if sys.stdout.isatty() else FILE_WIDTH
    Plain(file=sys.stdout, highlight=False, width=width).print(drawn)
