"""`window_attention` is softmax attention to a row's own entries, whatever else the cache holds, on every backend."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode

import pearl_kernels
from pearl_kernels.window_attention import MOST_TRITON_WIDTH, reference
from tests.kernels.test_ops import compiled

TOLERANCES = [(torch.float32, 2e-6, 1e-5), (torch.float16, 2e-3, 4e-3), (torch.bfloat16, 1.6e-2, 1.6e-2)]


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "triton" and (torch.cuda.is_available() or not pearl_kernels.backends()["triton"].available):
        pytest.skip("Triton is not interpreted here")
    name: str = request.param
    return name


@dataclass
class Case:
    """Arguments of `window_attention`; what the caches hold past a row's entries is NaN."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    k_new: Tensor
    v_new: Tensor
    seq_lens: Tensor
    scale: float = 0.2
    window: int | None = None
    softcap: float | None = None

    def run(self, backend: str | None, *, append: bool = True) -> Tensor:
        new = (self.k_new, self.v_new) if append else (None, None)
        return pearl_kernels.window_attention(
            self.q, self.k_cache, self.v_cache, *new, self.seq_lens,
            scale=self.scale, window=self.window, softcap=self.softcap, backend=backend,
        )  # fmt: skip

    def judged(self) -> Tensor:
        """The float64 reference's answer, from caches of its own."""
        return reference.window_attention(
            self.q.double(), self.k_cache.clone(), self.v_cache.clone(), self.k_new, self.v_new,
            self.seq_lens, self.scale, self.window, self.softcap, dtype=torch.float64,
        )  # fmt: skip


def case_of(
    lengths: list[int],
    width: int = 3,
    dim: int = 16,
    heads: int = 4,
    kv_heads: int = 2,
    *,
    capacity: int = 80,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **numbers: Any,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    batch = len(lengths)
    caches = [normal(batch, kv_heads, capacity, dim) for _ in range(2)]
    for cache in caches:
        for row, length in enumerate(lengths):
            cache[row, :, length:] = torch.nan
    new = [normal(batch, width, kv_heads, dim) for _ in range(2)]
    return Case(normal(batch, width, heads, dim), *caches, *new, torch.tensor(lengths, dtype=torch.int64), **numbers)


def close(got: Tensor, wanted: Tensor, atol: float = 2e-6, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=rtol)


@pytest.mark.parametrize(("dtype", "atol", "rtol"), TOLERANCES)
@pytest.mark.parametrize("numbers", [{}, {"window": 9}, {"softcap": 1.5}, {"window": 40, "softcap": 3.0}])
def test_every_backend_agrees_with_the_float64_reference(
    numbers: dict[str, Any], dtype: torch.dtype, atol: float, rtol: float, backend: str
) -> None:
    case = case_of([40, 0, 77, 6], dtype=dtype, **numbers)
    close(case.run(backend), case.judged(), atol, rtol)


@pytest.mark.parametrize("width", [1, 2, 9, 16, 17])
def test_any_width(width: int, backend: str) -> None:
    case = case_of([30, 0, 45], width)
    close(case.run(backend), case.judged())


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (14, 2), (8, 1)])
def test_any_group_of_query_heads(heads: int, kv_heads: int, backend: str) -> None:
    case = case_of([30, 5], 5, 16, heads, kv_heads)
    close(case.run(backend), case.judged())


@pytest.mark.parametrize("dim", [12, 64, 80, 96, 128, 256, 512])
def test_any_head_size(dim: int, backend: str) -> None:
    case = case_of([19, 3], dim=dim, capacity=24, scale=dim**-0.5)
    close(case.run(backend), case.judged())


@pytest.mark.parametrize("lengths", [[254, 255, 256], [600, 17, 511], [253, 253, 253]])
@pytest.mark.parametrize("window", [None, 100, 300])
def test_entries_in_several_parts_of_a_long_cache(lengths: list[int], window: int | None, backend: str) -> None:
    case = case_of(lengths, capacity=603, window=window)
    close(case.run(backend), case.judged())


@pytest.mark.parametrize("parts", [1, 2])
def test_parts_are_joined_so_many_at_a_time(parts: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend != "triton":
        pytest.skip("only Triton cuts a cache into parts")
    monkeypatch.setattr(importlib.import_module("pearl_kernels.window_attention._triton"), "JOINED", 16 * parts)
    for window in (None, 300):
        case = case_of([600, 17, 511], capacity=603, window=window)
        close(case.run(backend), case.judged())


def test_the_cache_gets_the_new_entries_and_is_otherwise_as_it_was(backend: str) -> None:
    lengths = [254, 0, 300]
    case = case_of(lengths, width=5, capacity=305, dtype=torch.bfloat16)
    wanted = []
    for cache, new in ((case.k_cache, case.k_new), (case.v_cache, case.v_new)):
        after = cache.clone()
        for row, length in enumerate(lengths):
            after[row, :, length : length + 5] = new[row].transpose(0, 1)
        wanted.append(after)
    before = [x.clone() for x in (case.q, case.k_new, case.v_new, case.seq_lens)]
    case.run(backend)
    for got, after in zip((case.k_cache, case.v_cache), wanted, strict=True):
        assert torch.equal(got.view(torch.int16), after.view(torch.int16))
    for got, was in zip((case.q, case.k_new, case.v_new, case.seq_lens), before, strict=True):
        assert torch.equal(got, was)


@pytest.mark.parametrize("window", [None, 7])
def test_appending_is_the_same_as_having_appended(window: int | None, backend: str) -> None:
    case = case_of([254, 0, 60], width=4, capacity=300, window=window)
    appended = case.run(backend)
    before = case.k_cache.clone()
    assert torch.equal(case.run(backend, append=False), appended)
    assert torch.equal(case.k_cache.nan_to_num(9), before.nan_to_num(9))


def test_a_row_does_not_depend_on_its_slot_or_on_the_others(backend: str) -> None:
    case = case_of([40, 7, 77, 12], dtype=torch.bfloat16)
    order = torch.tensor([2, 0])
    tensors = (case.q, case.k_cache, case.v_cache, case.k_new, case.v_new, case.seq_lens)
    moved = Case(*(x[order].clone() for x in tensors), case.scale)
    assert torch.equal(moved.run(backend), case.run(backend)[order])


def test_many_rows_are_one_row_after_the_other(backend: str) -> None:
    """As a target verifies what a draft would have written token by token."""
    whole, single = case_of([20, 33], 6), case_of([20, 33], 6)
    together = whole.run(backend)
    for i in range(6):
        at = slice(i, i + 1)
        step = Case(
            single.q[:, at], single.k_cache, single.v_cache, single.k_new[:, at], single.v_new[:, at],
            single.seq_lens + i, single.scale,
        )  # fmt: skip
        close(step.run(backend), together[:, at].double())


def test_any_strides_with_a_contiguous_last_dimension(backend: str) -> None:
    case = case_of([30, 4])
    wanted = case.judged()
    case.q = case.q.transpose(1, 2).contiguous().transpose(1, 2)
    case.k_new, case.v_new = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.k_new, case.v_new))
    for name in ("k_cache", "v_cache"):
        cache: Tensor = getattr(case, name)
        wide = torch.full((2, 90, 2, 20), torch.nan)
        wide[:, 5:85, :, 2:18] = cache.transpose(1, 2)
        setattr(case, name, wide.transpose(1, 2)[:, :, 5:85, 2:18])
    close(case.run(backend), wanted)


def test_lengths_of_32_bits(backend: str) -> None:
    case = case_of([30, 4])
    wanted = case.judged()
    case.seq_lens = case.seq_lens.int()
    close(case.run(backend), wanted)


def test_no_rows(backend: str) -> None:
    assert case_of([]).run(backend).shape == (0, 3, 4, 16)


def test_of_a_tensor_without_memory_only_its_shape_is_told() -> None:
    case = case_of([30, 4])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for append in (True, False):
            out = replace(case, q=mode.from_tensor(case.q)).run(None, append=append)
            assert (type(out), out.shape) == (FakeTensor, case.q.shape)


def test_opcheck(backend: str) -> None:
    case = case_of([30, 4])
    for cache in (case.k_cache, case.v_cache):
        cache.nan_to_num_(0.0)  # opcheck compares what was written, and NaN is not itself
    rest = (case.seq_lens, case.scale, 8, 2.0, backend)
    caches = case.k_cache, case.v_cache
    torch.library.opcheck(torch.ops.pearl.window_attention.default, (case.q, *caches, *rest))
    torch.library.opcheck(torch.ops.pearl.window_attention_.default, (case.q, *caches, case.k_new, case.v_new, *rest))


def test_compiles_whole_and_updates_the_cache(backend: str) -> None:
    traced, eager = case_of([30, 4]), case_of([30, 4])

    def step(q: Tensor, k_cache: Tensor, v_cache: Tensor, k_new: Tensor, v_new: Tensor, seq_lens: Tensor) -> Tensor:
        out = pearl_kernels.window_attention(
            q * 2, k_cache, v_cache, k_new + 1, v_new, seq_lens, scale=0.3, backend=backend
        )
        return out + 1

    def run(case: Case, call: Any) -> Tensor:
        found: Tensor = call(case.q, case.k_cache, case.v_cache, case.k_new, case.v_new, case.seq_lens)
        return found

    assert torch.equal(run(traced, compiled(step)), run(eager, step))
    assert torch.equal(traced.k_cache.nan_to_num(9), eager.k_cache.nan_to_num(9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(2, 3, 4)}, r"q must be \(batch, width, heads, head_dim\)"),
        ({"q": torch.zeros(2, 3, 5, 16)}, "q must have a multiple of k_cache's kv_heads=2 heads, got 5"),
        ({"q": torch.zeros(2, 3, 4, 520)}, "q must have a head_dim of at most 512, got 520"),
        ({"v_cache": torch.zeros(2, 2, 79, 16)}, r"v_cache must be .*capacity=80.*got \(2, 2, 79, 16\)"),
        ({"k_new": None}, "k_new and v_new must both be given or both be None"),
        ({"v_new": torch.zeros(2, 3, 2, 16).half()}, r"v_new must be .*float32 on cpu, got .*float16"),
        ({"seq_lens": torch.tensor([0, 78])}, r"seq_lens must be in \[0, 77\], got values from 0 to 78"),
        ({"seq_lens": torch.tensor([0.0, 1.0])}, r"seq_lens must be \(batch=2,\) int64"),
        ({"window": 0}, "window must be None or at least 1, got 0"),
        ({"softcap": -1.0}, "softcap must be None or a positive number"),
        ({"scale": float("nan")}, "scale must be a finite number"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    case = case_of([3, 4])
    for name, value in changes.items():
        setattr(case, name, value)
    with pytest.raises(ValueError, match=f"^window_attention: {message}"):
        case.run("reference")


@pytest.mark.parametrize(
    ("dtype", "dim", "taken"),
    [(torch.bfloat16, 256, True), (torch.float16, 8, True), (torch.bfloat16, 512, False), (torch.bfloat16, 100, False),
     (torch.float32, 64, False)],
)  # fmt: skip
def test_flash_and_triton_are_left_out_where_they_have_no_kernel(
    dtype: torch.dtype, dim: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(op: str, device: torch.device, backend: str | None, unfit: tuple[str, ...] = ()) -> Any:
        chosen.append(unfit)
        return reference.window_attention

    chosen: list[tuple[str, ...]] = []
    monkeypatch.setattr(sys.modules["pearl_kernels.window_attention"], "choose", choose)
    case_of([3], dim=dim, dtype=dtype).run(None)
    assert chosen == [() if taken else ("flash",)]
    chosen.clear()
    width = MOST_TRITON_WIDTH + 1
    case_of([3], width=width, capacity=width + 3, dim=dim, dtype=dtype).run(None)
    assert chosen == [("triton",) if taken else ("flash", "triton")]


def test_backends_that_do_not_have_it_say_so() -> None:
    with pytest.raises(RuntimeError, match=r"^window_attention: cuda backend: has no window_attention$"):
        case_of([3]).run("cuda")
    with pytest.raises(RuntimeError, match=r"^window_attention: flash backend: "):
        case_of([3]).run("flash")
    with pytest.raises(RuntimeError, match=r"^sample: flash backend: has no sample$"):
        pearl_kernels.sample(
            torch.zeros(1, 2), pearl_kernels.SamplingTensors.make(1), torch.zeros(1, dtype=torch.int64), backend="flash"
        )


def test_triton_refuses_more_new_entries_than_it_holds() -> None:
    width = MOST_TRITON_WIDTH + 1
    message = rf"^triton backend: k_new must be at most {MOST_TRITON_WIDTH} rows wide, or .*, got width={width}$"
    if not pearl_kernels.backends()["triton"].available:
        pytest.skip("Triton is not interpreted here")
    case = case_of([3], width=width, capacity=width + 3)
    with pytest.raises(ValueError, match=message):
        case.run("triton")
    wanted = case.run("reference")
    case.k_new = case.v_new = None
    torch.testing.assert_close(case.run("triton"), wanted, rtol=1e-4, atol=1e-4)


def test_what_the_reference_runs_for_another_is_logged_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch = sys.modules["pearl_kernels.dispatch"]
    monkeypatch.setattr(dispatch, "_ORDER", {"cpu": ("flash", "triton", "reference")})
    dispatch._pick.cache_clear()
    dispatch._warn_once.cache_clear()
    width = MOST_TRITON_WIDTH + 1
    try:
        case_of([3], width=width, capacity=width + 3).run(None)
    finally:
        dispatch._pick.cache_clear()
    wanted = "cpu tensors run on the reference backend: triton backend: does not take these sizes"
    assert [record.getMessage() for record in caplog.records] == [wanted]
