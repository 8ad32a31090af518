"""Reading the prompts, the same for both lanes."""

from __future__ import annotations

from pearl_decode.cache import WindowCache
from pearl_decode.lanes.cpu import CpuLane
from pearl_decode.models import CausalModel
from pearl_decode.state import Batch


def prefill(model: CausalModel, lane: CpuLane, cache: WindowCache, batch: Batch) -> None:
    """Cache every prompt but its last token, which is the first input of the first round.

    No lane samples here, so the two can never disagree. Shorter rows run on into whatever follows their prompt;
    causality hides those entries until they are overwritten.
    """
    width = max(batch.committed) - 1
    if width > 0:
        with lane.forward():
            model.read(batch.gather([0] * len(batch.committed), width), 0, cache)
