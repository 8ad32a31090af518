"""A row's answer depends on that row alone: not on its batch, on padding, on calls before, and nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import Purpose, RowStats, SamplingTensors
from tests.kernels.cases import SampleCase, VerifyCase, mixed_params, verify_case

RULES = ("greedy", "token", "block", "coupled")


def tensors_of(case: VerifyCase | SampleCase) -> dict[str, Tensor]:
    """Every tensor of a case, by name."""

    def walk(name: str, value: object) -> Iterable[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, RowStats):
            yield from value._asdict().items()
        elif isinstance(value, SamplingTensors):
            yield from vars(value).items()

    return {k: v for name, value in vars(case).items() for k, v in walk(name, value)}


@pytest.mark.parametrize("rule", RULES)
def test_inputs_are_not_changed(rule: str, backend: str) -> None:
    for kind in ({}, {"one_hot": True}, {"mapped": True, "stats": False}):
        case = verify_case(6, 4, 50, rule=rule, **kind)  # type: ignore[arg-type]
        before = {name: value.clone() for name, value in tensors_of(case).items()}
        case.run(backend)
        for name, value in tensors_of(case).items():
            assert torch.equal(value, before[name]), name


def test_sample_does_not_change_its_inputs(backend: str) -> None:
    case = SampleCase(torch.randn(16, 300), mixed_params(16), torch.arange(16), epochs=torch.arange(16))
    before = {name: value.clone() for name, value in tensors_of(case).items()}
    case.run(backend)
    assert all(torch.equal(value, before[name]) for name, value in tensors_of(case).items())


def test_every_position_seed_purpose_and_epoch_draws_anew(backend: str) -> None:
    """Calls that differ in one of them share no noise; calls that do not are equal."""
    logits, rows = torch.zeros(1, 4096).expand(8, -1), torch.arange(8)
    first = SampleCase(logits, SamplingTensors.make(8, seed=range(8)), rows)
    others = [
        SampleCase(logits, first.params, rows + 100),
        SampleCase(logits, SamplingTensors.make(8, seed=range(8, 16)), rows),
        SampleCase(logits, first.params, rows, Purpose.DRAFT),
        SampleCase(logits, first.params, rows, epochs=torch.ones_like(rows)),
    ]
    tokens = first.run(backend).tokens
    assert torch.equal(tokens, first.run(backend).tokens)
    assert len(set(tokens.tolist())) == 8
    for other in others:
        assert not (tokens == other.run(backend).tokens).any()


def rows_of(case: VerifyCase, rows: Tensor) -> VerifyCase:
    params = SamplingTensors(**{name: value[rows] for name, value in vars(case.params).items()})
    return case.with_(
        target_logits=case.target_logits[rows],
        draft_tokens=case.draft_tokens[rows],
        chain_len=case.chain_len[rows],
        params=params,
        positions=case.positions[rows],
        draft_logits=None if case.draft_logits is None else case.draft_logits[rows],
        draft_stats=None if case.draft_stats is None else RowStats(*(column[rows] for column in case.draft_stats)),
    )


@pytest.mark.parametrize("rule", RULES)
def test_batch_slot_and_size_do_not_matter(rule: str, backend: str) -> None:
    case = verify_case(15, 4, 301, rule=rule, seed=2)
    whole = case.run(backend)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    for a, b in zip(whole, rows_of(case, order).run(backend), strict=True):
        assert torch.equal(a[order], b)
    for slot in range(0, 15, 7):
        alone = rows_of(case, torch.tensor([slot])).run(backend)
        assert [x.item() for x in alone] == [x[slot].item() for x in whole]


@pytest.mark.parametrize("rule", RULES)
def test_padding_to_a_wider_chain_does_not_matter(rule: str, backend: str) -> None:
    case = verify_case(24, 3, 50, rule=rule, seed=4)

    def pad(value: Tensor, fill: float) -> Tensor:
        return torch.cat([value, torch.full_like(value[:, :2], fill)], dim=1)

    assert case.draft_logits is not None
    assert case.draft_stats is not None
    padded = case.with_(
        target_logits=pad(case.target_logits, torch.nan),
        draft_tokens=pad(case.draft_tokens, 7),
        draft_logits=pad(case.draft_logits, torch.nan),
        draft_stats=RowStats(*(pad(column, torch.nan) for column in case.draft_stats)),
    )
    for a, b in zip(case.run(backend), padded.run(backend), strict=True):
        assert torch.equal(a, b)


def test_results_do_not_depend_on_the_calls_before(backend: str) -> None:
    """Scratch memory that is kept between calls must be written before it is read."""
    cases = [
        verify_case(5, 4, 3000, rule="block", seed=1),
        verify_case(3, 2, 20000, rule="token", mapped=True, seed=2),
        verify_case(24, 6, 17, rule="block", one_hot=True, seed=3),
        verify_case(2, 3, 40000, rule="coupled", seed=4),
    ]
    first = [case.run(backend) for case in cases]
    poison = verify_case(2, 3, 50000, rule="block", seed=5)
    poison.target_logits.fill_(torch.nan)
    for k in (3, 1, 0, 2):
        poison.run(backend)
        for a, b in zip(cases[k].run(backend), first[k], strict=True):
            assert torch.equal(a, b)


def test_outputs_are_written_whole(backend: str) -> None:
    """`out` may hold anything before, and is what comes back."""
    case = verify_case(50, 4, 20, seed=6)
    wanted = case.run(backend)
    out = pearl_kernels.VerifyOutput(*(torch.full_like(x, -77) for x in wanted))
    got = pearl_kernels.verify(
        case.target_logits, case.draft_tokens, case.chain_len, case.params, case.positions,
        draft_logits=case.draft_logits, draft_stats=case.draft_stats, rule=case.rule, backend=backend, out=out,
    )  # fmt: skip
    assert got is out
    assert all(torch.equal(a, b) for a, b in zip(out, wanted, strict=True))
