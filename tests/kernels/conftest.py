"""Every test that takes `backend` runs for each backend that CPU tensors can have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pearl_kernels
from tests.emulation import build, plug
from tests.kernels.interpreted import leave_out_most

HERE = Path(__file__).parent


@pytest.fixture(params=["reference", "cpu", "triton", "cuda"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "cuda":
        if lacking := build.lacking():
            pytest.skip(lacking)
        plug.plug_in(monkeypatch, plug.emulated_extension())
        return name
    if name == "triton" and torch.cuda.is_available():
        pytest.skip("not interpreted where there is a GPU; tests/gpu runs it there")
    state = pearl_kernels.backends()[name]
    if not state.available:
        pytest.skip(state.reason)
    return name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_out_most([item for item in items if item.path.parent == HERE])


@pytest.fixture(autouse=True)
def _no_forced_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEARL_BACKEND", raising=False)


@pytest.fixture(autouse=True, scope="package")
def _one_torch_thread() -> Iterator[None]:
    """The tensors are small: more threads only wait for each other, all the more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
