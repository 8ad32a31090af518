"""Decodes one batch of requests with static rounds, the host some rounds behind."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch

from pearl_decode.auto import Choice, Chooser
from pearl_decode.cache import WindowCache
from pearl_decode.costs import Costs
from pearl_decode.device.draft import StaticDraft
from pearl_decode.device.flight import Flight, fly, numbers
from pearl_decode.device.kept import Kept
from pearl_decode.device.round import FACTS, StaticBatch
from pearl_decode.device.rounds import StaticRounds
from pearl_decode.device.shape import WIDTHS, shape_of, static_choices
from pearl_decode.engine import Plan, Update
from pearl_decode.lanes.queue import DeviceLane
from pearl_decode.lookup import PromptLookup
from pearl_decode.memory import NoRoomError, check_room, has_plenty, has_room
from pearl_decode.models import CausalModel
from pearl_decode.request import Request, lay_down
from pearl_decode.ring import Ring
from pearl_decode.state import Batch
from pearl_decode.waiting import Waiting
from pearl_kernels import Finished, SamplingTensors, Status

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceOptions:
    """How the host drives static rounds.

    lateness: rounds queued ahead of the one whose outcome the host reads
    bucket:   positions: caches, and the part of them that is looked at, grow in steps of so many, as what is captured
              or compiled holds for one size
    widths:   of the target's windows, which gamma "auto" chooses among; at least 2 each

    Raises ValueError naming the field, what was expected and what came.
    """

    lateness: int = 1
    bucket: int = 512
    widths: tuple[int, ...] = WIDTHS

    def __post_init__(self) -> None:
        for name, least in (("lateness", 0), ("bucket", 1)):
            value = getattr(self, name)
            if not _is_number(value, least):
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        if not self.widths or not all(_is_number(width, 2) for width in self.widths):
            raise ValueError(f"widths must be integers >= 2, at least one, got {self.widths!r}")


def _is_number(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class DeviceEngine:
    """One batch in flight, of which the host knows what the ring brought. A row that has ended is given to one that
    waits, or stays and stands still.

    A stop string, which the host alone can see, ends its request when it is read; what the device went on to decode for
    it is dropped, neither shown nor counted. A choice among strategies, too, is made by what was read: for a round that
    is `lateness` rounds further.
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
        costs: Costs | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        """
        kept:    what batches before left
        costs:   what is known of the pair
        waiting: requests that may take the rows of those that end; they are taken out of it as they do
        """
        self.requests = list(requests)  # of each row now
        self.waiting = Waiting() if waiting is None else waiting
        self.target = target
        self.draft = draft
        self.lanes = lanes
        self.plan = plan
        self.options = options or DeviceOptions()
        self.kept = Kept() if kept is None else kept
        choices = static_choices(plan, self.options.widths, drafting=draft is not None)
        self.chooser = Chooser(choices, costs or Costs(), len(requests), whole_windows=True)
        self._shapes = {choice: shape_of(choice.strategy, choice.gamma) for choice in choices}
        all_requests = [*requests, *self.waiting]
        sampled = any(request.params.temperature > 0 for request in all_requests)
        self._rule = plan.rule if sampled else "greedy"  # as every rule is then, by kernels for nothing else
        self._ends = max(1, *(len(request.eos_ids) for request in all_requests))
        self._spare = 1 + max(shape.reach for shape in self._shapes.values())
        self._capacity = self._rounded(max(request.longest for request in requests) + self._spare)
        # What else is fixed about its rounds.
        self._kind = len(requests), self._ends, self._rule
        self.begin = 0, 0  # the lanes' numbers when decoding began
        self.ends: list[int] = []  # of the rounds queued: the target lane's number when each was
        self._read = [0] * len(requests)  # positions of each row that the draft has read
        self._busy_s = [0.0, 0.0]  # of the lanes, in the rounds that were read
        # Of requests that took a row: the number of the work that reads the prompt, and when it was queued.
        self._readings: dict[Request, tuple[int, float]] = {}
        self._behind = False  # whether rounds went without the draft since
        self._lookups: list[PromptLookup] = []  # of what was read, to choose by
        if len(choices) > 1 and any(choice.strategy == "lookup" for choice in choices):
            self._lookups = [PromptLookup(request.prompt_ids) for request in requests]

    def run(self) -> Generator[list[Update], None, None]:
        """Decode until every request has ended; what each request got from a round, `lateness` rounds after it.

        A target that fails ends the requests still running with an error; what they had is kept. Raises NoRoomError,
        before anything runs, where the target's cache does not fit.
        """
        try:
            yield from self._rounds()
        except NoRoomError:
            raise
        except Exception as error:
            LOGGER.exception("the target failed")
            for request in self._running():
                request.fail(f"the target failed: {error!r}")
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                self.kept.clear()  # what is kept for others may be what was missing

    def _running(self) -> list[Request]:
        return [request for request in self.requests if request.finish_reason is None]

    def _rounds(self) -> Generator[list[Update], None, None]:
        begin = time.perf_counter()
        rounds = self._start()
        try:
            self._prefill(rounds)
            start = time.perf_counter()
            self.begin = numbers(self.lanes)
            for request in self.requests:
                request.stats.prefill_s = start - begin
                request.begin(start, 0.0, 0.0)
            widest = max(shape.width for shape in self._shapes.values())
            ring = Ring(len(self.requests) * (FACTS + widest), self.options.lateness + 1, self.lanes[0])
            flights: deque[Flight] = deque()
            while self._running():
                if self._want_more(flights):
                    flights.append(self._play(rounds, flights, ring))
                    if len(ring) <= self.options.lateness:
                        continue
                flight = flights.popleft()
                updates = self._hand_out(rounds, ring.read(), flight)
                self._count_time(updates, time.perf_counter(), flight)
                yield updates
                self._turn_over(rounds)
        finally:
            rounds.close()
            if (self.draft is None or rounds.drafting) and not rounds.batch.lacks_graphs:
                self.kept.give(self._kind, rounds)
            else:
                rounds.release()

    def _start(self) -> StaticRounds:
        """Rounds with the prompts laid down: those of a batch before, if they fit."""
        self._capacity = self.kept.capacity(self._kind, self._capacity)
        sizes = len(self.requests), self._capacity
        rounds = self.kept.take(self._kind, self._capacity)
        if rounds is None:
            self.kept.shrink(lambda: has_plenty([self.target], *sizes))
            check_room(self.target, *sizes)
        batch = self.lanes[0].make(self._lay_down)
        if rounds is None:
            rounds = self._build(batch)
        else:
            rounds.load(batch.state, batch.params)
        self._check_draft(rounds)
        return rounds

    def _check_draft(self, rounds: StaticRounds) -> None:
        """A draft that will need a cache, and has none yet, must have room for it."""
        draft = rounds.batch.draft
        if draft is None or draft.cache.layers or not any(shape.drafted for shape in self._shapes.values()):
            return
        unmade = None if rounds.batch.cache.layers else self.target
        models, sizes = [draft.model, *([unmade] if unmade else [])], (len(self.requests), self._capacity)

        def check() -> None:
            self.kept.shrink(lambda: has_plenty(models, *sizes))
            if not has_room(draft.model, *sizes, beside=unmade):
                rounds.drop_draft()

        rounds.try_draft(check)

    def _build(self, batch: Batch) -> StaticRounds:
        cache = WindowCache(self._capacity)
        shared = StaticBatch(batch.state, batch.params, self.target, cache, None, self.lanes, self._rule)
        rounds = StaticRounds(shared)
        if self.draft is not None:
            model = self.draft
            rounds.try_draft(lambda: self._add_draft(model, shared))
        return rounds

    def _add_draft(self, model: CausalModel, batch: StaticBatch) -> None:
        params = batch.params
        if batch.apart:  # room for a copy, which prefilling makes
            params = self.lanes[1].make(lambda: SamplingTensors.make(len(self.requests), device=model.device))
        if (own := model.d2t) is not None:
            batch.d2t = self.lanes[0].make(lambda: own.to(self.target.device))
        batch.draft = StaticDraft(
            model,
            params,
            self._capacity,
            self.target.vocab_size,
            coupled=self._rule == "coupled",
            keeps_logits=self._rule in ("token", "block"),
        )

    def _lay_down(self) -> Batch:
        return self._batch_of(self.requests, self.target.device)

    def _batch_of(self, requests: list[Request], device: torch.device) -> Batch:
        return lay_down(requests, self._spare, device, capacity=self._capacity, ends=self._ends)

    def _prefill(self, rounds: StaticRounds) -> None:
        """A draft that is not sure to be needed reads the prompts when it first drafts."""
        drafting = bool(self._shapes[self._choose(rounds, self._matched(), 0)].drafted)
        # At least one token, which the first round reads again: a cache that is made later would be compiled twice.
        rounds.prefill([max(1, len(request.prompt_ids) - 1) for request in self.requests], drafting=drafting)
        self._behind = not drafting
        self.lanes[0].record().synchronize()

    def _play(self, rounds: StaticRounds, flights: Sequence[Flight], ring: Ring) -> Flight:
        matched, before = self._matched(), numbers(self.lanes)
        choice = self._choose(rounds, matched, len(flights))
        shape = self._shapes[choice]
        # No row that runs is further, whatever the rounds on their way gave. One that a stop string ended may be, of
        # which nothing is read any more.
        on_their_way = sum(flight.shape.most_emitted for flight in flights)
        head = max(self._lengths()) + on_their_way
        if shape.drafted:
            if self._behind:
                read = zip(self._read, self.requests, strict=True)
                start = min(count for count, request in read if request.finish_reason is None)
                rounds.catch_up(start, [min(length + on_their_way, self._capacity) for length in self._lengths()])
            # What is known is a round old or more; then a round's last two tokens may be new to the draft.
            self._read = [max(0, length - 2) for length in self._lengths()]
        self._behind = not shape.drafted
        view = self._view(rounds, head + shape.reach)
        reason, is_first = self.chooser.reason, rounds.firsts(shape) > 0
        flight, round = fly(
            choice, reason, list(self.requests), matched, self.lanes, before, lambda: rounds.play(shape, view)
        )
        if is_first:
            self.chooser.costs.count_making(flight.host_s)
        ring.push(round.report)
        self.ends.append(self.lanes[0].queued)
        return flight

    def _want_more(self, flights: Sequence[Flight]) -> bool:
        """Whether a row may need more rounds than those on their way, each of which gives it a token at least."""
        return any(
            len(request.token_ids) + sum(flight.requests[row] is request for flight in flights)
            < request.params.max_tokens
            for row, request in enumerate(self.requests)
            if request.finish_reason is None
        )

    def _matched(self) -> list[int]:
        """How much of each row's text prompt lookup goes by, as far as it was read; 0 where it has no guess."""
        return [lookup.matched for lookup in self._lookups] or [0] * len(self.requests)

    def _choose(self, rounds: StaticRounds, matched: list[int], in_flight: int) -> Choice:
        if len(self.chooser.choices) == 1:
            return self.chooser.choices[0]
        remaining = [
            max(1, request.params.max_tokens - len(request.token_ids) - in_flight) if not request.finish_reason else 0
            for request in self.requests
        ]
        firsts = [rounds.firsts(self._shapes[choice]) for choice in self.chooser.choices]
        making_s = [self.chooser.costs.making_s(count) for count in firsts] if any(firsts) else None
        return self.chooser.choose(remaining, matched, rounds.drafting, making_s)

    def _lengths(self) -> list[int]:
        """Of each row what was read of it."""
        return [len(request.prompt_ids) + len(request.token_ids) for request in self.requests]

    def _view(self, rounds: StaticRounds, furthest: int) -> int:
        """Cached positions the next round may look at."""
        draft = rounds.batch.draft
        if all(model.wants_one_view for model in (self.target, *([draft.model] if draft else []))):
            return self._capacity
        return min(self._capacity, self._rounded(furthest))

    def _rounded(self, positions: int) -> int:
        return -(-positions // self.options.bucket) * self.options.bucket

    def _hand_out(self, rounds: StaticRounds, report: list[list[int]], flight: Flight) -> list[Update]:
        updates = []
        accepted_of, judged_of = [0] * len(report), [0] * len(report)
        for row, (request, (emitted, accepted, drafted, finished, status, *ids)) in enumerate(
            zip(flight.requests, report, strict=True)
        ):
            if request.finish_reason is not None:
                continue
            count, text = request.push(ids[:emitted], Finished(finished), Status(status))
            judged = accepted + (accepted < drafted and accepted < emitted)
            if not flight.shape.guessed:
                accepted_of[row], judged_of[row] = accepted, judged
            elif flight.matched[row]:
                # What was known to match may have ended since, which costs as much as a refusal.
                accepted_of[row], judged_of[row] = accepted, max(1, judged)
            request.stats.count_round(count, min(accepted, count), judged, flight.shape.drafted)
            if len(self.chooser.choices) > 1:
                request.stats.count_choice(flight.choice, flight.reason)
            updates.append(Update(request, ids[:count], text))
            if self._lookups:
                self._lookups[row].extend(ids[:count])
        self.lanes[0].settle()
        if rounds.drafting:
            rounds.try_draft(self.lanes[1].settle)
        if len(self.chooser.choices) > 1:
            timing = flight.timing(self.lanes)
            self.chooser.observe(flight.choice, timing, accepted_of, judged_of, flight.matched)
        return updates

    def _turn_over(self, rounds: StaticRounds) -> None:
        """Give rows of requests that have ended to others. Nothing waits for the device, nor for rounds on their way:
        what those give such a row is its old request's, which has ended.
        """
        ended = [row for row, request in enumerate(self.requests) if request.finish_reason is not None]
        newcomers = self.waiting.take(len(ended), self._capacity - self._spare) if ended else []
        if not newcomers:
            return
        rows, reading = ended[: len(newcomers)], self.lanes[0].queued
        for row, request in zip(rows, newcomers, strict=True):
            self.requests[row] = request
            self._read[row] = 0 if self._behind else len(request.prompt_ids) - 1
            self._readings[request] = reading, time.perf_counter()
            if self._lookups:
                self._lookups[row] = PromptLookup(request.prompt_ids)
        self.chooser.replace(rows)
        try:
            rounds.replace(rows, self._batch_of(newcomers, torch.device("cpu")), drafting=not self._behind)
        except Exception as error:
            LOGGER.exception("the target failed")
            for request in newcomers:
                request.fail(f"the target failed: {error!r}")

    def _count_time(self, updates: list[Update], now: float, flight: Flight) -> None:
        """What the lanes computed for these rounds: others may be using them too."""
        requests = [update.request for update in updates]
        for request in requests:
            if request in self._readings:  # and it was read since, or there would be no update
                reading, queued_at = self._readings.pop(request)
                request.stats.prefill_s = sum(self.lanes[0].times.seconds(reading, reading + 1) or ())
                request.begin(queued_at + request.stats.prefill_s, *self._busy_s)
        for lane, busy_s in enumerate(flight.busy_s(self.lanes)):
            self._busy_s[lane] += busy_s
        for request in requests:
            request.count_time(now, *self._busy_s)
