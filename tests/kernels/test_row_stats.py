"""RowStats say exactly which tokens are kept and with what probability."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import pearl_kernels
from pearl_kernels import Purpose, RowStats, SamplingTensors
from tests.kernels.cases import judged_sample, peaked_logits

GRID = [
    {"temperature": 1.0},
    {"temperature": 0.4},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 17},
    {"top_p": 0.02},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.01},
    {"min_p": 0.9},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.6, "top_k": 5, "top_p": 0.99, "min_p": 0.3},
    {"temperature": 1.6, "top_k": 900, "top_p": 0.6},
]


def stats_of(logits: Tensor, backend: str, **params: float) -> RowStats:
    rows = len(logits)
    every = SamplingTensors.make(rows, **params)  # type: ignore[arg-type]
    return pearl_kernels.sample(logits, every, torch.zeros(rows, dtype=torch.int64), backend=backend).stats


def probs_of(logits: Tensor, stats: RowStats, temperature: float = 1.0) -> Tensor:
    """What the docstring of RowStats says a probability is."""
    values = logits.double()
    kept = values >= stats.threshold.double()[:, None]
    return torch.where(kept, (values / temperature - stats.lse.double()[:, None]).exp(), 0.0)


def kept_by(logits: list[float], backend: str, **params: float) -> list[bool]:
    row = torch.tensor([logits])
    return (row >= stats_of(row, backend, **params).threshold[:, None])[0].tolist()


def transformers_probs(logits: Tensor, **params: float) -> Tensor:
    warpers = LogitsProcessorList()
    if params.get("temperature", 1.0) != 1.0:
        warpers.append(TemperatureLogitsWarper(params["temperature"]))
    if "top_k" in params:
        warpers.append(TopKLogitsWarper(int(params["top_k"])))
    if "top_p" in params:
        warpers.append(TopPLogitsWarper(params["top_p"]))
    if "min_p" in params:
        warpers.append(MinPLogitsWarper(params["min_p"]))
    no_tokens = torch.zeros(len(logits), 1, dtype=torch.int64)
    return warpers(no_tokens, logits.double()).softmax(-1)  # type: ignore[arg-type]


@pytest.mark.parametrize("params", GRID, ids=str)
@pytest.mark.parametrize("vocab", [50, 1000, 32000])
def test_probabilities_are_those_of_transformers_warpers(params: dict[str, float], vocab: int, backend: str) -> None:
    logits = peaked_logits((4, vocab), torch.Generator().manual_seed(vocab))
    got = probs_of(logits, stats_of(logits, backend, **params), params.get("temperature", 1.0))
    torch.testing.assert_close(got, transformers_probs(logits, **params), atol=1e-6, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_thresholds_are_raw_logits_of_the_stored_dtype(dtype: torch.dtype, backend: str) -> None:
    logits = peaked_logits((6, 3000), torch.Generator().manual_seed(1)).to(dtype)
    for params in ({"top_k": 30}, {"top_p": 0.7}):
        threshold = stats_of(logits, backend, temperature=0.3, **params).threshold
        assert (logits.float() == threshold[:, None]).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.0, 0.3, 40.0])
def test_flat_and_steep_rows_are_cut_where_the_reference_cuts_them(
    spread: float, dtype: torch.dtype, backend: str
) -> None:
    """Rows of which nearly all is near the highest logit, and rows with many equal logits at the threshold."""
    logits = (spread * torch.randn(4, 9000, generator=torch.Generator().manual_seed(2))).to(dtype)
    for params in ({"top_k": 7}, {"top_k": 3000}, {"top_p": 0.6}, {"top_p": 0.999}, {"top_k": 2500, "top_p": 0.9}):
        every = SamplingTensors.make(4, **params)  # type: ignore[arg-type]
        wanted = judged_sample(logits, every, torch.zeros(4, dtype=torch.int64), Purpose.SAMPLE, None)
        got = stats_of(logits, backend, **params)
        kept = [(logits >= stats.threshold[:, None]).sum(-1) for stats in (got, wanted.stats)]
        assert ((kept[0] - kept[1]).abs() <= 1).all(), params  # the last one may lie within rounding of the boundary
        if dtype is torch.bfloat16 or "top_p" not in params:
            assert torch.equal(got.threshold, wanted.stats.threshold), params


def test_nothing_is_filtered_when_every_filter_is_off(backend: str) -> None:
    logits = torch.randn(3, 40)
    for params in ({}, {"top_k": 40}, {"top_k": 1000}, {"top_p": 1.0}, {"min_p": 0.0}):
        assert stats_of(logits, backend, **params).threshold.tolist() == [-torch.inf] * 3


def test_top_k_keeps_all_that_tie_with_the_kth(backend: str) -> None:
    assert kept_by([3.0, 1.0, 2.0, 2.0, 0.0, 2.0], backend, top_k=2) == [True, False, True, True, False, True]


def test_top_p_keeps_or_drops_equal_logits_together(backend: str) -> None:
    row = [0.0, 2.0, 1.0, 1.0, 1.0, 0.0]  # probabilities .39, then three of .14, then two of .05
    assert kept_by(row, backend, top_p=0.38) == [False, True, False, False, False, False]
    assert kept_by(row, backend, top_p=0.45) == [False, True, True, True, True, False]
    assert kept_by(row, backend, top_p=0.95) == [True] * 6


def test_top_p_of_a_flat_row_keeps_everything(backend: str) -> None:
    assert kept_by([1.5] * 7, backend, top_p=0.01) == [True] * 7


def test_top_p_is_renormalised_on_what_top_k_kept(backend: str) -> None:
    row = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert kept_by(row, backend, top_p=0.5) == [True, True, False, False]
    assert kept_by(row, backend, top_k=2, top_p=0.5) == [True, False, False, False]


def test_min_p_1_keeps_the_maxima_only(backend: str) -> None:
    assert kept_by([1.0, 3.0, 2.9999998, 3.0], backend, min_p=1.0, temperature=0.3) == [False, True, False, True]


def test_a_greedy_row_has_its_maximum_for_threshold_and_lse_0(backend: str) -> None:
    stats = stats_of(torch.tensor([[1.0, 4.0, 4.0, 0.0]]), backend, temperature=0.0, top_p=0.5, top_k=3, min_p=0.2)
    assert (stats.threshold.item(), stats.lse.item()) == (4.0, 0.0)


def test_greedy_takes_the_lowest_index_of_equal_maxima(backend: str) -> None:
    for vocab in (5, 64, 1000, 49152):
        logits = torch.zeros(3, vocab)
        logits[1, vocab // 2 :] = 1.0
        logits[2, -1] = 1.0
        out = pearl_kernels.sample(
            logits, SamplingTensors.make(3, temperature=0.0), torch.zeros(3, dtype=torch.int64), backend=backend
        )
        assert out.tokens.tolist() == [0, vocab // 2, vocab - 1]


def test_minus_infinity_is_a_token_that_cannot_be_drawn(backend: str) -> None:
    logits = torch.full((500, 90), -torch.inf)
    logits[:, 30::30] = 1.0
    params = SamplingTensors.make(500, seed=list(range(500)))
    out = pearl_kernels.sample(logits, params, torch.zeros(500, dtype=torch.int64), backend=backend)
    assert sorted(set(out.tokens.tolist())) == [30, 60]
    assert not out.status.any()


@pytest.mark.parametrize("filters", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_filters_see_past_minus_infinity(filters: dict[str, float], backend: str) -> None:
    logits = torch.full((1, 90), -torch.inf)
    logits[:, 30::30] = 1.0
    probs = probs_of(logits, stats_of(logits, backend, **filters))
    assert probs[0, 30::30].tolist() == pytest.approx([0.5, 0.5])
    assert float(probs.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("offset", [-3000.0, 0.0, 3000.0])
def test_lse_is_stable_far_from_zero(offset: float, temperature: float, backend: str) -> None:
    logits = torch.linspace(-4, 4, 1000)[None] + offset
    stats = stats_of(logits, backend, temperature=temperature)
    wanted = (logits.double() / temperature).logsumexp(-1)
    torch.testing.assert_close(stats.lse.double(), wanted, rtol=3e-7, atol=2e-6)
