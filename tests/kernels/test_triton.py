"""What is particular to the Triton backend: how rows are cut into slices, and rows put together, changes nothing."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import pearl_kernels
from pearl_kernels import Purpose
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
    patch.setattr(launch, "MAX_REQUESTS", 4)


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
