"""Reading the prompts, the same for both lanes."""

from __future__ import annotations

from collections.abc import Sequence

from pearl_decode.cache import WindowCache
from pearl_decode.lanes.cpu import CpuLane
from pearl_decode.models import MOST_ROWS, CausalModel
from pearl_decode.padding import read_texts
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

    No lane samples here, so the two can never disagree.
    """
    count, tokens = len(batch.committed), batch.state.tokens
    if rows is not None:
        tokens = tokens[list(rows)]
    rows = range(count) if rows is None else rows
    lengths = [batch.committed[row] - 1 for row in rows]
    longest = max(lengths, default=0)
    if longest <= start:
        return
    with lane.forward():
        if start:
            model.read(tokens[:, start:longest].clamp(min=0), start, cache)
        else:
            read_texts(model, cache, tokens, lengths, rows, count, MOST_ROWS)
