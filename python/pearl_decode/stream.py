"""One answer, piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from pearl_decode.engine import Update
from pearl_decode.request import Request
from pearl_decode.result import GenerationResult


class TextStream:
    """Pieces of one answer as they are verified. `result` holds what there is so far; `close` stops early."""

    def __init__(self, request: Request, rounds: Generator[list[Update], None, None]) -> None:
        self._request = request
        self._rounds = rounds

    def __iter__(self) -> Iterator[str]:
        for updates in self._rounds:
            for update in updates:
                if update.text:
                    yield update.text

    def finish(self) -> GenerationResult:
        """The whole answer, when there is no more to come. Raises RuntimeError where the request failed."""
        for _ in self:
            pass
        if self.result.error is not None:
            raise RuntimeError(self.result.error)
        return self.result

    @property
    def result(self) -> GenerationResult:
        return self._request.result()

    def close(self) -> None:
        self._rounds.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
