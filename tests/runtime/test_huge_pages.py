"""Memory in huge pages: that it is asked for, is what torch.zeros gives, and goes back."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path

import pytest
import torch

from pearl_decode.cache import WindowCache
from pearl_decode.huge_pages import CHUNK, HugePages
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


def test_memory_goes_back_when_nothing_in_it_is_in_use(monkeypatch):
    chunks = []
    take = mmap.mmap

    class Noted(take):  # type: ignore[misc,valid-type]
        def __init__(self, *args, **named):
            chunks.append(weakref.ref(self))

    monkeypatch.setattr(mmap, "mmap", Noted)
    pages = HugePages()
    first, second = (pages.zeros((10,), torch.float32) for _ in range(2))
    assert len(chunks) == 1
    del pages, first
    assert chunks[0]() is not None
    del second
    assert chunks[0]() is None
