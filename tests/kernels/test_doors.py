"""Every mistake of a caller is a ValueError that names the argument, what was expected and what came."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import pearl_kernels
from pearl_kernels import DecodeState, RowStats, SampleOutput, SamplingTensors, VerifyOutput

B, W, V, L = 4, 5, 12, 30
CPU = "on cpu"


def params(**changes: Any) -> SamplingTensors:
    return replace(SamplingTensors.make(B), **changes)


def sample_arguments() -> dict[str, Any]:
    return {"logits": torch.zeros(B, V), "params": params(), "positions": torch.zeros(B, dtype=torch.int64)}


def verify_arguments() -> dict[str, Any]:
    return {
        "target_logits": torch.zeros(B, W, V),
        "draft_tokens": torch.zeros(B, W, dtype=torch.int64),
        "chain_len": torch.full((B,), W, dtype=torch.int32),
        "params": params(),
        "positions": torch.zeros(B, dtype=torch.int64),
    }


def state(**changes: Any) -> DecodeState:
    return replace(
        DecodeState(
            tokens=torch.zeros(B, L, dtype=torch.int64),
            committed=torch.ones(B, dtype=torch.int64),
            window=torch.zeros(B, dtype=torch.int32),
            max_len=torch.full((B,), L),
            eos_ids=torch.full((B, 1), -1),
            finished=torch.zeros(B, dtype=torch.int32),
            status=torch.zeros(B, dtype=torch.int32),
        ),
        **changes,
    )


def advance_arguments() -> dict[str, Any]:
    return {"state": state(), "target_logits": torch.zeros(B, W, V), "params": params()}


def ints(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def stats(*shape: int, dtype: torch.dtype = torch.float32) -> RowStats:
    return RowStats(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))


ROW = "(batch=4,)"
LOGITS = "(batch, vocab) float32, bfloat16 or float16"
TARGET = "(batch, width, vocab) float32, bfloat16 or float16"
DRAFT = torch.zeros(B, W, V)

SAMPLE_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"logits": [1.0]}, f"logits must be {LOGITS}, got list"),
    ({"logits": torch.zeros(V)}, f"logits must be {LOGITS}, got (12,) float32 {CPU}"),
    ({"logits": torch.zeros(B, V).double()}, f"logits must be {LOGITS}, got (4, 12) float64 {CPU}"),
    ({"logits": torch.zeros(B, 0)}, f"logits must be {LOGITS}, none of them 0, got (4, 0) float32 {CPU}"),
    (
        {"logits": torch.zeros(V, B).t()},
        "logits must have a contiguous last dimension, got strides (1, 4); call .contiguous() on it",
    ),
    ({"params": None}, "params must be SamplingTensors, got NoneType"),
    ({"positions": ints(3)}, f"positions must be {ROW} int64 {CPU}, got (3,) int64 {CPU}"),
    (
        {"positions": ints(B, dtype=torch.int32)},
        f"positions must be {ROW} int64 {CPU}, got (4,) int32 {CPU}",
    ),
    ({"positions": ints(B).to("meta")}, f"positions must be {ROW} int64 {CPU}, got (4,) int64 on meta"),
    ({"epochs": 3}, f"epochs must be {ROW} int64 {CPU}, got int"),
    ({"purpose": 3}, "purpose must be a Purpose, got 3"),
    ({"out": ()}, "out must be SampleOutput, got tuple"),
    (
        {"out": SampleOutput(ints(5), stats(B), ints(B, dtype=torch.int32))},
        f"out.tokens must be {ROW} int64 {CPU}, got (5,) int64 {CPU}",
    ),
    (
        {"out": SampleOutput(ints(B, 2)[:, 0], stats(B), ints(B, dtype=torch.int32))},
        "out.tokens must be contiguous, got strides (2,)",
    ),
    (
        {"out": SampleOutput(ints(B), stats(B, dtype=torch.float64), ints(B, dtype=torch.int32))},
        f"out.stats.threshold must be {ROW} float32 {CPU}, got (4,) float64 {CPU}",
    ),
    ({"backend": "cudnn"}, "backend must be one of reference, cpu, triton, cuda, got 'cudnn'"),
]

PARAMS_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"temperature": torch.ones(3)}, f"params.temperature must be {ROW} float32 {CPU}, got (3,) float32 {CPU}"),
    ({"top_k": ints(B)}, f"params.top_k must be {ROW} int32 {CPU}, got (4,) int64 {CPU}"),
    ({"top_p": 0.9}, f"params.top_p must be {ROW} float32 {CPU}, got float"),
    ({"min_p": torch.zeros(B, 1)}, f"params.min_p must be {ROW} float32 {CPU}, got (4, 1) float32 {CPU}"),
    ({"seed": ints(B, dtype=torch.int32)}, f"params.seed must be {ROW} int64 {CPU}, got (4,) int32 {CPU}"),
    (
        {"temperature": floats(1, -0.5, 0, 0)},
        "params.temperature must be in [0, 3.40282e+38], got values from -0.5 to 1",
    ),
    (
        {"temperature": floats(1, torch.nan, 0, 0)},
        "params.temperature must be in [0, 3.40282e+38], got values from nan",
    ),
    (
        {"temperature": floats(1, torch.inf, 0, 0)},
        "params.temperature must be in [0, 3.40282e+38], got values from 0 to",
    ),
    ({"top_k": torch.tensor([0, -1, 2, 3], dtype=torch.int32)}, "params.top_k must be in [0, "),
    ({"top_p": floats(1, 0, 1, 1)}, "params.top_p must be in (0, 1], got values from 0 to 1"),
    ({"top_p": floats(1, 1.5, 1, 1)}, "params.top_p must be in (0, 1], got values from 1 to 1.5"),
    ({"top_p": floats(1, torch.nan, 1, 1)}, "params.top_p must be in (0, 1], got values from nan"),
    ({"min_p": floats(0, -0.1, 0, 0)}, "params.min_p must be in [0, 1], got values from -0.1 to 0"),
    ({"min_p": floats(0, 1.1, 0, 0)}, "params.min_p must be in [0, 1], got values from 0 to 1.1"),
]

DRAFT_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"draft_stats": stats(B, W)}, "draft_stats must be None when draft_logits is None, got RowStats"),
    ({"d2t": ints(V)}, f"d2t must be None when draft_logits is None, got (12,) int64 {CPU}"),
    (
        {"draft_logits": DRAFT.double()},
        f"draft_logits must be (batch, width, draft_vocab) float32, bfloat16 or float16, got (4, 5, 12) float64 {CPU}",
    ),
    (
        {"draft_logits": DRAFT[:, 1:]},
        f"draft_logits must be (batch=4, width=5, draft_vocab) {CPU}, got (4, 4, 12) float32 {CPU}",
    ),
    (
        {"draft_logits": torch.zeros(B, W, V + 3)},
        "draft_logits must have a vocabulary of at most vocab=12, got 15; "
        "slice the draft's logits to the target's vocabulary BEFORE sampling from them",
    ),
    (
        {"draft_logits": DRAFT, "draft_stats": tuple(stats(B, W))},
        "draft_stats must be RowStats, got tuple",
    ),
    (
        {"draft_logits": DRAFT, "draft_stats": stats(B)},
        f"draft_stats.threshold must be (batch=4, width=5) float32 {CPU}, got (4,) float32 {CPU}",
    ),
    (
        {"draft_logits": DRAFT[..., :6], "d2t": torch.arange(5)},
        f"d2t must be (draft_vocab=6,) int64 {CPU}, got (5,) int64 {CPU}",
    ),
    ({"draft_logits": DRAFT[..., :3], "d2t": torch.tensor([0, 5, 5])}, "d2t must be strictly increasing target ids"),
    (
        {"draft_logits": DRAFT[..., :3], "d2t": torch.tensor([0, 5, 12])},
        "d2t must be in [0, 11], got values from 0 to 12",
    ),
    (
        {"draft_logits": DRAFT[..., :3], "d2t": torch.tensor([-1, 5, 7])},
        "d2t must be in [0, 11], got values from -1 to 7",
    ),
    ({"rule": "lossy"}, "rule must be one of greedy, token, block, coupled, got 'lossy'"),
    ({"backend": "gpu"}, "backend must be one of reference, cpu, triton, cuda, got 'gpu'"),
]

VERIFY_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"target_logits": torch.zeros(B, V)}, f"target_logits must be {TARGET}, got (4, 12) float32 {CPU}"),
    ({"target_logits": torch.zeros(B, 0, V)}, f"target_logits must be {TARGET}, none of them 0, got (4, 0, 12)"),
    (
        {"draft_tokens": ints(4, 6, dtype=torch.int32)},
        f"draft_tokens must be (batch=4, width=5) int64 {CPU}, got (4, 6) int32 {CPU}",
    ),
    ({"chain_len": ints(B)}, f"chain_len must be {ROW} int32 {CPU}, got (4,) int64 {CPU}"),
    (
        {"chain_len": torch.tensor([1, 5, 0, 2], dtype=torch.int32)},
        "chain_len must be in [1, 5], got values from 0 to 5",
    ),
    (
        {"chain_len": torch.tensor([1, 6, 1, 2], dtype=torch.int32)},
        "chain_len must be in [1, 5], got values from 1 to 6",
    ),
    ({"positions": None}, f"positions must be {ROW} int64 {CPU}, got NoneType"),
    ({"out": 1}, "out must be VerifyOutput, got int"),
    (
        {"out": VerifyOutput(ints(B), ints(B), ints(B))},
        f"out.num_accepted must be {ROW} int32 {CPU}, got (4,) int64 {CPU}",
    ),
]

STATE_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"state": None}, "state must be DecodeState, got NoneType"),
    ({"state": state(tokens=ints(3, L))}, f"state.tokens must be (batch=4, length=30) int64 {CPU}, got (3, 30)"),
    ({"state": state(tokens=ints(L, B).t())}, "state.tokens must be contiguous, got strides (1, 4)"),
    (
        {"state": state(committed=ints(B, dtype=torch.int32))},
        f"state.committed must be {ROW} int64 {CPU}, got (4,) int32",
    ),
    ({"state": state(committed=ints(B, 2)[:, 0])}, "state.committed must be contiguous, got strides (2,)"),
    ({"state": state(window=ints(B))}, f"state.window must be {ROW} int32 {CPU}, got (4,) int64"),
    ({"state": state(max_len=ints(2))}, f"state.max_len must be {ROW} int64 {CPU}, got (2,) int64"),
    ({"state": state(eos_ids=ints(B, 0))}, f"state.eos_ids must be (batch=4, ids=1) int64 {CPU}, got (4, 0) int64"),
    ({"state": state(finished=ints(B))}, f"state.finished must be {ROW} int32 {CPU}, got (4,) int64"),
    ({"state": state(status=ints(B))}, f"state.status must be {ROW} int32 {CPU}, got (4,) int64"),
    (
        {"state": state(window=torch.tensor([0, 4, 5, 0], dtype=torch.int32))},
        "state.window must be in [0, 4], got values from 0 to 5",
    ),
    (
        {"state": state(committed=torch.tensor([1, -1, 2, 3]))},
        "state.committed must be in [0, 30], got values from -1 to 3",
    ),
    (
        {"state": state(committed=torch.full((B,), L))},
        "state.committed + window + 1 must be in [1, 30], got values from 31 to 31",
    ),
    ({"next_window": -1}, "next_window must be at least 0, got -1"),
]


def assert_refused(call: Any, arguments: dict[str, Any], prefix: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{prefix}: {re.escape(message)}"):
        call(**arguments)


@pytest.mark.parametrize(("mistake", "message"), SAMPLE_MISTAKES)
def test_sample_names_the_mistake(mistake: dict[str, Any], message: str) -> None:
    assert_refused(pearl_kernels.sample, sample_arguments() | mistake, "sample", message)


@pytest.mark.parametrize(("mistake", "message"), VERIFY_MISTAKES + DRAFT_MISTAKES)
def test_verify_names_the_mistake(mistake: dict[str, Any], message: str) -> None:
    assert_refused(pearl_kernels.verify, verify_arguments() | mistake, "verify", message)


@pytest.mark.parametrize(("mistake", "message"), STATE_MISTAKES + DRAFT_MISTAKES[:-1])
def test_advance_names_the_mistake(mistake: dict[str, Any], message: str) -> None:
    assert_refused(pearl_kernels.advance_, advance_arguments() | mistake, "advance_", message)


@pytest.mark.parametrize(("mistake", "message"), PARAMS_MISTAKES)
def test_parameters_are_checked_by_every_door(mistake: dict[str, Any], message: str) -> None:
    for name, call, arguments in (
        ("sample", pearl_kernels.sample, sample_arguments()),
        ("verify", pearl_kernels.verify, verify_arguments()),
        ("advance_", pearl_kernels.advance_, advance_arguments()),
    ):
        assert_refused(call, arguments | {"params": params(**mistake)}, name, message)


@pytest.mark.parametrize(("dtype", "device"), [(torch.bfloat16, "cpu"), (torch.float32, "meta")])
def test_what_torch_makes_tensors_of_does_not_change_the_message(dtype: torch.dtype, device: str) -> None:
    arguments = sample_arguments() | {"params": SamplingTensors.make(B, top_p=1.001)}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), pytest.raises(ValueError, match=re.escape("(0, 1], got values from 1.001 to 1.001")):
            pearl_kernels.sample(**arguments)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("inference", [False, True])
def test_parameters_that_were_good_are_checked_again_once_written_to(inference: bool) -> None:
    with torch.inference_mode(inference):
        arguments = sample_arguments()
        pearl_kernels.sample(**arguments)
        pearl_kernels.sample(**arguments)
        arguments["params"].top_p[2] = 1.5
        assert_refused(
            pearl_kernels.sample, arguments, "sample", "params.top_p must be in (0, 1], got values from 1 to 1.5"
        )


def test_good_parameters_do_not_pass_for_another_batch() -> None:
    arguments = sample_arguments()
    pearl_kernels.sample(**arguments)
    other = arguments | {"logits": torch.zeros(B + 1, V), "positions": torch.zeros(B + 1, dtype=torch.int64)}
    assert_refused(pearl_kernels.sample, other, "sample", f"params.temperature must be (batch={B + 1},) float32 {CPU}")


@pytest.mark.parametrize("bad", [-0.5, torch.nan, torch.inf])
def test_parameters_of_large_batches_are_checked_too(bad: float) -> None:
    temperature = [1.0] * 999 + [bad]
    assert_refused(
        pearl_kernels.sample,
        {
            "logits": torch.zeros(1000, V),
            "params": SamplingTensors.make(1000, temperature=temperature),
            "positions": ints(1000),
        },
        "sample",
        "params.temperature must be in [0, 3.40282e+38], got values from ",
    )


@pytest.mark.parametrize("state_of_finished_rows", [{"committed": L + 9}, {"window": 99}, {"committed": -3}])
def test_finished_rows_are_not_checked(state_of_finished_rows: dict[str, int], backend: str) -> None:
    done = state()
    done.finished[1] = 1
    for name, value in state_of_finished_rows.items():
        getattr(done, name)[1] = value
    pearl_kernels.advance_(done, torch.zeros(B, W, V), params(), backend=backend)


def test_the_arguments_of_the_tables_are_right_without_their_mistake() -> None:
    pearl_kernels.sample(**sample_arguments())
    pearl_kernels.verify(**verify_arguments())
    pearl_kernels.advance_(**advance_arguments())


def test_make_broadcasts_scalars_and_takes_sequences() -> None:
    made = SamplingTensors.make(3, temperature=[0.0, 1, 2.5], top_k=7, seed=range(3))
    assert made.temperature.tolist() == [0.0, 1.0, 2.5]
    assert made.top_k.tolist() == [7, 7, 7]
    assert made.top_p.tolist() == [1.0, 1.0, 1.0]
    assert made.seed.tolist() == [0, 1, 2]
    assert [x.dtype for x in vars(made).values()] == [
        torch.float32, torch.int32, torch.float32, torch.float32, torch.int64,
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"^SamplingTensors: top_p must have batch=3 values, got 2"):
        SamplingTensors.make(3, top_p=[0.5, 1.0])
