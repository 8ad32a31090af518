"""The target's lane: it reads prompts and verifies windows."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pearl_decode.cache import WindowCache
from pearl_decode.lanes.cpu import CpuLane
from pearl_decode.lanes.prefill import go_on, prefill
from pearl_decode.lanes.worker import Job
from pearl_decode.models import CausalModel
from pearl_decode.past import Read
from pearl_decode.state import Batch


class TargetLane:
    """The target model, its lane, and its cache of one batch."""

    def __init__(self, model: CausalModel, lane: CpuLane, batch: Batch) -> None:
        self.model = model
        self.lane = lane
        self.batch = batch
        self.cache = WindowCache(batch.capacity)
        self.cached = 0  # of every row's positions, before the prompts are read

    def go_on(self, read: Read, capacity: int) -> None:
        """Begin with what was read of the batch's only text before, in a cache of this capacity or more."""
        self.cache = WindowCache(capacity)
        self.cached = go_on(self.model, self.lane, self.cache, self.batch, read)

    def prefill(self) -> Job[None]:
        return self.lane.run(lambda: prefill(self.model, self.lane, self.cache, self.batch, self.cached))

    def replace(self, rows: list[int]) -> Job[None]:
        """These rows of the batch are others now: read their prompts."""

        def work() -> None:
            if not self.model.reads_lengths:
                self.cache.clear(rows)
            prefill(self.model, self.lane, self.cache, self.batch, 0, rows)

        return self.lane.run(work)

    def window_logits(self, width: int) -> Job[torch.Tensor]:
        """Logits (batch, width, vocab): row i is the target's distribution of the token at committed + i."""
        return self.prepared_window(width)()

    def prepared_window(self, width: int) -> Callable[[], Job[torch.Tensor]]:
        """`window_logits`, to be called when the lane shall begin."""
        starts = [committed - 1 for committed in self.batch.committed]
        inputs = self.batch.gather(starts, width)

        def work() -> torch.Tensor:
            with self.lane.forward():
                return self.model.forward(inputs, starts, self.cache, keep=width)

        return lambda: self.lane.run(work)

    def keep(self, rows: list[int]) -> None:
        self.cache.keep(rows)
