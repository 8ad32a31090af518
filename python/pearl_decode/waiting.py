"""Requests that wait for a row of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pearl_decode.request import Request


class Waiting:
    """First come, first served; but one that a batch has no room for lets others by, until the next batch."""

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        self._requests = list(requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def take(self, most: int, longest: int | None = None) -> list[Request]:
        """The first `most` of those that are at most so long, or of all; they wait no more."""
        found: list[Request] = []
        left: list[Request] = []
        for request in self._requests:
            fits = longest is None or request.longest <= longest
            (found if fits and len(found) < most else left).append(request)
        self._requests = left
        return found

    def put_back(self, requests: Iterable[Request]) -> None:
        """Let these be the first again."""
        self._requests = [*requests, *self._requests]
