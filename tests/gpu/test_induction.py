"""`induce_` on a GPU: the reference's answers, no look at the host, and graphs that follow a growing text."""

from __future__ import annotations

import pytest
import torch

import pearl_kernels
from pearl_kernels import induce_
from tests.gpu.test_graphs import captured

pytestmark = pytest.mark.gpu

STRENGTHS = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 16.0])


@pytest.fixture
def triton(gpu: torch.device) -> torch.device:
    state = pearl_kernels.backends()["triton"]
    if not state.available:
        pytest.skip(state.reason)
    return gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("capacity", [1, 37, 5000])
def test_agrees_with_the_reference(capacity: int, reduced: bool, dtype: torch.dtype, triton: torch.device) -> None:
    tokens = torch.randint(0, 9, (64, capacity), device=triton)
    lengths = torch.randint(0, capacity + 1, (64,), device=triton)
    d2t = torch.tensor([1, 2, 4, 7], device=triton) if reduced else None
    logits = torch.randn(64, 4 if reduced else 9, device=triton).to(dtype)
    strengths = STRENGTHS.to(triton)
    wanted = induce_(logits.clone(), tokens, lengths, strengths, d2t=d2t, backend="reference")
    assert torch.equal(induce_(logits, tokens, lengths, strengths, d2t=d2t, backend="triton"), wanted)


def test_lengths_outside_the_text_are_taken_to_its_ends(triton: torch.device) -> None:
    tokens = torch.tensor([[1, 2, 1], [1, 2, 1]], device=triton)
    logits = torch.zeros(2, 9, device=triton)
    induce_(logits, tokens, torch.tensor([-5, 1 << 40], device=triton), STRENGTHS.to(triton), backend="triton")
    assert logits.nonzero().tolist() == [[1, 2]]


def test_replays_follow_the_text_and_the_host_never_waits(triton: torch.device) -> None:
    tokens = torch.randint(0, 4, (8, 300), device=triton)
    lengths = torch.full((8,), 2, device=triton)
    logits, strengths = torch.zeros(8, 4, device=triton), STRENGTHS.to(triton)

    def step() -> None:
        induce_(logits, tokens, lengths, strengths)
        lengths.add_(1)

    graph = captured(step, [logits, lengths])
    judge = torch.zeros_like(logits)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(250):
            graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for length in range(2, 252):
        induce_(judge, tokens, torch.full_like(lengths, length), strengths, backend="reference")
    assert torch.equal(logits, judge)
