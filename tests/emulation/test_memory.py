"""Streams and captured graphs each have memory of their own, made once; to use it asks for nothing."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, pairwise

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import VerifyOutput, _cuda
from tests.emulation import plug
from tests.gpu.memory import memories, poison_scratch
from tests.kernels.cases import VerifyCase, verify_case

pytestmark = plug.needs_emulation

RULES = ("greedy", "token", "block", "coupled")
KERNELS_OF = {"greedy": 1, "token": 2, "block": 3, "coupled": 1}  # without statistics of the draft's rows
KERNEL, MEMSET, EARLY_KERNEL = range(3)
STREAMS = count(1 << 20, 64)  # no two tests share one


@dataclass
class Graph:
    """What was captured, with what it reads; `outs` is what each replay writes, and the last what it returns."""

    functions: ctypes.CDLL
    handle: int
    cases: tuple[VerifyCase, ...]
    outs: list[VerifyOutput]

    def nodes(self, kind: int) -> int:
        return self.functions.emulation_count_nodes(ctypes.c_void_p(self.handle), kind)

    def replay(self) -> VerifyOutput:
        for column in self.outs[-1]:
            column.fill_(-77)
        assert self.functions.emulation_replay(ctypes.c_void_p(self.handle)) is None
        return VerifyOutput(*(column.clone() for column in self.outs[-1]))

    def destroy(self) -> None:
        self.functions.emulation_destroy_graph(ctypes.c_void_p(self.handle))


class Runtime:
    """Calls and captures on a stream of choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        extension = plug.emulated_extension()
        plug.plug_in(monkeypatch, extension)
        self.stream = next(STREAMS)
        monkeypatch.setattr(_cuda, "_stream", lambda device: self.stream)
        assert extension.__file__ is not None
        self.functions = ctypes.CDLL(extension.__file__)
        self.functions.emulation_end_capture.restype = ctypes.c_void_p
        self.functions.emulation_replay.restype = ctypes.c_char_p

    def on(self, stream: int) -> Runtime:
        self.stream = stream
        return self

    def capture(self, *cases: VerifyCase) -> Graph:
        """The cases one after the other."""
        outs = [VerifyOutput(*(torch.full_like(column, -77) for column in case.run("reference"))) for case in cases]
        stream = ctypes.c_void_p(self.stream)
        self.functions.emulation_begin_capture(stream)
        for case, out in zip(cases, outs, strict=True):
            run_into(case, out)
        return Graph(self.functions, self.functions.emulation_end_capture(stream), cases, outs)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    yield Runtime(monkeypatch)
    poison_scratch()


def run_into(case: VerifyCase, out: VerifyOutput) -> None:
    pearl_kernels.verify(
        case.target_logits, case.draft_tokens, case.chain_len, case.params, case.positions,
        draft_logits=case.draft_logits, draft_stats=case.draft_stats, rule=case.rule, backend="cuda", out=out,
    )  # fmt: skip


def small(rule: str) -> VerifyCase:
    return verify_case(5, 3, 300, rule=rule, stats=False)


def large(rule: str) -> VerifyCase:
    return verify_case(20, 4, 4000, rule=rule, stats=False, seed=1)


def assert_equal(got: VerifyOutput, wanted: VerifyOutput) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


def interval(memory: Tensor) -> tuple[int, int]:
    return memory.data_ptr(), memory.data_ptr() + memory.nbytes


def assert_apart() -> None:
    """No two pieces of memory overlap."""
    every = sorted(interval(tensor) for memory in memories() for tensor in memory)
    for (_, end), (begin, _) in pairwise(every):
        assert end <= begin


@pytest.mark.parametrize("rule", RULES)
def test_a_captured_call_is_kernels_alone(rule: str, runtime: Runtime) -> None:
    case = small(rule)
    wanted = case.run("cuda")
    graph = runtime.on(next(STREAMS)).capture(case)  # where nothing ran before
    assert graph.nodes(KERNEL) + graph.nodes(EARLY_KERNEL) == KERNELS_OF[rule]
    assert graph.nodes(MEMSET) == 0
    for _ in range(5):
        assert_equal(graph.replay(), wanted)
        poison_scratch()


@pytest.mark.parametrize("capability", [8, 9, 12])
def test_from_hopper_on_all_but_the_first_kernel_begin_early(
    capability: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda, "_properties", lambda device: (plug.MULTIPROCESSORS, capability))
    for rule in RULES:
        kernels = KERNELS_OF[rule]
        first = 1 if capability >= 9 else kernels
        graph = runtime.capture(small(rule))
        assert (graph.nodes(KERNEL), graph.nodes(EARLY_KERNEL)) == (first, kernels - first)


def test_calls_on_other_streams_go_on_during_a_capture(runtime: Runtime) -> None:
    stream = ctypes.c_void_p(runtime.stream)
    runtime.functions.emulation_begin_capture(stream)
    runtime.on(next(STREAMS))
    try:
        assert_equal(small("token").run("cuda"), small("token").run("reference"))
    finally:
        graph = runtime.functions.emulation_end_capture(stream)
        runtime.functions.emulation_destroy_graph(ctypes.c_void_p(graph))


def test_streams_and_graphs_share_no_memory(runtime: Runtime) -> None:
    before = len(memories())
    stream, other = next(STREAMS), next(STREAMS)
    runtime.on(stream).capture(small("token"))
    runtime.capture(small("token"))
    for each in (stream, other, stream):
        runtime.on(each)
        small("token").run("cuda")
    assert len(memories()) == before + 4
    assert_apart()


def test_graphs_and_calls_on_several_streams_in_any_order_do_not_meet(runtime: Runtime) -> None:
    streams = [next(STREAMS) for _ in range(2)]
    cases = [make(rule) for make in (small, large) for rule in ("token", "block")]
    wanted = [case.run("reference") for case in cases]
    works: list[tuple[Callable[[], VerifyOutput], int]] = []
    for i, case in enumerate(cases):
        for stream in streams:
            works.append((runtime.on(stream).capture(case).replay, i))
            works.append((lambda stream=stream, case=case: runtime.on(stream) and case.run("cuda"), i))  # type: ignore[misc]
    dice = random.Random(0)
    for work, i in dice.choices(works, k=60):
        assert_equal(work(), wanted[i])
        poison_scratch()


def test_what_is_outgrown_is_left_to_those_who_use_it(runtime: Runtime) -> None:
    """A stream that goes on to larger sizes, and a graph that does so halfway."""
    graph = runtime.capture(small("block"), large("block"), small("token"))
    lone = runtime.capture(small("token"))
    for case in (small("block"), large("block"), verify_case(64, 4, 9000), small("block")):
        assert_equal(case.run("cuda"), case.run("reference"))
        for each in (graph, lone):
            assert_equal(each.replay(), small("token").run("reference"))
        poison_scratch()
    assert_apart()


def test_memory_of_graphs_that_are_gone_serves_later_ones(runtime: Runtime) -> None:
    runtime.capture(small("token")).destroy()
    before = len(memories())
    for _ in range(10):
        graph = runtime.capture(small("token"))
        assert_equal(graph.replay(), small("token").run("reference"))
        graph.destroy()
    assert len(memories()) == before
    assert_apart()


def test_a_second_call_makes_no_memory(runtime: Runtime) -> None:
    small("token").run("cuda")
    before = [interval(tensor) for memory in memories() for tensor in memory]
    for rule in RULES:
        small(rule).run("cuda")
    assert [interval(tensor) for memory in memories() for tensor in memory] == before


def check_turns() -> None:
    """Threads that share a stream, with kernels that would mix."""
    cases = [small(rule) for rule in ("token", "block")]
    wanted = [case.run("reference") for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for i, got in enumerate(pool.map(lambda i: cases[i % 2].run("cuda"), range(60))):
            assert_equal(got, wanted[i % 2])


def test_threads_that_share_a_stream_take_turns(runtime: Runtime) -> None:
    check_turns()
