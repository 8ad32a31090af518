"""What a call costs the host in Triton: so many launches, and once its memory is there nothing of torch's."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pearl_kernels
from tests.kernels.advance_checks import sequences
from tests.kernels.cases import SampleCase, VerifyCase, mixed_params, peaked_logits, verify_case

# What is known of the draft: its statistics, its logits alone or those of a smaller vocabulary, or that it was certain.
DRAFTS: dict[str, dict[str, bool]] = {
    "stats": {},
    "logits": {"stats": False},
    "mapped": {"mapped": True, "stats": False},
    "certain": {"one_hot": True},
}
# Of a draft with probabilities; of one that was certain all is done in one launch.
LAUNCHES = {"greedy": 1, "coupled": 1, "token": 2, "block": 3}


class TorchOps(TorchDispatchMode):
    """Names what is asked of torch: allocations and launches of its own among it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Counted:
    """Kernels that are counted and not run."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.launches: list[str] = []
        for room in ("_triton.chains", "_triton.residuals", "sample._triton"):
            module = importlib.import_module(f"pearl_kernels.{room}")
            for kernel in (each for each in vars(module).values() if hasattr(each, "arg_names")):
                patch.setattr(type(kernel), "run", lambda kernel, *_, **__: self.launches.append(kernel.__name__))

    def of(self, call: Any) -> tuple[int, list[str]]:
        """Launches of a call, and what it asks of torch."""
        self.launches.clear()
        with TorchOps() as ops:
            call()
        return len(self.launches), ops.names


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    state = pearl_kernels.backends()["triton"]
    if not state.available:
        pytest.skip(state.reason)
    return Counted(monkeypatch)


def kernel_of(room: str, name: str) -> Any:
    return getattr(importlib.import_module(f"pearl_kernels.{room}._triton"), name)


def verification(case: VerifyCase, rule: str) -> Any:
    outs = torch.empty(len(case.positions), dtype=torch.int32), torch.empty_like(case.positions)
    threshold, lse = case.draft_stats or (None, None)
    return lambda: kernel_of("verify", "verify_out")(
        case.target_logits, case.draft_tokens, case.chain_len, *vars(case.params).values(), case.positions,
        case.draft_logits, threshold, lse, case.d2t, rule, *outs, outs[0],
    )  # fmt: skip


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("rule", LAUNCHES)
def test_verify_is_so_many_launches_and_nothing_else(rule: str, draft: str, counted: Counted) -> None:
    call = verification(verify_case(5, 3, 203, **DRAFTS[draft]), rule)  # type: ignore[arg-type]
    call()
    assert counted.of(call) == (1 if draft == "certain" else LAUNCHES[rule], [])


@pytest.mark.parametrize("rule", LAUNCHES)
def test_advance_is_as_many_launches_as_verify(rule: str, counted: Counted) -> None:
    state, case = sequences(rule, rows=5)[:2]
    fields = (state.tokens, state.committed, state.window, state.max_len, state.eos_ids, state.finished, state.status)
    counts = torch.empty_like(state.window), torch.empty_like(state.window)
    threshold, lse = case.draft_stats or (None, None)

    def call() -> None:
        kernel_of("advance", "advance_")(
            *fields, case.target_logits, *vars(case.params).values(), case.draft_logits, threshold, lse, case.d2t,
            rule, 2, *counts,
        )  # fmt: skip

    call()
    assert counted.of(call) == (LAUNCHES[rule], [])


def test_sample_is_one_launch_and_nothing_else(counted: Counted) -> None:
    logits = peaked_logits((8, 203), torch.Generator().manual_seed(0))
    case = SampleCase(logits, mixed_params(8), torch.arange(8))
    outs = torch.empty(8, dtype=torch.int64), torch.empty(8), torch.empty(8), torch.empty(8, dtype=torch.int32)

    def call() -> None:
        kernel_of("sample", "sample_out")(logits, *vars(case.params).values(), case.positions, None, 0, *outs)

    call()
    assert counted.of(call) == (1, [])


def test_a_larger_call_takes_more_memory_once(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("pearl_kernels._triton.workspace"), "_slots", {})
    small, large = (verification(verify_case(batch, 4, 64), "block") for batch in (3, 300))
    small()
    _, first = counted.of(large)
    assert any("empty" in name for name in first)
    assert counted.of(large)[1] == []
    assert all("empty" not in name and "zeros" not in name for name in counted.of(small)[1])
