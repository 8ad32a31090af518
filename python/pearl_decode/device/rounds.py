"""The static rounds of one batch: which shape is next, what the draft has read, and what is left when it fails."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence

from torch import Tensor

from pearl_decode.cache import WindowCache
from pearl_decode.device.draft import MOST_READ, copy_fields
from pearl_decode.device.round import StaticBatch, StaticRound, firsts_of
from pearl_decode.device.shape import ALONE, Shape
from pearl_decode.models import CausalModel
from pearl_decode.padding import read_texts
from pearl_decode.state import Batch, put_rows
from pearl_kernels import DecodeState, SamplingTensors

LOGGER = logging.getLogger(__name__)


class StaticRounds:
    """Queues rounds of any shapes over one batch. Nothing is read on the host.

    Every shape has tensors and graphs of its own, made when it is first played; state, caches and models are shared.
    A draft that fails to queue its part, or whose device fails, costs speed, never a request: it is dropped with a
    warning, its memory is given back, and from that very round on the target goes on alone.
    """

    def __init__(self, batch: StaticBatch) -> None:
        self.batch = batch
        self.rounds: dict[Shape, StaticRound] = {}
        self._present: StaticRound | None = None
        self._handed_over: Tensor | None = None  # tokens for the draft to read, which may still be reading them

    @property
    def drafting(self) -> bool:
        return self.batch.draft is not None

    @property
    def capacity(self) -> int:
        """Positions that each row can hold."""
        return self.batch.cache.capacity

    def load(self, state: DecodeState, params: SamplingTensors) -> None:
        """Begin again with other sequences, in the same memory."""

        def work() -> None:
            copy_fields(self.batch.state, state)
            copy_fields(self.batch.params, params)
            if not self.batch.target.reads_lengths:
                self.batch.cache.clear()

        self.batch.lanes[0].run(work)
        self._present = None

    def prefill(self, lengths: Sequence[int], *, drafting: bool) -> None:
        """Let the target read so many first tokens of each row, at least one, and the draft too if it is to draft at
        once.
        """
        batch, target_lane = self.batch, self.batch.lanes[0]
        if batch.draft is not None:
            self.try_draft(self._ready_draft)
        if drafting:
            self.catch_up(0, lengths)
        target_lane.run(lambda: self._read(batch.target, batch.cache, batch.state.tokens, lengths, range(len(lengths))))

    def _read(
        self, model: CausalModel, cache: WindowCache, tokens: Tensor, lengths: Sequence[int], rows: Sequence[int]
    ) -> None:
        """Let a model read texts as these rows."""
        read_texts(model, cache, tokens, lengths, rows, len(self.batch.state.tokens), MOST_READ)

    def _ready_draft(self) -> None:
        target_lane, draft_lane = self.batch.lanes

        def work() -> None:
            assert self.batch.draft is not None
            if not self.batch.draft.model.reads_lengths:
                self.batch.draft.cache.clear()
            if self.batch.apart:
                copy_fields(self.batch.draft.params, self.batch.params)

        draft_lane.wait(target_lane.record())
        draft_lane.run(work)

    def replace(self, rows: Sequence[int], others: Batch, *, drafting: bool) -> None:
        """Let the sequences of another batch, on the host and with room for as much, take the places of these rows, and
        let the target read their prompts, and the draft too if it is to draft at once. Other rows go on as they were.
        """
        batch, (target_lane, draft_lane) = self.batch, self.batch.lanes
        if target_lane.device.type == "cuda":
            others = others.pinned()  # or copies would hold the host up
        lengths = [committed - 1 for committed in others.committed]

        def read(model: CausalModel, cache: WindowCache) -> None:
            if not model.reads_lengths:
                cache.clear(rows)
            if drafting or model is batch.target:
                self._read(model, cache, others.state.tokens.to(model.device, non_blocking=True), lengths, rows)

        def work() -> None:
            put_rows(batch.state, rows, others.state)
            put_rows(batch.params, rows, others.params)
            read(batch.target, batch.cache)
            if self._present is not None:
                self._present.announce()

        def work_of_draft() -> None:
            assert batch.draft is not None
            if batch.apart:
                put_rows(batch.draft.params, rows, others.params)
            read(batch.draft.model, batch.draft.cache)

        target_lane.run(work)
        if self.drafting:
            self.try_draft(lambda: draft_lane.run(work_of_draft))

    def catch_up(self, start: int, stops: Sequence[int]) -> None:
        """Let the draft read positions from `start` up to each row's stop, as it missed rounds that went without it."""
        draft, (target_lane, draft_lane) = self.batch.draft, self.batch.lanes
        if draft is None:
            return

        def hand_over() -> None:
            # What is past a row's head may be a placeholder.
            self._handed_over = self.batch.state.tokens[:, start : max(stops)].clamp(min=0)

        def read() -> None:
            assert self._handed_over is not None
            draft.read(self._handed_over.to(draft.model.device, non_blocking=True), start, stops)

        def queue() -> None:
            draft_lane.wait(target_lane.record())
            draft_lane.run(read)

        # Where the draft was not needed after all, it may still be reading what was handed over before.
        if self.try_draft(lambda: target_lane.wait(draft_lane.record())):
            target_lane.run(hand_over)
            self.try_draft(queue)

    def play(self, shape: Shape, view: int) -> StaticRound:
        """Queue one round, of this shape while there is a draft. Returns it, its report being the last thing it writes.

        view: cached positions it may look at, at most the caches' capacity
        """
        before, round = self._present, self._turn_to(shape if self.drafting or not shape.drafted else ALONE)

        def draft() -> None:
            if before is not None and before.shape.reread > round.shape.reread:
                before.leave(view)
            round.play_draft(view)

        if round.shape.drafted and not self.try_draft(draft):
            round = self._turn_to(ALONE)
        round.play_target(view)
        round.firsts = max(0, round.firsts - 1)
        return round

    def firsts(self, shape: Shape) -> int:
        """How many rounds of this shape there will be that do something for the first time, which takes long."""
        return self.rounds[shape].firsts if shape in self.rounds else firsts_of(self.batch)

    def close(self) -> None:
        """Let nobody use again what a lane may still read: neither the other lane, nor the caller."""
        target_lane, draft_lane = self.batch.lanes

        def meet() -> None:
            draft_lane.wait(target_lane.record())
            target_lane.wait(draft_lane.record())
            draft_lane.join()

        if self.drafting:
            self.try_draft(meet)
        target_lane.join()

    def release(self) -> None:
        """Give all memory back, when nothing runs in it any more; this holds the host up. The end of these rounds."""
        batch, (target_lane, draft_lane) = self.batch, self.batch.lanes
        target_lane.record().synchronize()
        if self.drafting:
            _try_lost(lambda: draft_lane.record().synchronize())
        for round in self.rounds.values():
            round.release()
        self.rounds.clear()
        self._present = self._handed_over = None
        batch.cache.release()
        target_lane.release()
        if batch.draft is not None:
            batch.draft.cache.release()
            _try_lost(draft_lane.release)

    def try_draft(self, queue: Callable[[], object]) -> bool:
        """Do what needs the draft's device. Returns whether it could be done; if not, there is no draft any more."""
        failure = None
        try:
            queue()
        except Exception as error:  # whatever it is, the target can go on
            failure = repr(error)
        if failure is None:
            return True
        # Not while the exception is there, whose frames hold what is to be freed.
        warnings.warn(f"the draft failed, the target goes on alone: {failure}", RuntimeWarning, stacklevel=2)
        self.drop_draft()
        return False

    def drop_draft(self) -> None:
        """Go on alone, and give the draft's memory back."""
        target_lane, draft_lane = self.batch.lanes
        target_lane.record().synchronize()
        _try_lost(lambda: draft_lane.record().synchronize())
        _try_lost(draft_lane.settle)
        if self.batch.draft is not None:
            self.batch.draft.cache.release()
        self.batch.draft = self.batch.d2t = self._handed_over = None
        for shape in [shape for shape in self.rounds if shape.drafted]:
            self.rounds.pop(shape).release()
        self._present = None
        _try_lost(draft_lane.release)

    def _turn_to(self, shape: Shape) -> StaticRound:
        if shape not in self.rounds:
            self.rounds[shape] = StaticRound(self.batch, shape)
        round = self.rounds[shape]
        round.warm = round is self._present
        if not round.warm:
            round.enter()
            self._present = round
        return round


def _try_lost(work: Callable[[], None]) -> None:
    """What is owed to a device that may be lost, and then fails again."""
    try:
        work()
    except Exception as error:
        LOGGER.warning("the draft's device: %r", error)
