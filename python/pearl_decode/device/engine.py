"""Decodes one batch of requests with static rounds, the host some rounds behind."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

import torch

from pearl_decode.device.draft import StaticDraft
from pearl_decode.device.round import StaticRound
from pearl_decode.device.shape import shape_of
from pearl_decode.engine import Plan, Update
from pearl_decode.lanes.queue import DeviceLane
from pearl_decode.memory import NoRoomError, check_room
from pearl_decode.models import CausalModel
from pearl_decode.request import Request
from pearl_decode.ring import Ring
from pearl_decode.state import Batch
from pearl_kernels import Finished, SamplingTensors, Status

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceOptions:
    """How the host drives static rounds.

    lateness: rounds queued ahead of the one whose outcome the host reads
    bucket:   positions: caches, and the part of them that is looked at, grow in steps of so many, as what is captured
              or compiled holds for one size

    Raises ValueError naming the field, what was expected and what came.
    """

    lateness: int = 1
    bucket: int = 512

    def __post_init__(self) -> None:
        for name, least in (("lateness", 0), ("bucket", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


class Kept:
    """The rounds of the last batch: their memory, and what was captured of them, for a batch of the same sizes."""

    def __init__(self) -> None:
        self._key: object = None
        self._rounds: StaticRound | None = None

    def take(self, key: object) -> StaticRound | None:
        """The kept rounds if they are of this kind. Others are let go, before there are new ones."""
        rounds, self._rounds = self._rounds, None
        return rounds if key == self._key else None

    def give(self, key: object, rounds: StaticRound) -> None:
        self._key, self._rounds = key, rounds


class DeviceEngine:
    """One batch in flight, of which the host knows what the ring brought. Rows that have ended stay, and stand still.

    A stop string, which the host alone can see, ends its request when it is read; what the device went on to decode for
    it is dropped, neither shown nor counted.
    """

    def __init__(
        self,
        requests: list[Request],
        target: CausalModel,
        draft: CausalModel | None,
        lanes: tuple[DeviceLane, DeviceLane],
        plan: Plan,
        options: DeviceOptions | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.requests = requests
        self.target = target
        self.draft = draft
        self.lanes = lanes
        self.plan = plan
        self.options = options or DeviceOptions()
        self.kept = kept or Kept()
        self.shape = shape_of(plan.strategy, plan.most_drafted)
        sampled = plan.rule != "greedy" and any(request.params.temperature > 0 for request in requests)
        self._keeps_logits = sampled and plan.rule in ("token", "block")
        longest = max(len(request.prompt_ids) + request.params.max_tokens for request in requests)
        self._capacity = self._rounded(longest + plan.spare)
        self._spare = self._capacity - longest

    def run(self) -> Generator[list[Update], None, None]:
        """Decode until every request has ended; what each request got from a round, `lateness` rounds after it.

        A target that fails ends the requests still running with an error; what they had is kept.
        """
        try:
            yield from self._rounds()
        except NoRoomError as error:
            for request in self._running():
                request.fail(str(error))
        except Exception as error:
            LOGGER.exception("the target failed")
            for request in self._running():
                request.fail(f"the target failed: {error!r}")

    def _running(self) -> list[Request]:
        return [request for request in self.requests if request.finish_reason is None]

    def _rounds(self) -> Generator[list[Update], None, None]:
        begin = time.perf_counter()
        key, rounds = self._start()
        rounds.prefill(max(len(request.prompt_ids) for request in self.requests) - 1)
        self.lanes[0].record().synchronize()
        start = time.perf_counter()
        for lane in self.lanes:
            lane.reset()
        for request in self.requests:
            request.stats.prefill_s = start - begin
        ring = Ring(tuple(rounds.report.shape), self.options.lateness + 1, self.lanes[0])
        forwards: deque[int] = deque()  # draft forwards of each round that is on its way
        try:
            while self._running():
                rounds.play(self._view(rounds, len(ring)))
                ring.push(rounds.report)
                forwards.append(rounds.draft_forwards)
                if len(ring) > self.options.lateness:
                    updates = self._hand_out(ring.read(), forwards.popleft())
                    self._count_time(updates, time.perf_counter() - start)
                    yield updates
        finally:
            rounds.close()
            if rounds.shape == self.shape:
                self.kept.give(key, rounds)

    def _start(self) -> tuple[object, StaticRound]:
        """Rounds with the prompts laid down: those of the batch before, if they fit."""
        batch = self.lanes[0].make(self._lay_down)
        eos_ids = batch.state.eos_ids.shape[1]
        key = (len(self.requests), self._capacity, eos_ids, self.shape, self.plan.rule, self._keeps_logits)
        rounds = self.kept.take(key)
        if rounds is None:
            return key, self._build(batch)
        rounds.load(batch.state, batch.params)
        return key, rounds

    def _build(self, batch: Batch) -> StaticRound:
        check_room(self.target, len(self.requests), self._capacity)
        draft = None
        if self.draft is not None and self.shape.drafted:
            draft = StaticDraft(
                self.draft,
                self._draft_params(self.draft.device, batch.params),
                self._capacity,
                self.shape,
                self.target.vocab_size,
                coupled=self.plan.rule == "coupled",
                keeps_logits=self._keeps_logits,
            )
        return StaticRound(
            batch.state, batch.params, self.target, draft, self.lanes, self.shape, self.plan.rule, self._capacity
        )

    def _draft_params(self, device: torch.device, params: SamplingTensors) -> SamplingTensors:
        """Where the draft has a device of its own, room for a copy, which prefilling makes."""
        if self.lanes[0].device == self.lanes[1].device:
            return params
        return self.lanes[1].make(lambda: SamplingTensors.make(len(self.requests), device=device))

    def _lay_down(self) -> Batch:
        return Batch.start(
            [request.prompt_ids for request in self.requests],
            [request.params for request in self.requests],
            [request.seed for request in self.requests],
            [request.eos_ids for request in self.requests],
            self._spare,
            self.target.device,
        )

    def _view(self, rounds: StaticRound, in_flight: int) -> int:
        """Cached positions the next round may look at: no row is further, whatever the rounds on their way gave."""
        capacity = rounds.cache.capacity
        models = [self.target, *([rounds.draft.model] if rounds.draft else [])]
        if all(model.wants_one_view for model in models):
            return capacity
        known = max(len(r.prompt_ids) + len(r.token_ids) for r in self.requests)
        furthest = known + in_flight * self.shape.most_emitted + self.shape.reach
        return min(capacity, self._rounded(furthest))

    def _rounded(self, positions: int) -> int:
        return -(-positions // self.options.bucket) * self.options.bucket

    def _hand_out(self, report: list[list[int]], draft_forwards: int) -> list[Update]:
        updates = []
        for request, (emitted, accepted, finished, status, *ids) in zip(self.requests, report, strict=True):
            if request.finish_reason is not None:
                continue
            count, text = request.push(ids[:emitted], Finished(finished), Status(status))
            refused = draft_forwards > 0 and accepted < self.shape.drafted and accepted < emitted
            request.stats.count_round(count, min(accepted, count), accepted + refused, draft_forwards)
            updates.append(Update(request, ids[:count], text))
        return updates

    def _count_time(self, updates: list[Update], decode_s: float) -> None:
        for lane in self.lanes:
            lane.settle()
        target_s, draft_s = (sum(end - start for start, end in lane.intervals) for lane in self.lanes)
        for update in updates:
            stats = update.request.stats
            stats.decode_s = decode_s
            stats.target_busy_s, stats.target_idle_s = target_s, decode_s - target_s
            stats.draft_busy_s, stats.draft_idle_s = draft_s, decode_s - draft_s
