"""A captured graph does at every replay what the calls would do then."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import DecodeState, Purpose, RowStats, SampleOutput, SamplingTensors, VerifyOutput
from tests.gpu.decoding import new_decoder
from tests.gpu.elsewhere import moved
from tests.gpu.memory import memories, poison_scratch
from tests.kernels.cases import VerifyCase, mixed_params, peaked_logits, verify_case

pytestmark = pytest.mark.gpu

RULES = ("greedy", "token", "block", "coupled")
REPLAYS = 30


def captured(step: Callable[[], object], changed: list[Tensor]) -> torch.cuda.CUDAGraph:
    """`step` as a graph. It is run once before, to compile what has to be; `changed` is as it was afterwards."""
    before = [tensor.clone() for tensor in changed]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


@pytest.mark.parametrize("rule", RULES)
def test_a_captured_call_is_kernels_alone(rule: str, gpu: torch.device, tmp_path: Path) -> None:
    """On a stream where nothing ran before: no clearing, copying or allocating is left to the replays."""
    case: VerifyCase = moved(verify_case(4, 5, 32000, rule=rule, stats=False), gpu)
    wanted = case.run("cuda")
    graph = torch.cuda.CUDAGraph(keep_graph=True)  # or there is nothing to dump
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        out = case.run("cuda")
    nodes = tmp_path / "graph.dot"
    graph.debug_dump(str(nodes))
    text = nodes.read_text().upper()
    assert "KERNEL" in text
    assert not any(kind in text for kind in ("MEMSET", "MEMCPY", "MEM_ALLOC", "MEM_FREE"))
    for _ in range(3):
        poison_scratch()
        graph.replay()
        for a, b in zip(out, wanted, strict=True):
            assert torch.equal(a, b)


def test_another_thread_may_call_during_a_capture(gpu: torch.device) -> None:
    cases: list[VerifyCase] = [moved(verify_case(4, 5, 32000, seed=seed), gpu) for seed in range(2)]
    wanted = [case.run("cuda") for case in cases]
    outs = [VerifyOutput(*(torch.full_like(x, -7) for x in each)) for each in wanted]

    def run(i: int) -> None:
        case = cases[i]
        pearl_kernels.verify(
            case.target_logits, case.draft_tokens, case.chain_len, case.params, case.positions,
            draft_logits=case.draft_logits, draft_stats=case.draft_stats, rule=case.rule, backend="cuda", out=outs[i],
        )  # fmt: skip

    def run_elsewhere(stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            run(1)

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    run_elsewhere(stream)  # which loads and allocates what there is to be
    with ThreadPoolExecutor(1) as pool, torch.cuda.graph(graph):
        run(0)
        pool.submit(run_elsewhere, stream).result()
    graph.replay()
    torch.cuda.synchronize()
    for out, each in zip(outs, wanted, strict=True):
        for a, b in zip(out, each, strict=True):
            assert torch.equal(a, b)


def test_what_is_outgrown_is_left_to_the_graphs_that_use_it(gpu: torch.device) -> None:
    small, large = (moved(verify_case(*shape, rule="block"), gpu) for shape in ((4, 3, 1000), (64, 6, 50000)))
    wanted = small.run("cuda"), large.run("cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        outs = small.run("cuda"), large.run("cuda")
    for _ in range(3):
        large.run("cuda")
        poison_scratch()
        graph.replay()
        for got, each in zip(outs, wanted, strict=True):
            for a, b in zip(got, each, strict=True):
                assert torch.equal(a, b)


def test_memory_of_graphs_that_are_gone_serves_later_ones(gpu: torch.device) -> None:
    case: VerifyCase = moved(verify_case(4, 3, 1000), gpu)
    stream, counts = torch.cuda.Stream(), []
    for _ in range(6):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            case.run("cuda")
        graph.replay()
        torch.cuda.synchronize()
        del graph
        time.sleep(0.1)  # CUDA tells of it in its own time
        counts.append(len(memories()))
    assert counts[-1] == counts[1]


def test_every_replay_of_sample_draws_anew(backend: str, gpu: torch.device) -> None:
    """Over flat logits, so that a draw that is used twice shows."""
    rows, vocab = 8, 50000
    logits = torch.zeros(rows, vocab, device=gpu)
    params = moved(SamplingTensors.make(rows, seed=range(rows)), gpu)
    positions = torch.arange(rows, device=gpu) * 1000
    out = SampleOutput(
        torch.full((rows,), -1, device=gpu),
        RowStats(torch.zeros(rows, device=gpu), torch.zeros(rows, device=gpu)),
        torch.zeros(rows, dtype=torch.int32, device=gpu),
    )

    def step() -> None:
        pearl_kernels.sample(logits, params, positions, purpose=Purpose.DRAFT, backend=backend, out=out)
        positions.add_(1)

    graph, start = captured(step, [positions]), positions.clone()
    replayed = []
    for _ in range(REPLAYS):
        graph.replay()
        replayed.append(out.tokens.clone())
    eager = [
        pearl_kernels.sample(logits, params, start + i, purpose=Purpose.DRAFT, backend=backend).tokens
        for i in range(REPLAYS)
    ]
    assert torch.equal(torch.stack(replayed), torch.stack(eager))
    assert len(set(torch.stack(replayed).flatten().tolist())) > 0.99 * rows * REPLAYS
    assert torch.equal(positions, start + REPLAYS)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("vocab", [1000, 128256])
def test_replays_of_verify_are_eager_calls(rule: str, vocab: int, backend: str, gpu: torch.device) -> None:
    """With inputs that change between replays, in place."""
    cases: list[VerifyCase] = [
        moved(verify_case(4, 5, vocab, rule=rule, seed=seed, stats=seed != 1), gpu) for seed in range(2)
    ]
    eager = [[case.with_(positions=case.positions + i).run(backend) for i in range(REPLAYS)] for case in cases]
    for case, wanted in zip(cases, eager, strict=True):
        out = VerifyOutput(*(torch.full_like(x, -7) for x in wanted[0]))

        def step(case: VerifyCase = case, out: VerifyOutput = out) -> None:
            pearl_kernels.verify(
                case.target_logits, case.draft_tokens, case.chain_len, case.params, case.positions,
                draft_logits=case.draft_logits, draft_stats=case.draft_stats, rule=case.rule, backend=backend, out=out,
            )  # fmt: skip
            case.positions.add_(1)

        graph = captured(step, [case.positions])
        for i in range(REPLAYS):
            graph.replay()
            for a, b in zip(out, wanted[i], strict=True):
                assert torch.equal(a, b), f"replay {i}"
            poison = verify_case(2, 2, 50, rule=rule)  # calls between replays share nothing with them
            moved(poison, gpu).run(backend)


@pytest.mark.parametrize("rule", RULES)
def test_replayed_rounds_decode_what_eager_ones_decode(rule: str, backend: str, gpu: torch.device) -> None:
    eager, replayed = (new_decoder(gpu, backend, rule) for _ in range(2))
    changed = [getattr(replayed.state, f.name) for f in fields(DecodeState)]
    graph = captured(replayed.round, changed)
    for i in range(REPLAYS):
        eager.round()
        graph.replay()
        for f in fields(DecodeState):
            assert torch.equal(getattr(replayed.state, f.name), getattr(eager.state, f.name)), f"{f.name}, round {i}"
    assert (eager.state.committed > 10).any()


@pytest.mark.parametrize("rule", RULES)
def test_graphs_of_the_compilers_own_draw_what_calls_draw(rule: str, backend: str, gpu: torch.device) -> None:
    """They are warmed up in a pool that is used again for other things."""
    case: VerifyCase = moved(verify_case(4, 5, 3000, rule=rule), gpu)
    wanted = case.run(backend)
    compiled = torch.compile(lambda logits: case.with_(target_logits=2 * logits).run(backend), mode="reduce-overhead")
    halved = case.target_logits / 2
    for _ in range(5):
        for a, b in zip(compiled(halved), wanted, strict=True):
            assert torch.equal(a, b)


def test_two_graphs_keep_to_themselves(backend: str, gpu: torch.device) -> None:
    """Replayed in turn and on two streams at once, graphs share no scratch memory."""
    rows, vocab = 8, 32000
    logits = [peaked_logits((rows, vocab), torch.Generator().manual_seed(i)).to(gpu) for i in range(2)]
    params, positions = moved((mixed_params(rows), torch.arange(rows)), gpu)
    wanted = [pearl_kernels.sample(each, params, positions, backend=backend) for each in logits]
    outs: list[SampleOutput] = [moved(each, gpu) for each in wanted]

    def step(i: int) -> None:
        pearl_kernels.sample(logits[i], params, positions, backend=backend, out=outs[i])

    graphs = [captured(lambda i=i: step(i), []) for i in range(2)]  # type: ignore[misc]
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(REPLAYS):
        for out in outs:
            out.tokens.fill_(-1)
        torch.cuda.synchronize()
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        for out, each in zip(outs, wanted, strict=True):
            assert torch.equal(out.tokens, each.tokens)
            assert torch.equal(out.stats.lse, each.stats.lse)
