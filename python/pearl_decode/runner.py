"""Where a decoder's batches run: what makes the engine of each."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Protocol

import torch

from pearl_decode.costs import Costs
from pearl_decode.engine import Engine, Plan, Update
from pearl_decode.lanes import CpuLane
from pearl_decode.lanes.cpu import lane_pair
from pearl_decode.models import CausalModel
from pearl_decode.past import Past
from pearl_decode.request import Request
from pearl_decode.waiting import Waiting


class Decoding(Protocol):
    """One batch in flight."""

    def run(self) -> Generator[list[Update], None, None]:
        """Decode until every request has ended; what each request got, round by round.

        Raises NoRoomError, before anything runs, where there is no memory for so many.
        """


class Runner(Protocol):
    """Makes the engine of each batch of one pair of models."""

    def engine(
        self,
        requests: list[Request],
        plan: Plan,
        past: Past | None = None,
        waiting: Waiting | None = None,
    ) -> Decoding:
        """Of a batch; nothing runs yet. May raise NoRoomError, where `run` would.

        past:    of a single request: what was read before, which the rounds may go on from, and where they may leave
                 what they read
        waiting: requests that may take the places of those that end, and are then taken out of it
        """

    def close(self) -> None:
        """End what it started."""


class CpuRunner:
    """Rounds whose outcome the host reads before it queues the next one, on lanes of CPU cores.

    lanes: target and draft lane to use whatever the strategy; None shares the cores out as it needs
    """

    def __init__(
        self,
        target: CausalModel,
        draft: CausalModel | None,
        costs: Costs,
        lanes: tuple[CpuLane, CpuLane] | None = None,
    ) -> None:
        self.target = target
        self.draft = draft
        self.costs = costs
        self._given = lanes
        self._lanes: dict[bool, tuple[CpuLane, CpuLane]] = {}
        self._process = os.getpid()
        self._threads = torch.get_num_threads()  # now, as lanes at work lower what torch says to new threads

    def engine(
        self,
        requests: list[Request],
        plan: Plan,
        past: Past | None = None,
        waiting: Waiting | None = None,
    ) -> Engine:
        return Engine(requests, self.target, self.draft, self._pair, plan, self.costs, past, waiting)

    def close(self) -> None:
        """End the lane threads, the given ones too."""
        for pair in [*self._lanes.values(), *([self._given] if self._given else [])]:
            for lane in pair:
                lane.close()
        self._lanes.clear()

    def _pair(self, overlaps: bool) -> tuple[CpuLane, CpuLane]:
        if self._given is not None:
            return self._given
        if self._process != os.getpid():  # a fork, in which the lanes have no threads
            self._process, self._lanes = os.getpid(), {}
        if overlaps not in self._lanes:
            by_kernels = self.target.runs_by_kernels
            self._lanes[overlaps] = lane_pair(overlaps, by_kernels=by_kernels, threads=self._threads)
        return self._lanes[overlaps]


def check_devices(target: CausalModel, draft: CausalModel | None) -> None:
    """Raise ValueError for a pair on devices of different kinds."""
    if draft is not None and draft.device.type != target.device.type:
        raise ValueError(f"draft must be on the target's kind of device, {target.device.type}, got {draft.device}")
