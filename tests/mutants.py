"""Sources that are broken on purpose, for tests that must see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Mutant:
    """A piece of a source, what it becomes, and the check that must fail."""

    file: str
    line: str
    broken: str
    check: Callable[[], None]

    def break_in(self, folder: Path) -> None:
        """Write it into a copy of the sources."""
        source = folder / self.file
        text = source.read_text()
        assert text.count(self.line) == 1, f"{self.file} has {text.count(self.line)} of {self.line!r}"
        source.write_text(text.replace(self.line, self.broken))


@contextmanager
def memory_of_nonsense() -> Iterator[None]:
    """What a kernel does not write must not be what happened to be there."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
