"""Decodes one batch of requests, round by round."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

from pearl_decode.auto import GAMMAS, Choice, Chooser, Timing
from pearl_decode.costs import Costs
from pearl_decode.lanes import CpuLane
from pearl_decode.lanes.draft import DraftLane
from pearl_decode.lanes.target import TargetLane
from pearl_decode.lookup import PromptLookup
from pearl_decode.memory import check_room, has_plenty, has_room
from pearl_decode.models import CausalModel
from pearl_decode.past import Past
from pearl_decode.request import Request, lay_down
from pearl_decode.round import Outcome, Round
from pearl_decode.strategies import STRATEGIES
from pearl_decode.waiting import Waiting
from pearl_kernels import Finished, Purpose, Status, release_threads

LOGGER = logging.getLogger(__name__)
MOST_SHARED = 4  # times as long as the longest text of a batch, one that its rows are made to hold too


@dataclass(frozen=True)
class Plan:
    """How to decode: strategy, draft tokens per round, and rule of acceptance; "auto" leaves one of the first two open.

    Raises ValueError naming the field, what was expected and what came.
    """

    strategy: str
    gamma: int | str
    rule: str

    RULES = ("greedy", "token", "block", "coupled")

    def __post_init__(self) -> None:
        if self.strategy not in ("auto", *STRATEGIES):
            raise ValueError(f"strategy must be one of {['auto', *sorted(STRATEGIES)]}, got {self.strategy!r}")
        number = isinstance(self.gamma, int) and not isinstance(self.gamma, bool) and self.gamma >= 1
        if not number and self.gamma != "auto":
            raise ValueError(f"gamma must be an integer >= 1 or 'auto', got {self.gamma!r}")
        if self.rule not in self.RULES:
            raise ValueError(f"rule must be one of {list(self.RULES)}, got {self.rule!r}")

    @property
    def choices(self) -> list[Choice]:
        """What a round may be, the plainest first."""
        strategies = list(STRATEGIES) if self.strategy == "auto" else [self.strategy]
        gammas = GAMMAS if self.gamma == "auto" else (int(self.gamma),)
        found = []
        for name in strategies:
            if name == "autoregressive":
                found.append(Choice(name, 1))
                continue
            # Of one token there is nothing to write ahead. At most 16 rows multiply at once: PEARL's window has as many
            # as it drafts, that of others one more.
            usable = gammas if len(gammas) == 1 else gammas[1:] if name == "pearl" else gammas[:-1]
            found += [Choice(name, gamma) for gamma in usable]
        return found

    @property
    def drafts(self) -> bool:
        """Whether every choice needs a draft model."""
        return all(STRATEGIES[choice.strategy].drafts for choice in self.choices)

    @property
    def most_drafted(self) -> int:
        return max(choice.gamma for choice in self.choices)

    @property
    def spare(self) -> int:
        """How far past its end a row may be drafted: a window and the tokens written past it."""
        return 2 * self.most_drafted + 1


@dataclass(frozen=True)
class Update:
    """What a request got from one round: verified ids that belong to its text, and the text they complete."""

    request: Request
    token_ids: list[int]
    text: str


class Engine:
    """One batch in flight. Where a request ends one that waits takes its row, or the row leaves; the others neither
    notice nor change their text.
    """

    def __init__(
        self,
        requests: list[Request],
        target: CausalModel,
        draft: CausalModel | None,
        lanes: Callable[[bool], tuple[CpuLane, CpuLane]],
        plan: Plan,
        costs: Costs,
        past: Past | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        """
        lanes:   the pair for rounds whose lanes work at once (True) or in turn
        costs:   what is known of the pair
        past:    of a single request, what to go on from, and where to leave what was read
        waiting: requests that may take the rows of those that end; they are taken out of it as they do
        Raises NoRoomError where the target's cache does not fit.
        """
        self.requests = requests
        self.past = past
        self.waiting = Waiting() if waiting is None else waiting
        self._spare = plan.spare
        choices = [choice for choice in plan.choices if draft is not None or not STRATEGIES[choice.strategy].drafts]
        self.chooser = Chooser(choices, costs, len(requests))
        self.pairs = {overlaps: lanes(overlaps) for overlaps in {STRATEGIES[c.strategy].overlaps for c in choices}}
        self._busy_s = 0.0, 0.0  # target and draft, in the rounds so far
        capacity = self._shared_capacity([target] if draft is None else [target, draft])
        self._check_room(target, capacity)
        ends = max((len(request.eos_ids) for request in self.waiting), default=0)
        batch = lay_down(requests, plan.spare, target.device, capacity=capacity, ends=ends)
        target_lane, lane = next(iter(self.pairs.values()))
        draft_lane = None
        if draft is not None and any(STRATEGIES[choice.strategy].drafts for choice in choices):
            params = [request.params for request in (*requests, *self.waiting)]
            sampled = plan.rule != "greedy" and any(p.temperature > 0 for p in params)
            draft_lane = DraftLane(
                draft,
                lane,
                batch,
                plan.most_drafted,
                target.vocab_size,
                purpose=Purpose.SAMPLE if plan.rule == "coupled" else Purpose.DRAFT,
                keeps_logits=sampled and plan.rule in ("token", "block"),
            )
        lookups = None
        if any(choice.strategy == "lookup" for choice in choices):
            lookups = [PromptLookup(request.prompt_ids) for request in requests]
        self.round = Round(
            batch, TargetLane(target, target_lane, batch), draft_lane, plan.rule, choices[0].gamma, lookups
        )

    def run(self) -> Generator[list[Update], None, None]:
        """Decode until every request has ended; after each round, what each request got.

        A target that fails ends the requests still running with an error; what they had is kept.
        """
        running = list(self.requests)
        release_threads()  # the caller's: those of the lanes do the work now
        try:
            self._check_draft()
            yield from self._rounds(running)
        except Exception as error:
            LOGGER.exception("the target failed")
            _fail(running, f"the target failed: {error!r}")
        finally:
            for lane in {lane for pair in self.pairs.values() for lane in pair}:
                lane.rest()
            if self.past is None:
                self.round.release()

    def _shared_capacity(self, models: list[CausalModel]) -> int:
        """What rows have to hold, so that most of those that wait fit too, if memory allows."""
        longest = max(request.longest for request in self.requests)
        others = [request.longest for request in self.waiting if longest < request.longest <= MOST_SHARED * longest]
        needed, more = longest + self._spare, max(others, default=longest) + self._spare
        return more if others and has_plenty(models, len(self.requests), more) else needed

    def _roomy(self, past: Past) -> int:
        """What caches have to hold that go on from past ones. Where those are too small it is twice theirs, if memory
        allows: else every text would copy all that was read before it.
        """
        needed, models = self.round.batch.capacity, [self.round.target.model]
        if self.round.draft is not None:
            models.append(self.round.draft.model)
        more = max(needed, 2 * past.capacity)
        return more if past.capacity < needed and has_plenty(models, 1, more) else needed

    def _check_room(self, target: CausalModel, capacity: int) -> None:
        """Before anything is made, as caches grow into memory that they only seem to have."""
        past, rows = self.past, len(self.requests)
        if past is not None:
            if past.capacity >= capacity:
                return
            if not has_plenty([target], rows, capacity):
                past.release()
        check_room(target, rows, capacity)

    def _check_draft(self) -> None:
        """The same of a draft, which is left out where its cache does not fit."""
        target, draft, past = self.round.target.model, self.round.draft, self.past or Past()
        rows, capacity = len(self.requests), self.round.batch.capacity
        if draft is None or past.draft_capacity >= capacity:
            return
        if not has_room(draft.model, rows, capacity, beside=None if past.capacity >= capacity else target):
            self.round.leave_draft()

    def _rounds(self, running: list[Request]) -> Generator[list[Update], None, None]:
        """Decode, taking requests out of `running` as they end."""
        begin = time.perf_counter()
        if self.past is not None:
            self.round.go_on(self.past, self._roomy(self.past))
            self.requests[0].stats.reused_tokens = self.round.target.cached
        # A draft that is not sure to be needed reads the prompts when it first drafts.
        self.round.prefill(STRATEGIES[self._choose(running, self.round.matched()).strategy].drafts)
        start = time.perf_counter()
        self._begin(self.requests, begin, start)
        try:
            while running:
                updates = self._step(running)
                if any(request.finish_reason is not None for request in running):
                    self.round.do_chores()  # they are about rows that leave
                yield updates
                self._turn_over(running)
        finally:
            self.round.do_chores()
            if self.past is not None:
                self._settle()
                self.round.leave(self.past)

    def _begin(self, requests: list[Request], begin: float, start: float) -> None:
        """Their prompts were read from `begin` to `start`."""
        for request in requests:
            request.stats.prefill_s = start - begin
            request.begin(start, *self._busy_s)

    def _turn_over(self, running: list[Request]) -> None:
        """Give the rows of requests that have ended to others, or let them go."""
        while ended := [row for row, request in enumerate(running) if request.finish_reason is not None]:
            newcomers = self.waiting.take(len(ended), self.round.batch.capacity - self._spare)
            if not newcomers:
                rows = _closed_up([request.finish_reason is None for request in running])
                if rows:
                    self.round.keep(rows)
                    self.chooser.keep(rows)
                running[:] = [running[row] for row in rows]
                return
            self._replace(running, ended[: len(newcomers)], newcomers)

    def _replace(self, running: list[Request], rows: list[int], newcomers: list[Request]) -> None:
        """A target that fails at their prompts ends these requests with an error, and no others."""
        begin = time.perf_counter()
        for row, request in zip(rows, newcomers, strict=True):
            running[row] = request
        self.chooser.replace(rows)
        drafting = STRATEGIES[self.chooser.present.strategy].drafts
        batch, ends = self.round.batch, self.round.batch.state.eos_ids
        others = lay_down(newcomers, self._spare, ends.device, capacity=batch.capacity, ends=ends.shape[1])
        try:
            self.round.replace(rows, others, drafting)
        except Exception as error:
            LOGGER.exception("the target failed")
            _fail(newcomers, f"the target failed: {error!r}")
        self._begin(newcomers, begin, time.perf_counter())

    def _settle(self) -> None:
        """Wait for what lanes still do, as they may where the caller was interrupted."""
        for lane in {lane for pair in self.pairs.values() for lane in pair}:
            lane.settle()

    def _step(self, running: list[Request]) -> list[Update]:
        """One round. What there is to learn from it is learnt during the next one, beside the target's forward."""
        round_start = time.perf_counter()
        matched = self.round.matched()
        choice = self._choose(running, matched)
        lanes = self.pairs[STRATEGIES[choice.strategy].overlaps]
        firsts = [lane.times.count for lane in lanes]
        self.round.target.lane = lanes[0]
        if self.round.draft is not None:
            self.round.draft.lane = lanes[1]
        pending = max(self.round.batch.window)
        outcome = STRATEGIES[choice.strategy].step(self.round)
        updates = self._hand_out(running, outcome)
        end = time.perf_counter()
        windows_s, steps_s = (
            lane.times.paces(first, lane.times.count) or [] for lane, first in zip(lanes, firsts, strict=True)
        )
        target_s = sum(windows_s)
        self._busy_s = self._busy_s[0] + target_s, self._busy_s[1] + sum(steps_s)
        for request in running:
            request.count_time(end, *self._busy_s)
        if len(self.chooser.choices) > 1:
            done, width = self._done(choice, outcome, pending)
            timing = Timing(width, end - round_start, target_s, steps_s)
            self.round.chores = partial(self._learn, list(running), choice, done, timing, outcome, matched)
        return updates

    def _choose(self, running: list[Request], matched: list[int]) -> Choice:
        if len(self.chooser.choices) == 1:
            return self.chooser.choices[0]
        remaining = [request.params.max_tokens - len(request.token_ids) for request in running]
        choice = self.chooser.choose(remaining, matched, self.round.drafting)
        self.round.gamma = choice.gamma
        return choice

    def _done(self, choice: Choice, outcome: Outcome, pending: int) -> tuple[Choice, int]:
        """What a round came to, and the width of the target's window."""
        if pending and choice.strategy != "pearl":
            return Choice("autoregressive", 1), 1 + pending  # first the window that was left had to be verified
        if choice.strategy in ("sequential", "lookup") and any(outcome.num_judged):
            return choice, 1 + choice.gamma
        return choice, 1 + pending

    def _learn(
        self,
        running: list[Request],
        choice: Choice,
        done: Choice,
        timing: Timing,
        outcome: Outcome,
        matched: list[int],
    ) -> None:
        for request in running:
            request.stats.count_choice(choice, self.chooser.reason)
        self.chooser.observe(done, timing, outcome.num_accepted, outcome.num_judged, matched)
        self.chooser.prepare()

    def _hand_out(self, running: list[Request], outcome: Outcome) -> list[Update]:
        state = self.round.batch.state
        finished, status = state.finished.tolist(), state.status.tolist()
        updates = []
        for row, request in enumerate(running):
            new = outcome.emitted[row]
            count, text = request.push(new, Finished(finished[row]), Status(status[row]))
            accepted = min(outcome.num_accepted[row], count)
            request.stats.count_round(count, accepted, outcome.num_judged[row], outcome.draft_forwards)
            updates.append(Update(request, new[:count], text))
        return updates


def _fail(requests: list[Request], message: str) -> None:
    """Those that have not ended."""
    for request in requests:
        if request.finish_reason is None:
            request.fail(message)


def _closed_up(going: list[bool]) -> list[int]:
    """The rows that go on, those from the end in the places of those that do not: so few have to move."""
    rows = [row for row, goes_on in enumerate(going) if goes_on]
    return [row if going[row] else rows.pop() for row in range(len(rows))]
