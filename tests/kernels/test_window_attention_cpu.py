"""What the C++ kernel of `window_attention` says of itself beyond what every backend does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pearl_kernels.window_attention import _native
from tests.kernels.levels import LEVELS, run_at
from tests.kernels.test_window_attention import Case, case_of, close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def copied(case: Case) -> Case:
    tensors = (case.q, case.k_cache, case.v_cache, case.k_new, case.v_new, case.seq_lens)
    return Case(*(x.clone() for x in tensors), case.scale, case.window, case.softcap)


def step(case: Case, row: int, query: int) -> Case:
    """One query of one row by itself; the entries before it are in the cache."""
    at, b = slice(query, query + 1), slice(row, row + 1)
    return Case(
        case.q[b, at], case.k_cache[b], case.v_cache[b], case.k_new[b, at], case.v_new[b, at],
        case.seq_lens[b] + query, case.scale, case.window, case.softcap,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numbers", [{}, {"window": 11}, {"window": 3}, {"softcap": 2.0}])
@pytest.mark.parametrize(("width", "heads", "kv_heads", "dim"), [(5, 9, 3, 64), (17, 4, 1, 20), (7, 3, 3, 12)])
def test_a_query_has_the_bits_it_would_have_alone(numbers, dtype, width, heads, kv_heads, dim):
    case = case_of([61, 0, 33, 200], width, dim, heads, kv_heads, capacity=240, dtype=dtype, **numbers)
    apart = copied(case)
    together = case.run("cpu")
    assert together.isfinite().all()
    for row in range(len(case.seq_lens)):
        for query in range(width):
            assert torch.equal(step(apart, row, query).run("cpu")[0, 0], together[row, query]), (row, query)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("width", [1, 5, 40])
def test_threads_change_no_bit(width):
    cases = [case_of([900, 511, 3], width, 64, 9, 3, capacity=941) for _ in range(3)]
    found = []
    for count, case in enumerate(cases, 1):
        torch.set_num_threads(count)
        found.append(case.run("cpu"))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    close(found[0], case_of([900, 511, 3], width, 64, 9, 3, capacity=941).judged())


@pytest.mark.parametrize("capacity", [17, 48, 64, 100])
def test_the_cache_may_be_full_to_its_last_entry_or_empty(capacity):
    for width in (1, 2, 17):
        case = case_of([capacity - width, 0], width, capacity=capacity)
        close(case.run("cpu"), case.judged())


@pytest.mark.parametrize("numbers", [{}, {"window": 2}])
def test_a_bad_entry_spoils_only_the_queries_that_look_at_it(numbers):
    """Entry 2 of 5 new ones, in a value and then in a key: the queries before it are as they were."""
    for name in ("v_new", "k_new"):
        clean, spoilt = (case_of([30, 4], 5, 20, **numbers) for _ in range(2))
        getattr(spoilt, name)[0, 2, 0] = torch.nan
        wanted, got = clean.run("cpu"), spoilt.run("cpu")
        lookers = [2, 3, 4] if not numbers else [2, 3]
        others = [n for n in range(5) if n not in lookers]
        assert got[0, lookers, :2].isnan().all()  # the heads of the first key head
        assert torch.equal(got[0, others], wanted[0, others])
        assert torch.equal(got[0, :, 2:], wanted[0, :, 2:])
        assert torch.equal(got[1], wanted[1])


def test_lengths_past_the_cache_touch_nothing_outside_it():
    """As they may come where the door does not see them, in a compiled graph."""
    case = case_of([3, 4], width=4)
    for cache in (case.k_cache, case.v_cache):
        cache.zero_()
    around = [torch.full((4, 2, 80, 16), 7.0) for _ in range(2)]
    for whole, cache in zip(around, (case.k_cache, case.v_cache), strict=True):
        whole[1:3] = cache
    lengths = torch.tensor([79, -5])
    caches = [whole[1:3] for whole in around]
    out = _native.window_attention(case.q, *caches, case.k_new, case.v_new, lengths, 0.2, None, None)
    assert out.isfinite().all()
    assert all((whole[[0, 3]] == 7.0).all() for whole in around)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_are_rounded_as_torch_rounds(dtype):
    """With a query of zeros the result is the mean of the values, here of two: a sum that is exact in float32."""
    finite = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    finite = finite[finite.isfinite() & (finite.abs() < torch.finfo(dtype).max / 2)].sort().values
    pairs = torch.stack([finite, finite.roll(1)])  # neighbours: their mean is a tie
    count = pairs.shape[1] // 64
    values = pairs[:, : count * 64].view(2, count, 64)
    q = torch.zeros(1, 1, count, 64, dtype=dtype)
    cache = torch.zeros(1, count, 2, 64, dtype=dtype)
    got = _native.window_attention(
        q, cache, values.transpose(0, 1)[None], None, None, torch.tensor([1]), 1.0, None, None
    )
    assert torch.equal(got[0, 0], (values.float().sum(0) / 2).to(dtype))


@pytest.mark.parametrize("softcap", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("scale", [1e-3, 0.2, 40.0])
def test_capped_scores_large_and_small(scale, softcap):
    case = case_of([40, 7], 3, 64, scale=scale, softcap=softcap)
    close(case.run("cpu"), case.judged(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_this_processor_runs(level):
    """In a process of its own: a level is chosen once."""
    program = """
import torch
from tests.kernels.test_window_attention import TOLERANCES, case_of, close
for dtype, atol, rtol in TOLERANCES:
    for numbers in ({}, {"window": 9}, {"softcap": 1.5}):
        for width, heads, kv_heads, dim in ((1, 9, 3, 64), (5, 9, 3, 64), (9, 4, 2, 20), (17, 8, 1, 12)):
            case = case_of([40, 0, 57, 6], width, dim, heads, kv_heads, dtype=dtype, **numbers)
            close(case.run("cpu"), case.judged(), atol, rtol)
"""
    run_at(level, program, OMP_NUM_THREADS="1")
