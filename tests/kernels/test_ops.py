"""The operations are good citizens of torch: opcheck is clean, and torch.compile takes functions that call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import DecodeState, Purpose, RowStats, SampleOutput, SamplingTensors
from tests.kernels.cases import mixed_params, verify_case

B, W, V = 3, 3, 20


def params_list(params: SamplingTensors) -> list[Tensor]:
    return list(vars(params).values())


def sample_args(backend: str) -> list[Any]:
    logits = torch.randn(B, V, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(B)
    return [logits, *params_list(mixed_params(B)), positions, positions, int(Purpose.DRAFT), backend]


def verify_args(rule: str, backend: str, **kind: bool) -> list[Any]:
    case = verify_case(B, W, V, rule=rule, **kind)
    return [
        case.target_logits, case.draft_tokens, case.chain_len, *params_list(case.params), case.positions,
        case.draft_logits, *(case.draft_stats or (None, None)), case.d2t, rule, backend,
    ]  # fmt: skip


def new_state() -> DecodeState:
    return DecodeState(
        tokens=torch.arange(B * 30).reshape(B, 30) % V,
        committed=torch.arange(B) + 1,
        window=torch.arange(B, dtype=torch.int32) % W,
        max_len=torch.full((B,), 12),
        eos_ids=torch.full((B, 1), 3),
        finished=torch.zeros(B, dtype=torch.int32),
        status=torch.zeros(B, dtype=torch.int32),
    )


def test_opcheck_sample(backend: str) -> None:
    torch.library.opcheck(torch.ops.pearl.sample.default, tuple(sample_args(backend)))


def test_opcheck_sample_out(backend: str) -> None:
    out = {
        "tokens": torch.zeros(B, dtype=torch.int64),
        "threshold": torch.zeros(B),
        "lse": torch.zeros(B),
        "status": torch.zeros(B, dtype=torch.int32),
    }
    torch.library.opcheck(torch.ops.pearl.sample_out.default, tuple(sample_args(backend)), out)


@pytest.mark.parametrize(
    ("rule", "kind"),
    [("greedy", {}), ("coupled", {})]
    + [(rule, kind) for rule in ("token", "block") for kind in ({}, {"one_hot": True}, {"mapped": True})],
)
def test_opcheck_verify(rule: str, kind: dict[str, bool], backend: str) -> None:
    torch.library.opcheck(torch.ops.pearl.verify.default, tuple(verify_args(rule, backend, **kind)))


def test_opcheck_verify_out(backend: str) -> None:
    out = {
        "num_accepted": torch.zeros(B, dtype=torch.int32),
        "next_token": torch.zeros(B, dtype=torch.int64),
        "status": torch.zeros(B, dtype=torch.int32),
    }
    arguments = tuple(verify_args("token", backend, one_hot=False))
    torch.library.opcheck(torch.ops.pearl.verify_out.default, arguments, out)


def test_opcheck_advance(backend: str) -> None:
    case = verify_case(B, W, V)
    arguments = (
        *vars(new_state()).values(), case.target_logits, *params_list(case.params), case.draft_logits,
        *(case.draft_stats or ()), None, "token", 2, backend,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.pearl.advance_.default, arguments)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_sample_compiles_whole(backend: str) -> None:
    logits, params, positions = torch.randn(B, V), mixed_params(B), torch.arange(B)

    def step(logits: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        out = pearl_kernels.sample(
            logits * 2, params, positions + 1, purpose=Purpose.DRAFT, epochs=positions, backend=backend
        )
        return out.tokens + 1, out.stats.lse

    for got, wanted in zip(compiled(step)(logits, positions), step(logits, positions), strict=True):
        assert torch.equal(got, wanted)


def test_sample_into_out_compiles_whole(backend: str) -> None:
    logits, params, positions = torch.randn(B, V), mixed_params(B), torch.arange(B)

    def step(logits: Tensor, out: SampleOutput) -> Tensor:
        return pearl_kernels.sample(logits, params, positions, backend=backend, out=out).tokens + 0

    def new_out() -> SampleOutput:
        return SampleOutput(
            torch.zeros(B, dtype=torch.int64),
            RowStats(torch.zeros(B), torch.zeros(B)),
            torch.zeros(B, dtype=torch.int32),
        )

    out = new_out()
    assert torch.equal(compiled(step)(logits, out), step(logits, new_out()))
    assert torch.equal(out.tokens, step(logits, new_out()))


@pytest.mark.parametrize("mapped", [False, True])
def test_verify_compiles_whole(mapped: bool, backend: str) -> None:
    case = verify_case(B, W, V, mapped=mapped, rule="block")

    def step(target_logits: Tensor, draft_tokens: Tensor) -> tuple[Tensor, Tensor]:
        out = case.with_(target_logits=target_logits * 1.5, draft_tokens=draft_tokens).run(backend)
        return out.num_accepted + 1, out.next_token

    arguments = case.target_logits, case.draft_tokens
    for got, wanted in zip(compiled(step)(*arguments), step(*arguments), strict=True):
        assert torch.equal(got, wanted)


def test_advance_compiles_whole_and_updates_the_state(backend: str) -> None:
    case = verify_case(B, W, V)

    def step(state: DecodeState, target_logits: Tensor) -> Tensor:
        out = pearl_kernels.advance_(
            state, target_logits + 0, case.params, draft_logits=case.draft_logits, draft_stats=case.draft_stats,
            next_window=2, backend=backend,
        )  # fmt: skip
        return out.num_emitted + state.committed

    traced, eager = new_state(), new_state()
    assert torch.equal(compiled(step)(traced, case.target_logits), step(eager, case.target_logits))
    for name, value in vars(eager).items():
        assert torch.equal(getattr(traced, name), value), name


def test_logits_that_require_grad_are_taken_and_nothing_is_recorded(backend: str) -> None:
    logits = torch.randn(B, V, requires_grad=True)
    out = pearl_kernels.sample(logits, mixed_params(B), torch.arange(B), backend=backend)
    assert not out.stats.lse.requires_grad
    if backend != "cuda":  # which has no other
        text, lengths = torch.ones(B, 4, dtype=torch.int64), torch.full((B,), 4)
        pearl_kernels.induce_(logits, text, lengths, torch.ones(3), backend=backend)
    if backend in ("cpu", "reference"):
        rows, weight = torch.randn(3, 8, requires_grad=True), torch.nn.Parameter(torch.randn(8, 8))
        assert not pearl_kernels.window_linear(rows, weight, backend=backend).requires_grad
        assert not pearl_kernels.window_norm(rows, weight[0].detach(), eps=1e-5, backend=backend).requires_grad
