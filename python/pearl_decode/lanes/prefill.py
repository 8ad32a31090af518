"""Reading the prompts, the same for both lanes."""

from __future__ import annotations

from pearl_decode.cache import WindowCache
from pearl_decode.lanes.cpu import CpuLane
from pearl_decode.models import MOST_ROWS, CausalModel
from pearl_decode.padding import parts_of
from pearl_decode.past import Read
from pearl_decode.state import Batch


def go_on(model: CausalModel, lane: CpuLane, cache: WindowCache, batch: Batch, read: Read) -> int:
    """Cache what was read of the batch's only text before. Returns how many tokens that is.

    None unless the model is one call, as it was then: every token's entries are the same however a text is read.
    """
    text = batch.state.tokens[0, : batch.committed[0]].tolist()

    def work() -> int:
        if model.is_whole and model.runs_at_once(cache):
            return read.hand_over(cache, text)
        read.release()
        return 0

    return lane.run(work).result()


def prefill(model: CausalModel, lane: CpuLane, cache: WindowCache, batch: Batch, start: int) -> None:
    """Cache every prompt, from position `start` on, but its last token, which is the first input of the first round.

    No lane samples here, so the two can never disagree. Long prompts are read one by one, short ones together, so that
    little of what is read is padding: rows run on into whatever follows their prompt, and causality hides those entries
    until they are overwritten.
    """
    lengths = [committed - 1 for committed in batch.committed]
    if max(lengths) <= start:
        return
    parts = list(parts_of(lengths, MOST_ROWS)) if start == 0 else [slice(None)]
    with lane.forward():
        for rows in parts:
            width = max(lengths[rows]) - start
            if width <= 0:
                continue
            tokens = batch.state.tokens[rows, start : start + width].clamp(min=0)
            if len(parts) == 1:
                model.read(tokens, start, cache)
                continue
            part = WindowCache(width)
            model.read(tokens, 0, part)
            cache.take_over(part, rows, len(lengths))
