"""What is particular to the Triton backend: how rows are cut, who comes last, and what memory holds changes nothing."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch

import pearl_kernels
from pearl_kernels import Purpose, SamplingTensors
from tests.kernels.cases import SampleCase, mixed_params, peaked_logits, verify_case


@pytest.fixture
def launch() -> Any:
    state = pearl_kernels.backends()["triton"]
    if not state.available:
        pytest.skip(state.reason)
    return importlib.import_module("pearl_kernels._triton.launch")


def cut_into_slices(patch: pytest.MonkeyPatch, launch: Any) -> None:
    """Tiles of two rows and 64 tokens, however many there are."""
    patch.setattr(launch, "SLICE", 64)
    patch.setattr(launch, "TILE", 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sample_does_not_depend_on_slices(dtype: torch.dtype, launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = peaked_logits((8, 203), torch.Generator().manual_seed(0)).to(dtype)
    case = SampleCase(logits, mixed_params(8), torch.arange(8), Purpose.DRAFT, epochs=torch.arange(8))
    whole = case.run("triton")
    cut_into_slices(monkeypatch, launch)
    sliced = case.run("triton")
    assert torch.equal(sliced.tokens, whole.tokens)
    assert torch.equal(sliced.stats.threshold, whole.stats.threshold)
    torch.testing.assert_close(sliced.stats.lse, whole.stats.lse, atol=1e-6, rtol=3e-7)


@pytest.mark.parametrize(
    ("rule", "kind"), [("greedy", {}), ("token", {"mapped": True}), ("block", {"stats": False}), ("coupled", {})]
)
def test_verify_does_not_depend_on_slices(
    rule: str, kind: dict[str, Any], launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = verify_case(8, 3, 203, rule=rule, seed=6, **kind)
    whole = case.run("triton")
    cut_into_slices(monkeypatch, launch)
    for a, b in zip(case.run("triton"), whole, strict=True):
        assert torch.equal(a, b)


def reorder_programs(patch: pytest.MonkeyPatch, step: int, first: int) -> None:
    """Run the programs of every launch in another order, so that other ones come last."""
    builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
    in_order = builder.set_grid_idx

    def reordered(x: int, y: int, z: int) -> None:
        count = builder.grid_dim[0]
        by = step if math.gcd(step, count) == 1 else -1
        in_order((x * by + first) % count, y, z)

    patch.setattr(builder, "set_grid_idx", reordered)


@pytest.mark.parametrize(
    ("rule", "kind"),
    [("greedy", {}), ("token", {"stats": False}), ("block", {}), ("coupled", {}), ("block", {"one_hot": True})],
)
def test_order_of_programs_and_what_memory_held_change_nothing(
    rule: str, kind: dict[str, Any], launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = importlib.import_module("pearl_kernels._triton.workspace")
    cut_into_slices(monkeypatch, launch)
    case = verify_case(4, 3, 130, rule=rule, seed=7, **kind)
    case = case.with_(params=SamplingTensors.make(4, temperature=[1.0, 0.0, 0.7, 1.3], seed=range(4)))
    in_order = case.run("triton")
    for step, first in ((-1, -1), (7, 3)):  # backwards, and shuffled
        for slot in workspace._slots.values():
            slot.memory.fill_(0xFF)
            assert not slot.counters.any(), "a call left its counters at other numbers than it found"
        with monkeypatch.context() as patch:
            reorder_programs(patch, step, first)
            for a, b in zip(case.run("triton"), in_order, strict=True):
                assert torch.equal(a, b)
