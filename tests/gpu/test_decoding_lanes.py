"""Static rounds on a GPU: streams, graphs and the ring, decoding what the same rounds decode call by call."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.device.engine import DeviceEngine, DeviceOptions
from pearl_decode.device.rounds import StaticRounds
from pearl_decode.device.runner import DeviceRunner
from pearl_decode.lanes.cuda import HIGH, CudaLane
from pearl_decode.memory import free_bytes
from pearl_decode.ring import Ring
from tests.runtime.device import static_plan
from tests.runtime.tiny import VOCAB, build

pytestmark = pytest.mark.gpu

STRATEGIES = ("autoregressive", "lookup", "sequential", "pearl")
PROMPTS = [[(7 * i + 3 * row) % (VOCAB - 1) + 1 for i in range(length)] for row, length in enumerate((6, 1, 19, 3, 11))]
PARAMS = [
    SamplingParams(temperature=t, max_tokens=n, seed=seed)
    for seed, (t, n) in enumerate([(0.9, 24), (1.2, 9), (0.7, 1), (0.0, 60), (0.0, 17)])
]


class DeviceDecoder(PearlDecoder):
    """A PearlDecoder with other options than the default ones; with capture=False, call by call."""

    def __init__(self, target, draft=None, *, capture=True, compile=False, options=None, **plan) -> None:
        super().__init__(target, draft, compile=compile, **(static_plan(draft) | plan))
        assert isinstance(self.runner, DeviceRunner)
        self.runner.options = options or self.runner.options
        for lane in self.runner.lanes:
            lane.can_capture = capture


def graphs(decoder):
    """What was captured, of all shapes: not what is queued call by call, as it could not be."""
    parts = [part for round in decoder.runner.kept.rounds[-1].rounds.values() for part in round._graphs.items()]
    return [key for key, work in parts if isinstance(getattr(work, "__self__", None), torch.cuda.CUDAGraph)]


def pair(gpu, draft_device=None):
    """A target, and a draft that is often right."""
    target, draft = build("llama"), build("llama")
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(0.01 * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0)
    return target.to(gpu), draft.to(draft_device or gpu)


def texts(decoder):
    results = decoder.generate(PROMPTS, PARAMS)
    assert [result.error for result in results] == [None] * len(results)
    return [result.token_ids for result in results]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_graphs_on_two_streams_decode_what_calls_do(strategy, rule, gpu):
    plan = {"strategy": strategy, "rule": rule, "gamma": 3}
    models = pair(gpu)
    with DeviceDecoder(*models, capture=False, **plan) as decoder:
        wanted = texts(decoder)
    for lateness in (0, 1, 2):
        with DeviceDecoder(*models, options=DeviceOptions(lateness=lateness), **plan) as decoder:
            assert [texts(decoder), texts(decoder)] == [wanted] * 2
            assert len(graphs(decoder)) == {"autoregressive": 1, "lookup": 1, "sequential": 2, "pearl": 3}[strategy]


def test_graphs_outlive_those_that_others_had_before_them(gpu):
    """More sizes of batches take turns than are kept: the first graphs are destroyed beside the last."""
    models, sizes = pair(gpu), (1, 2, 3, 4, 5, 4, 1, 3)

    def of_all_sizes(decoder):
        return [[result.token_ids for result in decoder.generate(PROMPTS[:n], PARAMS[:n])] for n in sizes]

    with DeviceDecoder(*models, gamma=3, capture=False) as decoder:
        wanted = of_all_sizes(decoder)
    with DeviceDecoder(*models, gamma=3) as decoder:
        assert of_all_sizes(decoder) == wanted


def test_masked_attention_is_captured_anew_as_texts_grow(gpu):
    models = pair(gpu)
    for model in models:
        model.set_attn_implementation("eager")
    with DeviceDecoder(*models, gamma=3, capture=False) as decoder:
        wanted = texts(decoder)
    with DeviceDecoder(*models, gamma=3, options=DeviceOptions(bucket=16)) as decoder:
        assert texts(decoder) == wanted
        assert len({view for _, view in graphs(decoder)}) > 2


def guard(monkeypatch):
    """torch raises where its own code would wait for the device in a round, but for `Ring.read`, which is to wait.
    Returns the calls to come.
    """
    played = []

    def guarded(queue):
        def run(*args, **named):
            played.append(args)
            torch.cuda.set_sync_debug_mode("error")
            try:
                return queue(*args, **named)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return run

    steps = [(StaticRounds, name) for name in ("play", "catch_up", "replace")]
    for owner, name in (*steps, (Ring, "push"), (DeviceEngine, "_hand_out")):
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
    return played


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("capture", [True, False])
def test_host_waits_for_nothing_in_a_round(strategy, capture, gpu, monkeypatch):
    with DeviceDecoder(*pair(gpu), strategy=strategy, gamma=3, capture=capture) as decoder:
        wanted = texts(decoder)  # what is compiled or captured once waits
        played = guard(monkeypatch)
        assert texts(decoder) == wanted
    assert len(played) > 10


def test_compiled_models_decode_the_same(gpu):
    models = pair(gpu)
    with DeviceDecoder(*models, rule="coupled", gamma=3) as decoder:
        wanted = texts(decoder)
    with DeviceDecoder(*models, rule="coupled", gamma=3, compile=True) as decoder:
        got = texts(decoder)
        assert decoder.target.is_compiled
        assert decoder.draft.is_compiled
        texts(decoder)
        assert len(graphs(decoder)) == 3
    # Fused kernels round otherwise; a draw within rounding of a boundary may differ.
    assert sum(a != b for a, b in zip(got, wanted, strict=True)) <= 1


@pytest.mark.parametrize("forward", [0, 1, 3, 4])
def test_draft_out_of_memory_costs_a_warning_not_a_token(forward, gpu):
    """In prefilling, in a round that is run, and in one that is being captured."""
    target, draft = pair(gpu)
    with DeviceDecoder(target, rule="coupled") as decoder:
        wanted = texts(decoder)
    calls = iter(range(1000))

    def fill(module, args, kwargs):
        if next(calls) >= forward:
            torch.empty(1 << 50, dtype=torch.uint8, device=gpu)

    with DeviceDecoder(target, draft, rule="coupled", gamma=3) as decoder:
        hook = draft.register_forward_pre_hook(fill, with_kwargs=True)
        with pytest.warns(RuntimeWarning, match="the draft failed, the target goes on alone"):
            assert texts(decoder) == wanted
        hook.remove()
        results = decoder.generate(PROMPTS, PARAMS)
    assert [result.token_ids for result in results] == wanted
    assert results[3].stats.accepted_tokens > 0, "the next batch has its draft again"


def test_lanes_of_one_gpu_work_at_once(gpu):
    target, draft = CudaLane(gpu), CudaLane(gpu, HIGH)
    assert draft.stream.priority < target.stream.priority
    cycles = 100_000_000
    for lane in (target, draft):
        lane.run(lambda: torch.cuda._sleep(cycles))
    torch.cuda.synchronize()
    for lane in (target, draft):
        lane.settle()
    [(a, b)], [(c, d)] = (lane.times.between(0, 1) for lane in (target, draft))
    assert min(b, d) - max(a, c) > 0.7 * min(b - a, d - c)


def test_lane_waits_for_the_others_event_and_the_host_for_neither(gpu):
    first, second = CudaLane(gpu), CudaLane(gpu)
    source = first.make(lambda: torch.zeros(1, 3, dtype=torch.int64, device=gpu))
    ring = Ring(3, 2, second)
    for slot in ring._free:
        assert slot.is_pinned()

    def slow() -> None:
        torch.cuda._sleep(1_000_000_000)  # cycles: about half a second
        source.fill_(7)

    torch.cuda._sleep(1)
    first.make(lambda: source.fill_(0))
    torch.cuda.synchronize()  # kernels are loaded when they first run, which may wait
    start = time.perf_counter()
    first.run(slow)
    second.wait(first.record())
    ring.push(source)
    assert time.perf_counter() - start < 0.1
    assert ring.read() == [[7, 7, 7]]


def test_what_cannot_be_captured_leaves_others_as_they_were(gpu):
    lane = CudaLane(gpu)
    number = lane.make(lambda: torch.ones(1, device=gpu))
    for breaking in (number.item, number.nonzero, lambda: 1 / 0):
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            lane.capture(breaking)
        torch.cuda.empty_cache()
        assert torch.rand(1, device=gpu) >= 0
        replay = lane.capture(lambda: number.add_(1))
        before = number.item()
        lane.run(replay)
        torch.cuda.synchronize()
        assert number.item() == before + 1


def test_memory_of_a_graph_is_its_own_until_it_is_gone(gpu, monkeypatch):
    lane, size_bytes, little = CudaLane(gpu), 1 << 30, 1 << 28
    number = lane.make(lambda: torch.ones(1, device=gpu))

    def work() -> None:
        number.add_(torch.zeros(size_bytes // 4, device=gpu)[-1])

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))  # tests beside this one take and give
    lane.run(work)
    torch.cuda.synchronize()
    lane.release()
    free, held = free_bytes(gpu), torch.cuda.memory_reserved(gpu)
    replay = lane.capture(work)
    assert torch.cuda.memory_reserved(gpu) - held >= size_bytes
    assert free_bytes(gpu) - free < little
    del replay
    lane.release()
    assert torch.cuda.memory_reserved(gpu) - held < little


def test_memory_is_given_back_beside_a_capture(gpu):
    lane, other = CudaLane(gpu), CudaLane(gpu)
    number = lane.make(lambda: torch.ones(1, device=gpu))
    given_back = []
    with ThreadPoolExecutor(1) as pool:

        def work() -> None:
            given_back.append(pool.submit(other.release))
            time.sleep(0.1)
            number.add_(1)

        lane.run(lambda: number.add_(0))
        lane.run(lane.capture(work))
        given_back[0].result()
    torch.cuda.synchronize()
    assert number.item() == 2


def test_cancelled_streams_leave_nothing_to_the_next(gpu):
    with DeviceDecoder(*pair(gpu), gamma=3, rule="coupled") as decoder:
        wanted = texts(decoder)
        for _ in range(5):
            _, rounds = decoder.start(PROMPTS, PARAMS)
            next(rounds)
            rounds = None
        assert texts(decoder) == wanted


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_two_gpus_decode_what_one_does(rule, gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    plan = {"rule": rule, "gamma": 3}
    with DeviceDecoder(*pair(gpu), **plan) as decoder:
        wanted = texts(decoder)
    with DeviceDecoder(*pair(gpu, torch.device("cuda", 1)), **plan) as decoder:
        assert texts(decoder) == wanted
        assert decoder.runner.lanes[1].device.index == 1
