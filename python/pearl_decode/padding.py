"""How many texts are read at once, padded to the longest of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from pearl_decode.cache import WindowCache
from pearl_decode.models import CausalModel


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


def read_texts(
    model: CausalModel,
    cache: WindowCache,
    tokens: Tensor,
    lengths: Sequence[int],
    rows: Sequence[int],
    batch: int,
    size: int,
) -> None:
    """Cache the first lengths[i] tokens, which may be none, of each text as row rows[i] of a batch of so many.

    tokens: (texts, width) int64 on the model's device; what follows a text may be anything
    rows:   ascending
    size:   of a part, as in `parts_of`

    Long texts are read one by one, short ones together, so that little of what is read is padding: rows run on into
    whatever follows, and causality hides those entries until they are overwritten.
    """
    for part in parts_of(lengths, size):
        width = max(lengths[part])
        if width <= 0:
            continue
        texts = tokens[part, :width].clamp(min=0)
        if len(texts) == batch:
            model.read(texts, 0, cache)
            continue
        read = WindowCache(width)
        model.read(texts, 0, read)
        cache.take_over(read, rows[part], batch)
