"""How many texts are read at once, padded to the longest of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def parts_of(lengths: Sequence[int], size: int) -> Iterator[slice]:
    """Texts in order, so many at once that with their padding they are at most `size` tokens (or one text)."""
    begin = longest = 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > begin and (row + 1 - begin) * longest > size:
            yield slice(begin, row)
            begin, longest = row, length
    if lengths:
        yield slice(begin, len(lengths))
