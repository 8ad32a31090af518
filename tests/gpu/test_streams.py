"""Work is queued and nothing waited for; what runs beside it, or ran before it, changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import AdvanceOutput, Purpose, RowStats, SampleOutput, VerifyOutput
from tests.gpu.decoding import new_decoder
from tests.gpu.elsewhere import moved
from tests.gpu.memory import poison_scratch
from tests.kernels.cases import SampleCase, VerifyCase, mixed_params, peaked_logits, verify_case

pytestmark = pytest.mark.gpu

RULES = ("greedy", "token", "block", "coupled")


def cases_on(device: torch.device) -> list[SampleCase | VerifyCase]:
    """Every kernel, on sizes that share scratch memory in different ways."""
    logits = peaked_logits((16, 49152), torch.Generator().manual_seed(0)).to(torch.bfloat16)
    cases = [
        SampleCase(logits, mixed_params(16), torch.arange(16), Purpose.DRAFT, torch.arange(16)),
        *(verify_case(4, 5, 49152, rule=rule, seed=1, stats=rule == "token") for rule in RULES),
        verify_case(64, 6, 1000, rule="block", one_hot=True, seed=3),
        verify_case(3, 2, 32000, rule="token", mapped=True, seed=2),
    ]
    return [moved(case, device) for case in cases]


def flat(value: object) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(value, Tensor):
        return [value]
    assert isinstance(value, (SampleOutput, VerifyOutput, AdvanceOutput, RowStats))
    return [tensor for each in value for tensor in flat(each)]


def assert_equal(got: object, wanted: object) -> None:
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert torch.equal(a, b)


def test_two_streams_at_once_are_one_after_the_other(backend: str, gpu: torch.device) -> None:
    cases = cases_on(gpu)
    wanted = [case.run(backend) for case in cases]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for turn in range(20):
        got = []
        for i in range(len(cases)):
            for stream, k in zip(streams, (i, (i + 1 + turn) % len(cases)), strict=True):
                with torch.cuda.stream(stream):
                    got.append((k, cases[k].run(backend)))
        torch.cuda.synchronize()
        for k, out in got:
            assert_equal(out, wanted[k])


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_read_back_in_a_round(rule: str, backend: str, gpu: torch.device) -> None:
    """torch raises where its own code would wait for the device."""
    decoder = new_decoder(gpu, backend, rule)
    cases = cases_on(gpu)
    decoder.round()
    for case in cases:
        case.run(backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            decoder.round()
        for case in cases:
            case.run(backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_calls_return_while_the_device_is_still_busy(backend: str, gpu: torch.device) -> None:
    """Neither torch nor the kernels' own launches wait for what was queued before, nor for themselves."""
    cases = cases_on(gpu)
    for case in cases:
        case.run(backend)
    torch.cuda.synchronize()
    slept = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    slept.record()
    for case in cases:
        case.run(backend)
    assert not slept.query(), "a call waited for the device"
    torch.cuda.synchronize()


def poison_freed_memory(device: torch.device) -> None:
    """What torch hands out next, without clearing it, holds NaN."""
    blocks = [torch.full((size,), torch.nan, device=device) for size in (128, 1 << 12, 1 << 16, 1 << 20, 1 << 24)]
    del blocks


def test_memory_that_is_used_again_may_hold_anything(backend: str, device: torch.device) -> None:
    cases = cases_on(device)
    wanted = [case.run(backend) for case in cases]
    for k in (3, 0, 6, 2, 5, 1, 4, 3, 6, 0):
        if backend == "cuda":
            poison_scratch()
        poison_freed_memory(device)
        assert_equal(cases[k].run(backend), wanted[k])
    if backend == "cuda":
        poison_scratch()


@pytest.mark.parametrize("rule", RULES)
def test_outputs_are_written_whole(rule: str, backend: str, device: torch.device) -> None:
    case: VerifyCase = moved(verify_case(70, 4, 5000, rule=rule, seed=6), device)
    wanted = case.run(backend)
    if backend == "cuda":
        poison_scratch()
    out = VerifyOutput(*(torch.full_like(x, -77) for x in wanted))
    pearl_kernels.verify(
        case.target_logits, case.draft_tokens, case.chain_len, case.params, case.positions,
        draft_logits=case.draft_logits, draft_stats=case.draft_stats, rule=case.rule, backend=backend, out=out,
    )  # fmt: skip
    assert_equal(out, wanted)
