"""Decodes one batch of requests, round by round."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from dataclasses import dataclass

from pearl_decode.lanes import CpuLane
from pearl_decode.lanes.draft import DraftLane
from pearl_decode.lanes.target import TargetLane
from pearl_decode.models import CausalModel
from pearl_decode.request import Request
from pearl_decode.round import Outcome, Round
from pearl_decode.state import Batch
from pearl_decode.strategies import STRATEGIES
from pearl_kernels import Finished, Purpose, Status

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How to decode: strategy, draft tokens per round, and rule of acceptance.

    Raises ValueError naming the field, what was expected and what came.
    """

    strategy: str
    gamma: int
    rule: str

    RULES = ("greedy", "token", "block", "coupled")

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {sorted(STRATEGIES)}, got {self.strategy!r}")
        if not isinstance(self.gamma, int) or isinstance(self.gamma, bool) or self.gamma < 1:
            raise ValueError(f"gamma must be an integer >= 1, got {self.gamma!r}")
        if self.rule not in self.RULES:
            raise ValueError(f"rule must be one of {list(self.RULES)}, got {self.rule!r}")

    @property
    def spare(self) -> int:
        """How far past its end a row may be drafted: a window and the tokens written past it."""
        return 2 * self.gamma + 1


@dataclass(frozen=True)
class Update:
    """What a request got from one round: verified ids that belong to its text, and the text they complete."""

    request: Request
    token_ids: list[int]
    text: str


class Engine:
    """One batch in flight. Rows of finished requests leave it; the others neither notice nor change their text."""

    def __init__(
        self,
        requests: list[Request],
        target: CausalModel,
        draft: CausalModel | None,
        lanes: tuple[CpuLane, CpuLane],
        plan: Plan,
    ) -> None:
        self.requests = requests
        self.lanes = lanes
        self.strategy = STRATEGIES[plan.strategy]
        params = [request.params for request in requests]
        batch = Batch.start(
            [request.prompt_ids for request in requests],
            params,
            [request.seed for request in requests],
            [request.eos_ids for request in requests],
            plan.spare,
            target.device,
        )
        draft_lane = None
        if draft is not None and self.strategy.drafts:
            sampled = plan.rule != "greedy" and any(p.temperature > 0 for p in params)
            draft_lane = DraftLane(
                draft,
                lanes[1],
                batch,
                plan.gamma,
                target.vocab_size,
                purpose=Purpose.SAMPLE if plan.rule == "coupled" else Purpose.DRAFT,
                keeps_logits=sampled and plan.rule in ("token", "block"),
            )
        self.round = Round(batch, TargetLane(target, lanes[0], batch), draft_lane, plan.rule, plan.gamma)

    def run(self) -> Generator[list[Update], None, None]:
        """Decode until every request has ended; after each round, what each request got.

        A target that fails ends the requests still running with an error; what they had is kept.
        """
        running = list(self.requests)
        try:
            yield from self._rounds(running)
        except Exception as error:
            LOGGER.exception("the target failed")
            for request in running:
                request.fail(f"the target failed: {error!r}")

    def _rounds(self, running: list[Request]) -> Generator[list[Update], None, None]:
        """Decode, taking requests out of `running` as they end."""
        begin = time.perf_counter()
        self.round.prefill()
        start = time.perf_counter()
        for lane in self.lanes:
            lane.reset()
        for request in self.requests:
            request.stats.prefill_s = start - begin
        while running:
            before = list(self.round.batch.committed)
            outcome = self.strategy.step(self.round)
            updates = self._hand_out(running, before, outcome)
            self._count_time(running, time.perf_counter() - start)
            rows = [row for row, request in enumerate(running) if request.finish_reason is None]
            if rows and len(rows) < len(running):
                self.round.keep(rows)
            running[:] = [running[row] for row in rows]
            yield updates

    def _hand_out(self, running: list[Request], before: list[int], outcome: Outcome) -> list[Update]:
        state = self.round.batch.state
        finished, status = state.finished.tolist(), state.status.tolist()
        updates = []
        for row, request in enumerate(running):
            new = state.tokens[row, before[row] : self.round.batch.committed[row]].tolist()
            count, text = request.push(new, Finished(finished[row]), Status(status[row]))
            accepted = min(outcome.num_accepted[row], count)
            request.stats.count_round(count, accepted, outcome.draft_forwards)
            updates.append(Update(request, new[:count], text))
        return updates

    def _count_time(self, running: list[Request], decode_s: float) -> None:
        target_s, draft_s = (lane.busy_s for lane in self.lanes)
        for request in running:
            stats = request.stats
            stats.decode_s = decode_s
            stats.target_busy_s, stats.target_idle_s = target_s, decode_s - target_s
            stats.draft_busy_s, stats.draft_idle_s = draft_s, decode_s - draft_s
