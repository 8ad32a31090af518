"""Reading the prompts, the same for both lanes."""

from __future__ import annotations

from collections.abc import Sequence

from pearl_decode.cache import WindowCache
from pearl_decode.lanes.cpu import CpuLane
from pearl_decode.models import MOST_ROWS, CausalModel
from pearl_decode.padding import parts_of
from pearl_decode.past import Read
from pearl_decode.state import Batch


def go_on(model: CausalModel, lane: CpuLane, cache: WindowCache, batch: Batch, read: Read) -> int:
    """Cache what was read of the batch's only text before. Returns how many tokens that is.

    That is 0 unless the model is one call, as it was then: every token's entries are the same however a text is read.
    """
    text = batch.state.tokens[0, : batch.committed[0]].tolist()

    def work() -> int:
        if model.is_whole and model.runs_at_once(cache):
            return read.hand_over(cache, text)
        read.release()
        return 0

    return lane.run(work).result()


def prefill(
    model: CausalModel, lane: CpuLane, cache: WindowCache, batch: Batch, start: int, rows: Sequence[int] | None = None
) -> None:
    """Cache the prompts of these rows, or of all, but the last token of each, which is the first input of its first
    round. All are read from position `start` on, 0 where they are not all rows.

    No lane samples here, so the two can never disagree. Long prompts are read one by one, short ones together, so that
    little of what is read is padding: rows run on into whatever follows their prompt, and causality hides those entries
    until they are overwritten.
    """
    count = len(batch.committed)
    rows = range(count) if rows is None else rows
    lengths = [batch.committed[row] - 1 for row in rows]
    if max(lengths, default=0) <= start:
        return
    parts = list(parts_of(lengths, MOST_ROWS)) if start == 0 else [slice(None)]
    with lane.forward():
        for part in parts:
            width = max(lengths[part]) - start
            if width <= 0:
                continue
            tokens = batch.state.tokens[list(rows[part]), start : start + width].clamp(min=0)
            if len(tokens) == count:
                model.read(tokens, start, cache)
                continue
            read = WindowCache(width)
            model.read(tokens, 0, read)
            cache.take_over(read, rows[part], count)
