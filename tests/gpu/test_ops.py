"""On CUDA tensors too the operations are good citizens of torch: opcheck is clean, and torch.compile takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import DecodeState, Purpose
from tests.gpu.elsewhere import moved
from tests.kernels.cases import VerifyCase, mixed_params, verify_case
from tests.kernels.test_ops import B, V, W, compiled, new_state, params_list, sample_args, verify_args

pytestmark = pytest.mark.gpu


def test_opcheck_sample(backend: str, device: torch.device) -> None:
    torch.library.opcheck(torch.ops.pearl.sample.default, tuple(moved(sample_args(backend), device)))


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_opcheck_verify(rule: str, one_hot: bool, backend: str, device: torch.device) -> None:
    arguments = moved(verify_args(rule, backend, one_hot=one_hot), device)
    torch.library.opcheck(torch.ops.pearl.verify.default, tuple(arguments))


def test_opcheck_verify_out(backend: str, device: torch.device) -> None:
    out = {
        "num_accepted": torch.zeros(B, dtype=torch.int32),
        "next_token": torch.zeros(B, dtype=torch.int64),
        "status": torch.zeros(B, dtype=torch.int32),
    }
    arguments = moved(verify_args("token", backend, one_hot=False), device)
    torch.library.opcheck(torch.ops.pearl.verify_out.default, tuple(arguments), moved(out, device))


def test_opcheck_advance(backend: str, device: torch.device) -> None:
    case = verify_case(B, W, V)
    arguments: tuple[Any, ...] = (
        *vars(new_state()).values(), case.target_logits, *params_list(case.params), case.draft_logits,
        *(case.draft_stats or ()), None, "token", 2, backend,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.pearl.advance_.default, moved(arguments, device))


def test_sample_compiles_whole(backend: str, device: torch.device) -> None:
    logits, params, positions = moved((torch.randn(B, V), mixed_params(B), torch.arange(B)), device)

    def step(logits: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        out = pearl_kernels.sample(
            logits * 2, params, positions + 1, purpose=Purpose.DRAFT, epochs=positions, backend=backend
        )
        return out.tokens + 1, out.stats.lse

    for got, wanted in zip(compiled(step)(logits, positions), step(logits, positions), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("mapped", [False, True])
def test_verify_compiles_whole(mapped: bool, backend: str, device: torch.device) -> None:
    case: VerifyCase = moved(verify_case(B, W, V, mapped=mapped, rule="block"), device)

    def step(target_logits: Tensor, draft_tokens: Tensor) -> tuple[Tensor, Tensor]:
        out = case.with_(target_logits=target_logits * 1.5, draft_tokens=draft_tokens).run(backend)
        return out.num_accepted + 1, out.next_token

    arguments = case.target_logits, case.draft_tokens
    for got, wanted in zip(compiled(step)(*arguments), step(*arguments), strict=True):
        assert torch.equal(got, wanted)


def test_advance_compiles_whole_and_updates_the_state(backend: str, device: torch.device) -> None:
    case: VerifyCase = moved(verify_case(B, W, V), device)

    def step(state: DecodeState, target_logits: Tensor) -> Tensor:
        out = pearl_kernels.advance_(
            state, target_logits + 0, case.params, draft_logits=case.draft_logits, draft_stats=case.draft_stats,
            next_window=2, backend=backend,
        )  # fmt: skip
        return out.num_emitted + state.committed

    traced, eager = moved(new_state(), device), moved(new_state(), device)
    assert torch.equal(compiled(step)(traced, case.target_logits), step(eager, case.target_logits))
    for name, value in vars(eager).items():
        assert torch.equal(getattr(traced, name), value), name
