"""Static rounds on CPU tensors: a decoder that runs them, and lanes that behave as a GPU's do."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, is_in_torch_dispatch_mode
from torch.utils._pytree import tree_leaves

from pearl_decode import PearlDecoder
from pearl_decode.device.engine import DeviceOptions
from pearl_decode.device.rounds import StaticRounds
from pearl_decode.device.runner import DeviceRunner
from pearl_decode.lanes.cpu import CpuLane, available_cores
from pearl_decode.lanes.queue import InlineLane
from pearl_kernels import checks


class DynamicDecoder(PearlDecoder):
    """A PearlDecoder on one core: more only wait for each other over models this small, where a machine is busy."""

    def __init__(self, *args, **plan) -> None:
        cores = available_cores()[:1]
        super().__init__(*args, lanes=(CpuLane("target", cores), CpuLane("draft", cores)), **plan)


def static_plan(draft) -> dict:
    """Static rounds are of one kind, which has to be said."""
    return {"strategy": "autoregressive" if draft is None else "pearl", "gamma": 4, "rule": "token"}


class DeviceDecoder(PearlDecoder):
    """A PearlDecoder whose requests are decoded by static rounds."""

    def __init__(self, target, draft=None, *args, options=None, device_lanes=None, **plan) -> None:
        super().__init__(target, draft, *args, **(static_plan(draft) | plan))
        options = options or DeviceOptions(lateness=2, bucket=16)
        self.runner = DeviceRunner(self.target, self.draft, options=options, costs=self.costs)
        self.runner.lanes = device_lanes or self.runner.lanes


# Doors that call a backend by themselves, whoever looks on: to ask torch's registry takes longer.
DIRECT = ("window_linear", "window_layer", "window_decoder", "draft_chain")


class Tape(TorchDispatchMode):
    """Writes down the operations that run under it, with the very tensors they ran on, to be run again on those.

    What a replay does is a function of these tensors' values alone, as in a CUDA graph: numbers are as they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Tape:
        for name in DIRECT:
            door = sys.modules[f"pearl_kernels.{name}"]
            self._patch.setattr(door, "choose", self._recorded(door.choose))
        return super().__enter__()

    def __exit__(self, *raised) -> None:
        super().__exit__(*raised)
        self._patch.undo()

    def _recorded(self, choose: Callable) -> Callable:
        """`choose`, whose backends are written down too where no operation is, of which they would be a part."""

        def chosen(*how):
            run = choose(*how)

            def recorded(*args):
                with _disable_current_modes():
                    out = run(*args)
                self.calls.append((run, args, {}, out))
                return out

            return recorded if is_in_torch_dispatch_mode() else run

        return chosen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in known:
                    old.copy_(new)


class TapeLane(InlineLane):
    """An InlineLane whose work can be captured. What is captured first runs at its first replay."""

    can_capture = True

    def __init__(self, device="cpu") -> None:
        super().__init__(device)
        self.captures = 0

    def capture(self, work):
        self.captures += 1
        tape = Tape()

        def replay() -> None:
            if tape.calls:
                tape.replay()
                return
            with tape:
                work()

        return replay


class _Later:
    def __init__(self, schedule) -> None:
        self.happened = False
        self._schedule = schedule

    def synchronize(self) -> None:
        while not self.happened:
            self._schedule.step()


class Schedule:
    """Two lanes that run nothing until the host waits; then whatever their events allow, in an order drawn by lot."""

    def __init__(self, seed: int, devices=("cpu", "cpu")) -> None:
        self._lot = random.Random(seed)
        self.lanes = tuple(LateLane(self, device) for device in devices)

    def step(self) -> None:
        self._lot.choice([lane for lane in self.lanes if lane.ready()]).advance()


class LateLane(TapeLane):
    def __init__(self, schedule: Schedule, device) -> None:
        super().__init__(device)
        self._schedule = schedule
        self._queue: deque[tuple[str, object]] = deque()
        self.most_waiting = 0

    def run(self, work) -> None:
        self.queued += 1
        self._queue.append(("run", work))
        self.most_waiting = max(self.most_waiting, len(self._queue))

    def record(self):
        event = _Later(self._schedule)
        self._queue.append(("record", event))
        return event

    def wait(self, event) -> None:
        self._queue.append(("wait", event))

    def ready(self) -> bool:
        return bool(self._queue) and (self._queue[0][0] != "wait" or self._queue[0][1].happened)

    def advance(self) -> None:
        kind, what = self._queue.popleft()
        if kind == "run":
            self.finish(what)
        elif kind == "record":
            what.happened = True


class HostRead(Exception):
    """The host read or wrote a value for which it would have had to wait for a device."""


class _NoReads(TorchDispatchMode):
    READS = ("item", "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "index")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = any(isinstance(t, Tensor) and t.dtype is torch.bool for t in tree_leaves(args[1:]))
        if name in self.READS and (name != "index" or by_mask):
            raise HostRead(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rounds that are queued in here raise HostRead where they would read a tensor's value, or copy the host's own."""

    def refuse(name):
        def read(*_, **__):
            raise HostRead(name)

        return read

    def guarded(queue):
        def run(*args, **named):
            with monkeypatch.context() as patch, _NoReads():
                # The doors look at the values of CPU tensors alone.
                patch.setattr(checks, "readable", lambda value: False)
                for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"):
                    patch.setattr(Tensor, name, refuse(name))
                for name in ("tensor", "as_tensor", "from_numpy"):  # the host waits for the copy to the device
                    patch.setattr(torch, name, refuse(name))
                return queue(*args, **named)

        return run

    with monkeypatch.context() as outer:
        for name in ("play", "catch_up", "replace"):
            outer.setattr(StaticRounds, name, guarded(getattr(StaticRounds, name)))
        yield
