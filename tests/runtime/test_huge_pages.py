"""Memory in huge pages: that it is asked for, is what torch.zeros gives, and is used again."""

from __future__ import annotations

import gc
import math
import mmap
import weakref
from pathlib import Path

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams, huge_pages
from pearl_decode.cache import WindowCache
from pearl_decode.huge_pages import CHUNK, MOST_SPARE, HugePages
from pearl_decode.linear import WindowLinear
from pearl_decode.models import CausalModel
from pearl_decode.storage import pack_weights
from tests.runtime.test_layer import WHOLE as CONFIGS
from tests.runtime.test_layer import load

grants = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists() or not hasattr(mmap, "MADV_HUGEPAGE"),
    reason="a system without huge pages to ask for",
)


def is_advised(tensor: torch.Tensor) -> bool:
    """Whether the system was asked for huge pages where a tensor lies."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            begin, end = (int(part, 16) for part in name.split("-"))
            inside = begin <= tensor.data_ptr() < end
        elif inside and name == "VmFlags:":
            return "hg" in rest
    raise AssertionError("no memory of this process")


def test_tensors_are_zero_and_apart():
    pages, found = HugePages(), []
    shapes = [(3, 5), (7,), (), (2, 0, 3), (CHUNK // 2,), (CHUNK // 4 + 1,), (4, 4)]
    for shape, dtype in zip(shapes, [torch.float32, torch.int8, torch.int64, *[torch.bfloat16] * 4], strict=True):
        found.append(pages.zeros(shape, dtype))
        assert found[-1].shape == shape
        assert found[-1].dtype is dtype
        assert found[-1].is_contiguous()
        assert found[-1].data_ptr() % 64 == 0
        assert not found[-1].any()
        found[-1].fill_(len(found))
    assert all((tensor == number).all() for number, tensor in enumerate(found, start=1))


@grants
def test_huge_pages_are_asked_for():
    assert is_advised(HugePages().zeros((1000,), torch.float32))
    plain = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert not is_advised(torch.frombuffer(plain, dtype=torch.int8))


@grants
def test_packed_weights_and_caches_are_in_huge_pages(tmp_path):
    model = load(CONFIGS["llama"], tmp_path)
    pack_weights(model)
    linears = [module for module in model.modules() if isinstance(module, WindowLinear)]
    assert linears
    assert all(is_advised(linear.weight) for linear in linears)
    cache, ids = WindowCache(16), torch.arange(10).view(2, 5)
    with torch.inference_mode():
        CausalModel(model).forward(ids, [0, 0], cache, keep=1)
    assert all(is_advised(layer.keys) and is_advised(layer.values) for layer in cache.layers)


def test_without_them_torch_gives_the_memory(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert torch.equal(HugePages().zeros((2, 3), torch.float16), torch.zeros(2, 3, dtype=torch.float16))


def test_a_system_that_refuses_gives_pages_as_it_has_them(monkeypatch):
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999, raising=False)
    assert torch.equal(HugePages().zeros((2, 3), torch.float32), torch.zeros(2, 3))


@pytest.fixture
def nothing_spare(monkeypatch):
    """As in a process that has used nothing yet. The chunks that become spare."""
    gc.collect()  # or chunks of other tests might become spare only now
    monkeypatch.setattr(huge_pages, "_spare", [])
    return huge_pages._spare


@grants
def test_memory_is_used_again_when_nothing_in_it_is_in_use(nothing_spare):
    pages = HugePages()
    first, second = (pages.zeros((10,), torch.float32) for _ in range(2))
    place = first.data_ptr()
    del pages, first
    assert not nothing_spare
    view = second[3:].view(-1)
    del second
    assert not nothing_spare
    del view
    assert len(nothing_spare) == 1
    assert HugePages().empty((5,), torch.float32).data_ptr() == place


@grants
def test_zeros_are_zero_whatever_was_there(nothing_spare):
    HugePages().zeros((1000,), torch.float32).fill_(math.nan)
    assert len(nothing_spare) == 1
    pages = HugePages()
    assert not pages.zeros((10,), torch.float32).any()
    assert not pages.zeros((990,), torch.float32).any()
    assert not nothing_spare


@grants
def test_the_smallest_that_is_large_enough_is_taken_and_only_some_are_kept(nothing_spare):
    sizes = [3, 1, 2, 5, 4]
    held = [HugePages().empty((size * CHUNK,), torch.int8) for size in sizes]
    while held:
        held.pop(0)
    assert [len(chunk) // CHUNK for chunk in nothing_spare] == sizes
    taken = HugePages().empty((2 * CHUNK - 9,), torch.int8)
    assert [len(chunk) // CHUNK for chunk in nothing_spare] == [3, 1, 5, 4]
    held = [HugePages().empty((1,), torch.int8) for _ in range(MOST_SPARE + 3)]
    held.clear()
    del taken
    assert len(nothing_spare) == MOST_SPARE
    assert len(nothing_spare[-1]) == 2 * CHUNK


@grants
def test_the_system_gets_back_what_it_cannot_take_as_it_needs_it(nothing_spare, monkeypatch):
    monkeypatch.delattr(mmap, "MADV_FREE")
    HugePages().zeros((10,), torch.float32)
    assert not nothing_spare


@grants
def test_what_shall_not_be_spare_goes_back_to_the_system(nothing_spare, monkeypatch):
    chunks = []
    take = mmap.mmap

    class Noted(take):  # type: ignore[misc,valid-type]
        def __init__(self, *args, **named):
            chunks.append(weakref.ref(self))

    monkeypatch.setattr(mmap, "mmap", Noted)
    tensor = HugePages(spare=False).zeros((10,), torch.float32)
    assert chunks[0]() is not None
    del tensor
    assert chunks[0]() is None
    assert not nothing_spare


@grants
def test_what_shall_not_be_spare_takes_nothing_that_is(nothing_spare):
    HugePages().empty((10,), torch.float32)
    assert len(nothing_spare) == 1
    assert not HugePages(spare=False).zeros((10,), torch.float32).any()
    assert len(nothing_spare) == 1


@grants
def test_a_batch_leaves_its_memory_to_the_next(tmp_path, nothing_spare, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with PearlDecoder(load(CONFIGS["llama"], tmp_path), strategy="autoregressive") as decoder:
        gc.collect()
        nothing_spare.clear()  # what loading left
        first = decoder.generate([[5, 6, 7], [8]], SamplingParams(max_tokens=5))
        left = list(nothing_spare)
        assert len(left) == 1
        decoder.generate([[5, 6, 7] * 30], SamplingParams(max_tokens=50))
        assert [id(chunk) for chunk in nothing_spare] == [id(chunk) for chunk in left]
        for chunk in left:
            chunk[:] = b"\xff" * len(chunk)  # NaN
        again = decoder.generate([[5, 6, 7], [8]], SamplingParams(max_tokens=5))
    assert [result.token_ids for result in again] == [result.token_ids for result in first]
    assert [result.error for result in again] == [None, None]
