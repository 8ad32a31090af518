"""A row's token and statistics are the same bits in any slot, beside any number of others, at any address."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pearl_kernels import Purpose, RowStats, SamplingTensors, VerifyOutput, _cuda, verify
from tests.gpu.elsewhere import moved
from tests.gpu.test_streams import assert_equal
from tests.kernels.cases import SampleCase, VerifyCase, mixed_params, peaked_logits, verify_case
from tests.kernels.test_independence import rows_of

pytestmark = pytest.mark.gpu

RULES = ("greedy", "token", "block", "coupled")
# Rows that are cut into many blocks; so many rows that each block takes several slices of one; and a block for each.
SIZES = [(24, 128256), (512, 49152), (300, 50)]
SLOTS = (0, 7, 23)


def sample_case(batch: int, vocab: int, dtype: torch.dtype, device: torch.device) -> SampleCase:
    distinct = peaked_logits((min(batch, 24), vocab), torch.Generator().manual_seed(vocab))
    logits = distinct.repeat(-(-batch // len(distinct)), 1)[:batch].to(dtype)  # positions and seeds differ all the same
    return moved(SampleCase(logits, mixed_params(batch), torch.arange(batch) * 31, Purpose.DRAFT), device)


def sample_rows(case: SampleCase, rows: torch.Tensor) -> SampleCase:
    params = SamplingTensors(**{name: value[rows] for name, value in vars(case.params).items()})
    return replace(case, logits=case.logits[rows], params=params, positions=case.positions[rows])


@pytest.mark.parametrize(("batch", "vocab"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sample_of_a_row_does_not_depend_on_the_others(
    batch: int, vocab: int, dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    case = sample_case(batch, vocab, dtype, device)
    whole = case.run(backend)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(0)).to(device)
    tokens, stats, status = sample_rows(case, order).run(backend)
    assert_equal(RowStats(*stats), RowStats(*(column[order] for column in whole.stats)))
    assert torch.equal(tokens, whole.tokens[order])
    assert torch.equal(status, whole.status[order])
    for slot in SLOTS:
        alone = sample_rows(case, torch.tensor([slot], device=device)).run(backend)
        assert torch.equal(alone.tokens, whole.tokens[slot : slot + 1])
        assert_equal(alone.stats, RowStats(*(column[slot : slot + 1] for column in whole.stats)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1000, 32000])
@pytest.mark.parametrize("offset", [1, 3, 8])
def test_sample_of_a_row_does_not_depend_on_its_address(
    vocab: int, dtype: torch.dtype, offset: int, backend: str, device: torch.device
) -> None:
    """Rows that begin at odd addresses, and follow each other at odd distances, cannot be loaded as vectors."""
    case = sample_case(24, vocab, dtype, device)
    buffer = torch.full((24, vocab + 11), torch.nan, dtype=dtype, device=device)
    shifted = buffer[:, offset : offset + vocab].copy_(case.logits)
    assert_equal(replace(case, logits=shifted).run(backend), case.run(backend))


@pytest.mark.parametrize(("batch", "width", "vocab"), [(24, 5, 49152), (256, 9, 1000), (600, 4, 5000)])
@pytest.mark.parametrize("rule", RULES)
def test_verify_of_a_row_does_not_depend_on_the_others(
    rule: str, batch: int, width: int, vocab: int, backend: str, device: torch.device
) -> None:
    case: VerifyCase = moved(verify_case(batch, width, vocab, rule=rule, seed=2, dtype=torch.bfloat16), device)
    whole = case.run(backend)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(0)).to(device)
    for a, b in zip(rows_of(case, order).run(backend), whole, strict=True):
        assert torch.equal(a, b[order])
    for slot in SLOTS:
        alone = rows_of(case, torch.tensor([slot], device=device)).run(backend)
        for a, b in zip(alone, whole, strict=True):
            assert torch.equal(a, b[slot : slot + 1])


@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("rule", ["greedy", "token", "coupled"])
def test_rows_in_turn_and_all_at_once_give_the_same_bits(
    rule: str, stats: bool, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cuda backend looks at rows in turn where requests are many beside the device's multiprocessors."""
    case: VerifyCase = moved(verify_case(64, 5, 49152, rule=rule, stats=stats, seed=5, dtype=torch.bfloat16), gpu)
    outs, capability = [], _cuda._properties(gpu)[1]
    for multiprocessors in (1, 1 << 20):
        monkeypatch.setattr(_cuda, "_properties", lambda device, count=multiprocessors: (count, capability))
        outs.append(case.run("cuda"))
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_logits_of_more_than_2_to_the_31_elements(rule: str, time_major: bool, backend: str, gpu: torch.device) -> None:
    batch, width, vocab = 1024, 18, 128256
    shape = (width, batch, vocab) if time_major else (batch, width, vocab)
    logits = torch.empty(shape, dtype=torch.float16, device=gpu).normal_()
    logits = logits.transpose(0, 1) if time_major else logits
    tokens = logits.argmax(-1)
    lengths = torch.full((batch,), width, dtype=torch.int32, device=gpu)
    positions = torch.arange(batch, device=gpu)

    def run(rows: slice) -> VerifyOutput:
        params = SamplingTensors.make(batch, temperature=0.02, seed=range(batch), device=gpu)
        params = SamplingTensors(**{name: value[rows] for name, value in vars(params).items()})
        few = logits[rows] if rows == slice(None) else logits[rows].contiguous()
        return verify(few, tokens[rows], lengths[rows], params, positions[rows], rule=rule, backend=backend)

    last = slice(batch - 8, batch)
    whole, part = run(slice(None)), run(last)
    assert int(whole.num_accepted.max()) == width, "no chain goes to the end"
    for all_rows, few_rows in zip(whole, part, strict=True):
        assert torch.equal(all_rows[last], few_rows)


@pytest.mark.parametrize("rule", RULES)
def test_padding_changes_nothing(rule: str, backend: str, device: torch.device) -> None:
    """More columns, of NaN, and more rows, of anything."""
    case: VerifyCase = moved(verify_case(24, 3, 32000, rule=rule, seed=4), device)
    assert case.draft_logits is not None
    assert case.draft_stats is not None

    def pad(value: torch.Tensor, fill: float) -> torch.Tensor:
        wider = torch.cat([value, torch.full_like(value[:, :2], fill)], dim=1)
        return torch.cat([wider, torch.full_like(wider[:3], fill)])

    again = torch.cat([torch.arange(24), torch.tensor([0, 0, 0])]).to(device)
    padded = rows_of(case, again).with_(
        target_logits=pad(case.target_logits, torch.nan),
        draft_tokens=pad(case.draft_tokens, 7),
        draft_logits=pad(case.draft_logits, torch.nan),
        draft_stats=RowStats(*(pad(column, torch.nan) for column in case.draft_stats)),
    )
    for a, b in zip(padded.run(backend), case.run(backend), strict=True):
        assert torch.equal(a[:24], b)
