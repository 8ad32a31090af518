"""One line at the bottom of the terminal that stays where it is while text scrolls above it."""

from __future__ import annotations

import os
import shutil
import sys


class StatusLine:
    """A context manager; `show` does nothing unless both stdout and stderr are a terminal that moves its cursor."""

    def __init__(self) -> None:
        self._rows = shutil.get_terminal_size().lines
        shown = sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._on = shown and self._rows > 2

    def __enter__(self) -> StatusLine:
        if self._on:
            # A line feed first, or the reserved row would cover text; then all rows but the last scroll.
            self._write(f"\n\x1b[1A\x1b7\x1b[1;{self._rows - 1}r\x1b8")
        return self

    def show(self, text: str) -> None:
        if self._on:
            self._write(f"\x1b7\x1b[{self._rows};1H\x1b[2K\x1b[2m{text}\x1b[0m\x1b8")

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._write(f"\x1b7\x1b[r\x1b[{self._rows};1H\x1b[2K\x1b8")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
