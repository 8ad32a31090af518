"""Reading the prompts, the same for both lanes."""

from __future__ import annotations

from pearl_decode.cache import WindowCache
from pearl_decode.lanes.cpu import CpuLane
from pearl_decode.models import CausalModel
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

    No lane samples here, so the two can never disagree. Shorter rows run on into whatever follows their prompt;
    causality hides those entries until they are overwritten.
    """
    width = max(batch.committed) - 1 - start
    if width > 0:
        with lane.forward():
            model.read(batch.gather([start] * len(batch.committed), width), start, cache)
