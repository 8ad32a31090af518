"""`window_attention` on a GPU: the reference's answers, no look at the host, and graphs that follow changed lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels.window_attention import flash_takes
from tests.gpu.test_graphs import captured
from tests.kernels.test_window_attention import TOLERANCES, Case, case_of

pytestmark = pytest.mark.gpu

# width, heads, kv_heads, dim
SHAPES = [(1, 8, 1, 64), (5, 32, 8, 128), (17, 16, 2, 80), (9, 8, 4, 256), (5, 8, 2, 512), (3, 6, 2, 96)]


@pytest.fixture(params=["triton", "flash"])
def backend(request: pytest.FixtureRequest, gpu: torch.device) -> str:
    state = pearl_kernels.backends()[request.param]
    if not state.available:
        pytest.skip(state.reason)
    name: str = request.param
    return name


def on_gpu(case: Case, gpu: torch.device) -> Case:
    tensors = (case.q, case.k_cache, case.v_cache, case.k_new, case.v_new, case.seq_lens)
    return Case(*(x.to(gpu) for x in tensors), case.scale, case.window, case.softcap)


@pytest.mark.parametrize(("dtype", "atol", "rtol"), TOLERANCES)
@pytest.mark.parametrize(("width", "heads", "kv_heads", "dim"), SHAPES)
@pytest.mark.parametrize("numbers", [{}, {"window": 300, "softcap": 3.0}])
def test_every_shape_agrees_with_the_float64_reference(
    numbers: dict[str, Any], width: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, atol: float,
    rtol: float, backend: str, gpu: torch.device,
) -> None:  # fmt: skip
    sizes = {"capacity": 2000, "dtype": dtype, "scale": dim**-0.5}
    case = case_of([1900, 0, 255, 700], width, dim, heads, kv_heads, **sizes, **numbers)  # type: ignore[arg-type]
    if backend == "flash" and not flash_takes(case.q):
        pytest.skip("flash-attn takes bfloat16 and float16, and heads of at most 256")
    wanted, moved = case.judged(), on_gpu(case, gpu)
    torch.testing.assert_close(moved.run(backend).cpu().double(), wanted, atol=atol, rtol=rtol)
    assert torch.equal(moved.run(backend, append=False), moved.run(backend, append=False))
    for row, length in enumerate(case.seq_lens.tolist()):
        assert torch.equal(moved.k_cache[row, :, length : length + width].transpose(0, 1), moved.k_new[row])
        assert moved.v_cache[row, :, length + width :].isnan().all()


def test_a_row_does_not_depend_on_its_slot_or_on_the_others(gpu: torch.device) -> None:
    case = on_gpu(case_of([1900, 0, 255, 700], 5, 128, 32, 8, capacity=2000, dtype=torch.bfloat16), gpu)
    order = torch.tensor([3, 0], device=gpu)
    tensors = (case.q, case.k_cache, case.v_cache, case.k_new, case.v_new, case.seq_lens)
    moved = Case(*(x[order].clone() for x in tensors), case.scale)
    assert torch.equal(moved.run("triton"), case.run("triton")[order])


def test_the_host_never_waits(backend: str, gpu: torch.device) -> None:
    case = on_gpu(case_of([300, 2], 5, 64, 8, 2, capacity=400, dtype=torch.float16), gpu)
    case.run(backend)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.run(backend)
        case.run(backend, append=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_replays_follow_lengths_and_entries_that_change(backend: str, gpu: torch.device) -> None:
    case = on_gpu(case_of([20, 2, 250], 4, 64, 8, 2, capacity=800, dtype=torch.bfloat16), gpu)
    judge = on_gpu(case_of([20, 2, 250], 4, 64, 8, 2, capacity=800, dtype=torch.bfloat16), gpu)
    out: Tensor = torch.zeros_like(case.q)

    def step() -> None:
        out.copy_(case.run(backend))
        case.seq_lens.add_(4)
        case.k_new.mul_(-1)

    graph = captured(step, [case.k_cache, case.v_cache, case.seq_lens, case.k_new])
    for _ in range(100):
        graph.replay()
        wanted = judge.run("reference")
        torch.testing.assert_close(out, wanted, atol=1.6e-2, rtol=1.6e-2)
        judge.seq_lens.add_(4)
        judge.k_new.mul_(-1)
    assert torch.equal(case.k_cache.nan_to_num(9), judge.k_cache.nan_to_num(9))


def test_lengths_past_the_capacity_touch_nothing_outside_the_cache(gpu: torch.device) -> None:
    """Rows that are finished may go on; the door reads no length of CUDA tensors."""
    case = on_gpu(case_of([10, 10], 4, 64, 4, 2, capacity=64), gpu)
    around = torch.full((2, 2, 96, 64), 7.0, device=gpu)
    case.k_cache = around[:, :, 16:80]
    case.seq_lens = torch.tensor([62, 1 << 20], device=gpu)
    case.run("triton")
    torch.cuda.synchronize()
    assert (around[:, :, :16] == 7).all()
    assert (around[:, :, 80:] == 7).all()
